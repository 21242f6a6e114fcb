"""GGUF files: the same model as from safetensors, up to quantisation, whatever the file is named by."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoTokenizer

from asarm import load, log_prob
from asarm.models.conversion.gguf import find_gguf
from asarm.utils.errors import InputError
from support.hub import Hub
from support.llama import GGUF_SHAPE, save_llama, write_gguf


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    return tmp_path / "assets"


@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 1e-2), ("Q8_0", 0.3)])
@torch.inference_mode()
def test_it_is_the_model_of_the_safetensors(tmp_path, sample_text, cache, kind, tolerance):
    reference = save_llama(tmp_path / "plain", sample_text, **GGUF_SHAPE)
    expected, codec = load(tmp_path / "plain")
    file = tmp_path / "quantised" / "model.gguf"
    file.parent.mkdir()
    write_gguf(file, reference, AutoTokenizer.from_pretrained(tmp_path / "plain"), kind)
    tokens = torch.tensor([codec.encode(sample_text)[:60]])
    given = torch.arange(60)[None] % 3 == 0
    for name in (file, file.parent):
        model, its_codec = load(name)
        assert its_codec.encode(sample_text) == codec.encode(sample_text)
        assert (its_codec.mask_token_id, its_codec.eos_token_id) == (codec.mask_token_id, codec.eos_token_id)
        difference = (log_prob(model, tokens, given) - log_prob(expected, tokens, given)).abs()
        assert 0 < difference.mean() < tolerance
    assert len(list(cache.glob("asarm/gguf/*"))) == 1  # it is unpacked once


def test_weights_that_are_missing_are_not_made_up(tmp_path, sample_text, cache):
    reference = save_llama(tmp_path / "plain", sample_text, **GGUF_SHAPE)
    tokenizer, missing = AutoTokenizer.from_pretrained(tmp_path / "plain"), "model.layers.1.mlp.up_proj.weight"
    write_gguf(tmp_path / "model.gguf", reference, tokenizer, "F32", without=missing)
    with pytest.raises(InputError, match=f"do not fit its config.*{missing}"):
        load(tmp_path / "model.gguf")


def test_what_is_wrong_with_a_file(tmp_path, cache):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF?")
    with pytest.raises(InputError, match=r"has 2 GGUF files: give one of them, such as .*a\.gguf"):
        load(tmp_path)
    with pytest.raises(InputError, match=r"cannot read .*a\.gguf|takes the package gguf: pip install gguf"):
        load(tmp_path / "a.gguf")
    with pytest.raises(InputError, match=r"no file .*c\.gguf"):
        load(tmp_path / "c.gguf")
    (tmp_path / "config.json").write_text("{}")
    assert find_gguf(str(tmp_path), "main") is None  # a folder with a config is an ordinary one


def test_a_file_on_the_hub(tmp_path):
    """In a process of its own, because `huggingface_hub` reads its environment when it is imported."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "small.gguf").write_bytes(b"weights")
    script = "from asarm.models.conversion.gguf import find_gguf; print(find_gguf('user/llama/small.gguf', 'main'))"
    with Hub({"user/llama": {"main": tmp_path / "files"}}) as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).read_bytes() == b"weights"
