"""Resuming: after kills, stops, torn checkpoints or full disks a run ends with the weights of an uninterrupted one."""

import contextlib
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import time

import pytest
import torch

from asarm.data.config import CorpusConfig
from asarm.training import checkpoint
from asarm.training.draft_head import DraftHeadConfig, train_draft_head
from asarm.training.run_folder import ADDED, RunFolder
from asarm.training.trainer import Trainer
from asarm.utils.errors import InputError
from support.training import assert_same_weights, die_at, run_config, steps, weights


def test_a_resumed_run_ends_with_the_same_weights_and_metrics(tmp_path, monkeypatch):
    Trainer(run_config(tmp_path, output_dir=str(tmp_path / "whole"))).run()
    die_at(Trainer(run_config(tmp_path)), monkeypatch, 20)
    assert not (tmp_path / "run" / "model").exists()
    resumed = Trainer(run_config(tmp_path))
    assert resumed.step == 20
    resumed.run()
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    timeless = [
        [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in (run / "metrics.jsonl").open()]
        for run in (tmp_path / "whole", tmp_path / "run")
    ]
    assert timeless[0] == timeless[1]


def test_a_model_with_a_draft_head_is_resumed(tmp_path, monkeypatch):
    """The head stays as it is: it is trained by itself, and the optimiser has no state for it."""
    Trainer(run_config(tmp_path, output_dir=str(tmp_path / "first"), max_steps=2)).run()
    corpus = CorpusConfig(train_files=[str(tmp_path / "prose.txt")], cache_dir=str(tmp_path / "cache"), held_out=0.1)
    first, headed = str(tmp_path / "first" / "model"), str(tmp_path / "headed" / "model")
    train_draft_head(DraftHeadConfig(corpus, first, output_dir=headed, batches=2, max_steps=2, block_size=32))
    options = {"init_from": headed, "max_steps": 20, "optimizer": "muon"}
    Trainer(run_config(tmp_path, output_dir=str(tmp_path / "whole"), **options)).run()
    die_at(Trainer(run_config(tmp_path, **options)), monkeypatch, 10)
    Trainer(run_config(tmp_path, **options)).run()
    assert_same_weights(tmp_path / "whole", tmp_path / "run")
    before, after = (weights(tmp_path / name) for name in ("headed", "run"))
    heads = [name for name in before if name.startswith("draft_head.")]
    assert heads
    assert all(torch.equal(before[name], after[name]) for name in heads)


def test_a_finished_run_is_not_trained_on(tmp_path):
    first = Trainer(run_config(tmp_path)).run()
    again = Trainer(run_config(tmp_path)).run()
    assert again["tokens_trained_now"] == 0
    assert again["nll_0.5"] == first["nll_0.5"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("nll_0.5") == 2


def test_resuming_without_metrics(tmp_path):
    """A checkpoint may be older than the first line of metrics, which may be lost altogether."""
    Trainer(run_config(tmp_path, max_steps=2)).run()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    Trainer(run_config(tmp_path, max_steps=2)).run()
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("nll_0.5") == 1


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "no list"])
def test_torn_checkpoints_are_skipped_with_a_warning(tmp_path, monkeypatch, caplog, damage):
    Trainer(run_config(tmp_path, output_dir=str(tmp_path / "whole"))).run()
    die_at(Trainer(run_config(tmp_path)), monkeypatch, 20)
    torn = tmp_path / "run" / "checkpoint-000020"
    if damage == "cut":
        os.truncate(torn / "optimizer.pt", 1000)
    elif damage == "changed":
        with (torn / "model" / "model.safetensors").open("r+b") as file:
            file.seek(-8, 2)
            file.write(b"12345678")
    elif damage == "missing":
        (torn / "model" / "tokenizer.json").unlink()
    else:
        (torn / "checkpoint.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        resumed = Trainer(run_config(tmp_path))
    assert resumed.step == 10
    assert "checkpoint-000020 is torn" in caplog.text
    resumed.run()
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_a_checkpoint_may_be_named(tmp_path):
    Trainer(run_config(tmp_path)).run()
    assert Trainer(run_config(tmp_path, resume=str(tmp_path / "run" / "checkpoint-000020"))).step == 20
    with pytest.raises(InputError, match="torn, or no checkpoint"):
        Trainer(run_config(tmp_path, resume=str(tmp_path)))


def test_never_does_not_touch_an_earlier_run(tmp_path):
    Trainer(run_config(tmp_path, max_steps=2)).run()
    with pytest.raises(InputError, match="earlier run"):
        Trainer(run_config(tmp_path, max_steps=2, resume="never"))


def test_a_run_with_other_settings_is_one_clear_error(tmp_path):
    Trainer(run_config(tmp_path, max_steps=10)).run()
    before = (tmp_path / "run" / "config.json").read_text()
    for change, shown in (
        ({"seed": 1}, r"\(seed 0, now 1\)"),
        ({"mask_low": 0.5, "max_steps": 20}, "max_steps 10, now 20, mask_low 0.3, now 0.5"),
        ({"gradient_accumulation_steps": 4}, "micro_batches_per_step 2, now 4"),
    ):
        with pytest.raises(InputError, match=f"other settings {shown}" if shown[0] == "\\" else shown) as caught:
            Trainer(run_config(tmp_path, **{"max_steps": 10} | change))
        assert "\n" not in str(caught.value)
    with (tmp_path / "prose.txt").open("a") as file:
        file.write("Another ending, and a longer one. " * 500)
    longer = run_config(tmp_path, max_steps=10)
    (tmp_path / "prose.txt").write_text("Another text altogether. " * 4000)
    with pytest.raises(InputError, match="training_blocks"):
        Trainer(longer)
    assert (tmp_path / "run" / "config.json").read_text() == before
    assert steps(tmp_path / "run") == [10]


@pytest.mark.parametrize(
    ("processes", "accumulation", "hint"),
    [
        (1, 2, "to go on with 1 process, give gradient_accumulation_steps 4$"),
        (2, 4, "to go on with 2 processes, give gradient_accumulation_steps 2$"),
        (3, 1, "to go on, take a number of processes that divides 4, not 3$"),
        (2, 2, None),
        (4, 1, None),
    ],
)
def test_another_number_of_processes_needs_as_many_micro_batches(tmp_path, processes, accumulation, hint):
    folder = RunFolder(tmp_path)
    folder.claim(run_config(tmp_path, gradient_accumulation_steps=4).settings(1, 100), 0)
    settings = run_config(tmp_path, gradient_accumulation_steps=accumulation).settings(processes, 100)
    with pytest.raises(InputError, match=hint) if hint else contextlib.nullcontext():
        folder.check(settings)


def test_a_run_of_an_earlier_version_can_be_continued(tmp_path):
    """It lacks settings that were added since, and had what is now their default."""
    Trainer(run_config(tmp_path, max_steps=10)).run()
    path = tmp_path / "run" / "config.json"
    before = json.loads(path.read_text())
    later = {"perplexity_model", "tracker_project", "tracker_run", *ADDED}
    path.write_text(json.dumps({name: value for name, value in before.items() if name not in later}))
    assert {name: before[name] for name in ADDED} == ADDED
    assert Trainer(run_config(tmp_path, max_steps=10)).step == 10
    with pytest.raises(InputError, match="objective 'joint', now 'parallel'"):
        Trainer(run_config(tmp_path, max_steps=10, objective="parallel", draft_weight=0.0))
    with pytest.raises(InputError, match="document_end 'eos', now 'tokenizer'"):
        Trainer(run_config(tmp_path, max_steps=10, document_end="tokenizer"))


def test_the_last_and_the_best_checkpoints_are_kept(tmp_path, monkeypatch):
    trainer = Trainer(run_config(tmp_path, max_steps=50, eval_steps=10, save_total_limit=2, eval_decodings=0))
    scores = {10: 5.0, 20: 3.0, 30: 4.0, 40: 4.5, 50: 6.0}
    monkeypatch.setattr(
        trainer, "validate", lambda: {f"nll_{rate}": scores[trainer.step] for rate in (0.15, 0.5, 0.95)}
    )
    trainer.run()
    assert steps(tmp_path / "run") == [20, 40, 50]


@pytest.mark.parametrize(
    ("number", "state"), [(signal.SIGTERM, "COMPLETING"), (signal.SIGTERM, "RUNNING"), (signal.SIGUSR1, "RUNNING")]
)
def test_a_signal_saves_at_the_end_of_the_step(tmp_path, monkeypatch, number, state):
    Trainer(run_config(tmp_path, output_dir=str(tmp_path / "whole"))).run()
    trainer, calls = Trainer(run_config(tmp_path)), tmp_path / "calls"
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in (("scontrol", f'echo "$@" >> {calls}'), ("squeue", "echo RUNNING")):
        (programs / name).write_text(f"#!/bin/sh\n{does}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    step = trainer.train_step

    def with_signal(stop=0):
        if trainer.step == 12:
            os.kill(os.getpid(), number)
        return step(stop)

    monkeypatch.setattr(trainer, "train_step", with_signal)
    assert trainer.run() == {}
    assert steps(tmp_path / "run")[-1] in (13, 14)
    assert signal.getsignal(number) == signal.SIG_DFL
    if number == signal.SIGUSR1:  # time is nearly up: back into the queue
        assert calls.read_text() == "requeue 7\n"
    Trainer(run_config(tmp_path)).run()
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_checkpoints_are_ordered_by_their_steps(tmp_path):
    for step in (999_900, 1_000_000, 10_000_000, 200):
        checkpoint.save(tmp_path, step, None, lambda path: None)
    assert checkpoint.newest(tmp_path).name == "checkpoint-10000000"
    checkpoint.prune(tmp_path, 2)
    assert [path.name for path in checkpoint.folders(tmp_path)] == ["checkpoint-1000000", "checkpoint-10000000"]


def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path):
    """Files may not grow beyond a size at which checkpoint 10 fits, as on a disk that fills up."""
    trainer = Trainer(run_config(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    step = trainer.train_step

    def fill_up(stop=0):
        if trainer.step == 15:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        return step(stop)

    trainer.train_step = fill_up
    try:
        with pytest.raises(InputError, match=r"cannot write .*checkpoint-000020 \(.*\): make room") as caught:
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert steps(tmp_path / "run") == [10]
    assert not [path for path in (tmp_path / "run").iterdir() if "partial" in path.name]
    assert Trainer(run_config(tmp_path)).step == 10


def train_quietly(config):
    torch.set_num_threads(1)
    with open(config.training.output_dir + ".log", "a") as sys.stdout, contextlib.redirect_stderr(sys.stdout):
        Trainer(config).run()


@pytest.mark.slow
def test_killed_at_20_moments_the_run_ends_with_the_same_weights(tmp_path):
    """SIGKILL at random moments of a 200-step run, half of them in the middle of a save."""
    options = {
        "max_steps": 200, "save_steps": 4, "eval_steps": 100, "logging_steps": 20, "eval_decodings": 0,
        "eval_blocks": 2, "block_size": 16, "n_embd": 16, "n_layer": 1, "per_device_train_batch_size": 2,
    }  # fmt: skip
    server = multiprocessing.get_context("forkserver")  # imports torch once
    server.set_forkserver_preload(["asarm.training.trainer"])
    whole, killed = (run_config(tmp_path, output_dir=str(tmp_path / name), **options) for name in ("whole", "killed"))
    run, chance = tmp_path / "killed", random.Random(0)

    def start(config):
        process = server.Process(target=train_quietly, args=(config,))
        process.start()
        return process

    began = time.monotonic()
    process = start(whole)
    process.join()
    assert process.exitcode == 0
    reached, in_saves = [0], 0
    while len(reached) <= 20:
        process, aim = start(killed), len(reached) * 200 / 21 + chance.uniform(-4, 4)
        while max(steps(run), default=0) < aim - 4 and process.is_alive():
            time.sleep(0.001)
        if len(reached) % 2:
            while not list(run.glob(".checkpoint-*.partial")) and process.is_alive():
                pass
            time.sleep(chance.uniform(0, 0.01))
        else:
            time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it was killed"
        in_saves += bool(list(run.glob(".checkpoint-*.partial")))
        reached.append(max(steps(run), default=0))
    process = start(killed)
    process.join()
    assert process.exitcode == 0
    print(f"{in_saves} of 20 kills in a save; newest checkpoints {reached}; {time.monotonic() - began:.0f} s")
    assert reached == sorted(reached)
    assert in_saves >= 3
    assert_same_weights(tmp_path / "whole", run)
