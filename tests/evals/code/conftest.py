"""Fixtures of the tests of the code evaluation: files of problems, a finished run, tokenizers and models."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from asarm.evals.code import verdicts
from asarm.evals.code.config import CodeConfig
from asarm.evals.code.run import evaluate
from asarm.evals.infilling.fim import FAMILIES
from asarm.models.load import load
from asarm.tokenization.codec import TextCodec
from asarm.utils.config import from_options
from support.code_problems import BATCH, OWN, ROWS, SAMPLES, SPAN_ROWS, fake_verdicts, write_rows
from support.xlnet_tokenizer import train_xlnet_tokenizer


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems")
    return [write_rows(folder / "some lines.jsonl.gz", ROWS, True), write_rows(folder / "spans.jsonl", SPAN_ROWS)]


@pytest.fixture(scope="session")
def settings(tiny_folder, files):
    return {
        "problems": files, "models": [tiny_folder], "device": "cpu", "samples_per_task": SAMPLES, "batch_size": BATCH,
        "k": 3, "gap_length": ["oracle", "search", "fixed:7"], "proposals": 3,
    }  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory, settings):
    """The folder of a finished run, with verdicts of `fake_verdicts`."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "check_all", fake_verdicts)
        evaluate(from_options(CodeConfig, output_dir=str(folder), allow_code_execution=True, **settings))
    return folder


@pytest.fixture(scope="session")
def code_codec():
    """XLNet's kind of tokenizer, with white space written as tokens."""
    text = "\n".join(row["prompt"] + row["suffix"] for path in OWN for row in map(json.loads, path.open()))
    return TextCodec(train_xlnet_tokenizer(text, 200), "tokens")


@pytest.fixture(scope="session")
def causal_folder(tmp_path_factory, tiny_folder):
    """A causal model with random weights whose tokenizer has StarCoder's marks."""
    folder = tmp_path_factory.mktemp("causal")
    codec = load(tiny_folder)[1]
    codec.tokenizer.add_tokens(list(FAMILIES[0]))
    torch.manual_seed(0)
    shape = {"n_positions": 96, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.5}
    special = {"bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(codec), **shape, **special)).save_pretrained(folder)
    codec.save_pretrained(folder)
    return str(folder)
