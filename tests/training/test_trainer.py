"""Objective, schedules and the training loop."""

import functools
import importlib.util
import json
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, XLNetConfig, XLNetLMHeadModel

from asarm import load
from asarm.cli.train import load_text_scorer
from asarm.data.tokenizer_training import train_tokenizer
from asarm.evals.decoding.generative_perplexity import causal_scorer
from asarm.training.config import TrainingConfig
from asarm.training.distributed import start_trackers
from asarm.training.trainer import Trainer
from asarm.utils.errors import InputError
from support.llama import TINY, byte_tokenizer
from support.training import PROSE, run_config
from support.xlnet_tokenizer import train_xlnet_tokenizer


def test_learning_rate():
    config = TrainingConfig(output_dir="y", max_steps=110, warmup_steps=10, learning_rate=1.0)
    assert config.learning_rate_at(0) == pytest.approx(0.1)
    assert config.learning_rate_at(10) == pytest.approx(1.0)
    assert config.learning_rate_at(60) == pytest.approx(0.5)


def test_a_run_learns_and_leaves_its_files(tmp_path):
    metrics = Trainer(run_config(tmp_path, max_steps=150, eval_steps=75, save_steps=50)).run()
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    joint = [line["joint"] for line in lines if "joint" in line]
    assert joint[-1] < joint[0] - 1
    assert metrics["nll_0.5"] < metrics["unigram_nll_0.5"]
    assert metrics["bigram_nll_0.5"] < metrics["unigram_nll_0.5"]
    assert 0 < metrics["assd_nfe_per_token"] <= 1
    assert 0 < metrics["assd_acceptance"] <= 1
    assert all(line["tokens_per_second"] > 0 and line["eta_seconds"] >= 0 for line in lines if "joint" in line)
    for name in ("config.json", "metrics.json", "curve.png", "model/model.safetensors", "model/tokenizer.json"):
        assert (run / name).stat().st_size > 0
    model, codec = load(run / "model")
    assert model.config.vocab_size == len(codec) <= 400
    saved = load(run / "checkpoint-000150" / "model")[0].state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    assert [path.name for path in sorted(run.glob("checkpoint-*"))] == ["checkpoint-000100", "checkpoint-000150"]


def test_training_can_start_from_a_model(tmp_path):
    first = Trainer(run_config(tmp_path)).run()
    start = {"init_from": str(tmp_path / "run" / "model"), "output_dir": str(tmp_path / "second")}
    second = Trainer(run_config(tmp_path, **start, max_steps=2, warmup_steps=0, learning_rate=1e-6)).run()
    assert second["nll_0.5"] == pytest.approx(first["nll_0.5"], abs=0.02)


@pytest.mark.parametrize("kind", ["gpt2", "xlnet", "llama"])
def test_training_can_start_from_other_models(tmp_path, kind):
    """From GPT-2's weights, XLNet's, whose dropout is on, and Llama's; and go on after an interruption."""
    torch.manual_seed(0)
    folder = tmp_path / kind
    if kind == "gpt2":
        tokenizer = train_tokenizer([PROSE], 400)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=64, n_embd=32, n_layer=2, n_head=2))
    elif kind == "llama":
        tokenizer = byte_tokenizer(PROSE)
        model = LlamaForCausalLM(LlamaConfig(**TINY | {"tie_word_embeddings": True}))
    else:
        tokenizer = train_xlnet_tokenizer(PROSE, 400)
        model = XLNetLMHeadModel(XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=2, d_inner=64))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    first = Trainer(run_config(tmp_path, init_from=str(folder), max_steps=10, eval_decodings=0)).run()
    assert first["nll_0.5"] < 6
    long = {"init_from": str(folder), "max_steps": 12, "output_dir": str(tmp_path / "long"), "eval_decodings": 0}
    Trainer(run_config(tmp_path, **long)).run()
    whole = load_file(tmp_path / "long/model/model.safetensors")
    shutil.rmtree(tmp_path / "long" / "checkpoint-000012")
    again = Trainer(run_config(tmp_path, **long))
    assert again.step == 10
    again.run()
    for name, value in load_file(tmp_path / "long/model/model.safetensors").items():
        assert torch.equal(value, whole[name]), name


def first_losses(tmp_path, name, **changes):
    options = {"max_steps": 4, "logging_steps": 1, "eval_decodings": 0, "output_dir": str(tmp_path / name)}
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision
    Trainer(run_config(tmp_path, **options | changes)).run()
    AcceleratorState._reset_state(reset_partial_state=True)
    lines = map(json.loads, (tmp_path / name / "metrics.jsonl").open())
    return torch.tensor([line["joint"] for line in lines if "joint" in line])


def test_ways_to_save_memory_do_not_change_the_losses(tmp_path):
    plain = first_losses(tmp_path, "plain")
    assert plain[-1] < plain[0]
    assert (first_losses(tmp_path, "checkpointing", gradient_checkpointing=True) - plain).abs().max() < 1e-5
    difference = (first_losses(tmp_path, "bf16", bf16=True) - plain).abs().max()
    assert 0 < difference < 0.05


@pytest.mark.slow
def test_a_compiled_model_has_the_same_losses(tmp_path, monkeypatch):
    """Traced and differentiated as for any compiler, but run by torch: making C++ of it takes minutes."""
    small = {"n_layer": 1, "max_steps": 3, "gradient_accumulation_steps": 1, "draft_weight": 0.0}
    plain = first_losses(tmp_path, "plain", **small)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    assert (first_losses(tmp_path, "compiled", torch_compile=True, **small) - plain).abs().max() < 1e-4


def test_the_learning_rate_grows_with_the_sequences_of_a_step(tmp_path):
    trainer = Trainer(run_config(tmp_path, scale_learning_rate=True, learning_rate=1e-5, max_steps=5, eval_decodings=0))
    trainer.run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["lr"] == pytest.approx(1e-5 * 8 / 32)  # the last step of the warm-up


def test_a_loss_that_is_not_finite_stops_before_anything_is_overwritten(tmp_path, monkeypatch):
    trainer = Trainer(run_config(tmp_path))
    step = trainer.train_step

    def poison(stop=0):
        if trainer.step == 12:
            with torch.no_grad():
                next(trainer.loss.parameters()).fill_(float("nan"))
        return step(stop)

    monkeypatch.setattr(trainer, "train_step", poison)
    with pytest.raises(FloatingPointError, match="at step 12"):
        trainer.run()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-000010"]
    weights = load(tmp_path / "run" / "checkpoint-000010" / "model")[0].parameters()
    assert all(torch.isfinite(weight).all() for weight in weights)
    assert not (tmp_path / "run" / "model").exists()


def test_masking_rates_are_logged(tmp_path):
    """Those that the micro-batches of a step had, of which each has its part of the range."""
    Trainer(run_config(tmp_path, max_steps=4, logging_steps=1, mask_low=0.4, mask_high=0.8, eval_decodings=0)).run()
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").open())
    for line in [line for line in lines if "joint" in line]:
        assert 0.4 <= line["mask_rate_low"] <= 0.6 <= line["mask_rate_high"] <= 0.8
        assert line["mask_rate"] == pytest.approx((line["mask_rate_low"] + line["mask_rate_high"]) / 2)


def test_decoded_texts_are_scored(tmp_path):
    """By the model itself, and by another one, which is loaded at the start."""
    small = {"max_steps": 2, "eval_decodings": 3}
    assert "gen_perplexity" not in Trainer(run_config(tmp_path, **small)).run()
    scored = Trainer(run_config(tmp_path, **small, output_dir=str(tmp_path / "self")), load_text_scorer).run()
    model, codec = load(tmp_path / "self" / "model")
    assert 100 < scored["gen_perplexity"] < 1000  # it has hardly learnt, and has about 400 tokens
    assert 3 < scored["gen_entropy"] <= 5  # bits, of 32 tokens
    folder = tmp_path / "causal"
    GPT2LMHeadModel(GPT2Config(vocab_size=400, n_positions=64, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    codec.save_pretrained(folder)
    scorer = load_text_scorer(str(folder), torch.device("cpu"))
    (found,) = scorer(model, ["The cats sat."], torch.zeros(1, 1))
    assert tuple(found) == tuple(causal_scorer(str(folder), torch.device("cpu"))(["The cats sat."], None)[0])
    small |= {"perplexity_model": str(tmp_path / "nowhere")}
    with pytest.raises(InputError, match="nowhere"):
        Trainer(run_config(tmp_path, **small), load_text_scorer)
    assert Trainer(run_config(tmp_path, **small, dry_run=True), load_text_scorer).dry_run()


@pytest.mark.parametrize(("run", "expected"), [("", "run"), ("third try", "third try")])
def test_names_in_trackers(tmp_path, run, expected):
    class Trackers:
        log_with = ("wandb",)

        def init_trackers(self, project, config, init_kwargs):
            self.begun = (project, config, init_kwargs["wandb"], init_kwargs["trackio"])

    config = TrainingConfig(output_dir=str(tmp_path / "run"), tracker_project="cats", tracker_run=run)
    trackers = Trackers()
    start_trackers(trackers, config, {"seed": 1, "extensions": [".txt"]})
    name = {"name": expected}
    assert trackers.begun == ("cats", {"seed": 1, "extensions": "['.txt']"}, name, name)


def test_dry_run_says_what_would_be_done(tmp_path):
    about = Trainer(run_config(tmp_path)).dry_run()
    for part in ("parameters", "30 steps of 256 tokens", "GiB", "text 4 of the first batch", "cats of house"):
        assert part in about
    assert not (tmp_path / "run").exists()


def test_trackers_that_are_not_there(tmp_path):
    for name, message in (("tensorbored", "unknown tracker"), ("trackio", "pip install trackio")):
        if importlib.util.find_spec(name) is None:
            with pytest.raises(InputError, match=message):
                Trainer(run_config(tmp_path, report_to=[name]))


@pytest.mark.parametrize(
    ("batch", "advice"),
    [
        (6, "a micro-batch of 6 sequences is too much: try --per_device_train_batch_size 3 "
         "--gradient_accumulation_steps 4"),
        (1, "one sequence is too much: try --gradient_checkpointing, or a smaller --block_size"),
    ],
)  # fmt: skip
def test_want_of_memory_names_the_batch_size_to_try(tmp_path, monkeypatch, batch, advice):
    trainer = Trainer(run_config(tmp_path, per_device_train_batch_size=batch))

    def backward(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has ...")

    monkeypatch.setattr(trainer, "backward", backward)
    with pytest.raises(MemoryError, match=f"^CUDA out of memory. Tried to allocate 20.00 MiB.; {advice}$"):
        trainer.run()


def test_the_batch_size_to_try_fits_by_the_estimate(tmp_path):
    summary = Trainer(run_config(tmp_path, per_device_train_batch_size=64)).summary
    for size in (1, 8, 16):
        room = sum(summary.memory(size).values()) + 1
        assert f"--per_device_train_batch_size {size} " in summary.smaller_batch(room)
    assert "--per_device_train_batch_size 1 " in summary.smaller_batch(0.0)
