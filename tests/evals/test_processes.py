"""Evaluations by several processes: the same results as by one, whoever is killed, and clear words for bad input."""

import contextlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from asarm.evals.code import verdicts
from asarm.evals.result_files import MANIFEST
from asarm.evals.resumable import Evaluation
from asarm.utils.cluster.processes import Shard
from asarm.utils.folder_lock import locked
from asarm.utils.jsonl import read_json_lines
from support.code_problems import fake_verdicts
from support.processes import asarm, commands, free_port, results_of

NAMES = ["decode", "stories", "code", "language", "judge"]


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "check_all", fake_verdicts)
        yield patch


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory, tiny_folder, sample_text):
    """{name: command without --output_dir}."""
    folder = tmp_path_factory.mktemp("data")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.bos_token = tokenizer.eos_token
    torch.manual_seed(0)
    causal = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(causal).save_pretrained(folder / "causal")
    tokenizer.save_pretrained(folder / "causal")
    found = commands(folder, tiny_folder, sample_text)
    return found | {"judge": ["judge", str(folder / "decoded"), "--judge", str(folder / "causal"), "--device", "cpu"]}


@pytest.fixture(scope="module")
def single(tmp_path_factory, evaluations, patch):
    """Folder of the run of one process, by name."""
    folder, found = tmp_path_factory.mktemp("single"), {}
    for name in NAMES:
        found[name] = folder / name
        assert not asarm(patch, *evaluations[name], "--output_dir", found[name])
        if name == "decode":
            shutil.copytree(found[name], evaluations["judge"][1])
    return found


def run(patch, command, folder, ranks, count):
    for rank in ranks:
        assert asarm(patch, *command, "--output_dir", folder, rank=rank, count=count) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ranks", [[0, 1], [2, 0, 3, 1]])
def test_several_processes_give_the_results_of_one(evaluations, single, patch, tmp_path, capsys, name, ranks):
    folder = tmp_path / "run"
    run(patch, evaluations[name], folder, ranks[:-1], len(ranks))
    assert not (folder / "samples.jsonl").exists()
    assert not (folder / "metrics.json").exists()
    assert "the results" not in capsys.readouterr().out
    lines = [len(read_json_lines(folder / f"samples-{rank}.jsonl")) for rank in ranks[:-1]]
    assert min(lines) > 0
    run(patch, evaluations[name], folder, ranks[-1:], len(ranks))
    assert results_of(folder) == results_of(single[name])
    assert str(folder) in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_who_is_killed_is_replaced_by_any_number_of_processes(evaluations, single, patch, tmp_path, name):
    """Four processes of which one never started, then two, then one; each time files are torn."""
    folder = tmp_path / "run"

    def tear(*kinds):
        for path in [file for kind in kinds for file in folder.glob(kind)]:
            whole = path.read_bytes()
            path.write_bytes(whole[: int(0.6 * len(whole))])

    run(patch, evaluations[name], folder, [0, 1, 3], 4)
    tear("samples-*.jsonl", "verdicts-*.jsonl")
    run(patch, evaluations[name], folder, [1], 2)
    tear("samples-1.jsonl")
    run(patch, evaluations[name], folder, [0], 1)
    assert results_of(folder) == results_of(single[name])
    # And what one process has left is gone on with by three.
    tear("samples.jsonl", "verdicts.jsonl")
    run(patch, evaluations[name], folder, [0, 1, 2], 3)
    assert results_of(folder) == results_of(single[name])


@pytest.mark.parametrize("name", NAMES)
def test_merge(evaluations, single, patch, tmp_path, capsys, name):
    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr(Evaluation, "merged_report", lambda *args, **settings: {})
        run(patch, evaluations[name], folder, [0, 1, 2], 3)
    assert (folder / MANIFEST).exists()
    kept = (folder / "samples-2.jsonl").read_bytes()
    (folder / "samples-2.jsonl").unlink()
    assert asarm(patch, "merge", folder) == 2
    assert "units are missing, those of shard 2 of 3: give the command again" in capsys.readouterr().err
    (folder / "samples-2.jsonl").write_bytes(kept)
    with locked(folder, shard=Shard(1, 3)):
        assert asarm(patch, "merge", folder) == 2
    assert f"{folder} is in use by process" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as no_model:
        no_model.setattr(Evaluation, "settings", lambda self: pytest.fail("loaded models"))
        assert asarm(patch, "merge", folder) == 0
    assert f"results: {folder}" in capsys.readouterr().out
    assert results_of(folder) == results_of(single[name])
    assert asarm(patch, "merge", folder) == 2
    error = capsys.readouterr().err
    assert error == f"asarm merge: nothing to merge in {folder}: it is merged already, as it has no {MANIFEST}\n"


def test_who_merges_waits_for_the_tests_of_others(evaluations, single, patch, tmp_path, caplog):
    """A process was killed between its units and their tests."""
    caplog.set_level(logging.INFO)
    folder = tmp_path / "run"
    run(patch, evaluations["code"], folder, [0], 2)
    (folder / "verdicts-0.jsonl").unlink()
    run(patch, evaluations["code"], folder, [1], 2)
    assert "shard 1 of 2: done; the tests of " in caplog.text
    assert not (folder / "metrics.json").exists()
    run(patch, evaluations["code"], folder, [0], 2)
    assert results_of(folder) == results_of(single["code"])


def test_the_first_process_shows_the_progress_of_all(evaluations, single, patch, tmp_path, capsys):
    total, folder = len(read_json_lines(single["language"] / "samples.jsonl")), tmp_path / "run"
    run(patch, evaluations["language"], folder, [1], 2)
    done = len(read_json_lines(folder / "samples-1.jsonl"))
    assert f"/{total} [" not in capsys.readouterr().err
    run(patch, evaluations["language"], folder, [0], 2)
    shown = capsys.readouterr().err
    assert f" {done}/{total} [" in shown
    assert f" {total}/{total} [" in shown


def test_a_finished_run_is_reported_again_by_the_first_process_alone(evaluations, single, patch, tmp_path, capsys):
    folder = shutil.copytree(single["stories"], tmp_path / "run")
    capsys.readouterr()
    run(patch, evaluations["stories"], folder, [1], 2)
    assert capsys.readouterr().out == ""
    run(patch, evaluations["stories"], folder, [0], 2)
    assert str(folder) in capsys.readouterr().out
    assert results_of(folder) == results_of(single["stories"])


def test_more_processes_than_units(evaluations, single, patch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    command, folder = [*evaluations["language"], "--batch_size", "100"], tmp_path / "run"
    run(patch, command, folder, range(8), 8)
    total = len({(line["task"], line["variant"], line["trial"]) for line in read_json_lines(folder / "samples.jsonl")})
    assert f"shard 7 of 8: nothing to do, as there are only {total} units" in caplog.text
    assert (folder / "metrics.json").exists()
    assert not (folder / MANIFEST).exists()


@pytest.mark.parametrize(
    ("holder", "process"), [(Shard(0, 2), Shard(1, 3)), (Shard(1, 2), Shard(1, 2)), (Shard(), Shard(0, 2)),
    (Shard(3, 8), Shard())],
)  # fmt: skip
def test_another_run_is_kept_out(evaluations, patch, tmp_path, capsys, holder, process):
    with locked(tmp_path, shard=holder):
        arguments = [*evaluations["stories"], "--output_dir", tmp_path]
        assert asarm(patch, *arguments, rank=process.index, count=process.count) == 2
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".lock")] == []
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("asarm stories: ")]
    assert line.startswith(f"asarm stories: {tmp_path} is in use by process ")
    assert (f", {holder}: wait for its end" in line) == (holder.count > 1)


def test_processes_of_one_run_may_work_at_a_time(evaluations, patch, tmp_path):
    with locked(tmp_path, shard=Shard(1, 2)):
        assert asarm(patch, *evaluations["stories"], "--output_dir", tmp_path, rank=0, count=2) == 0


def test_shards_of_different_settings(evaluations, patch, tmp_path, capsys):
    run(patch, evaluations["stories"], tmp_path, [0], 2)
    arguments = [*evaluations["stories"], "--k", "7", "--output_dir", tmp_path]
    assert asarm(patch, *arguments, rank=1, count=2) == 2
    assert f"{tmp_path} holds results of other settings (k 5, now 7): choose another" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no results folder of several processes, as it has no shards.json"),
        ("{", "shards.json is damaged"),
        (json.dumps({"fields": [], "units": [], "processes": 2, "command": "old", "options": {}}), "another version"),
    ],
)
def test_merging_what_is_no_run(patch, tmp_path, capsys, content, message):
    if content:
        (tmp_path / MANIFEST).write_text(content)
    assert asarm(patch, "merge", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_merging_where_there_is_no_folder(patch, tmp_path, capsys):
    assert asarm(patch, "merge", tmp_path / "none") == 2
    assert capsys.readouterr().err == f"asarm merge: no folder {tmp_path / 'none'}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "torch.distributed.run --standalone --nproc_per_node=2 -m",
        "accelerate.commands.launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no "
        f"--dynamo_backend=no --main_process_port={free_port()} --module",
    ],
    ids=["torchrun", "accelerate"],
)
def test_launchers(evaluations, single, tmp_path, launcher):
    command = [sys.executable, "-m", *launcher.split(), "asarm", *evaluations["language"], "--output_dir"]
    command.append(str(tmp_path / "run"))
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(str(tmp_path / "run")) == 1
    assert results_of(tmp_path / "run") == results_of(single["language"])


def run_quietly(command, rank, count, log):
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, open(log, "a") as sys.stdout, contextlib.redirect_stderr(sys.stdout):
        sys.exit(asarm(patch, *command, rank=rank, count=count))


@pytest.mark.slow
def test_killed_at_20_moments_the_results_are_the_same(evaluations, tmp_path):
    """SIGKILL at random moments of an evaluation by two processes, from its start to its report."""
    server = multiprocessing.get_context("forkserver")  # imports torch once
    server.set_forkserver_preload(["asarm.cli.stories"])
    chance, kills, files = random.Random(0), 0, tmp_path / "killed"

    def start(name, rank=0, count=1):
        command = [*evaluations["stories"], "--batch_size", "1", "--trials", "8", "--output_dir", tmp_path / name]
        process = server.Process(target=run_quietly, args=(command, rank, count, tmp_path / f"{name}.log"))
        process.start()
        return process

    def lines():
        return sum(path.read_bytes().count(b"\n") for path in files.glob("samples*.jsonl"))

    whole = start("whole")
    whole.join()
    total = len(read_json_lines(tmp_path / "whole" / "samples.jsonl"))
    for aim in range(0, total, total // 14):
        both = [start("killed", rank, 2) for rank in (0, 1)]
        while lines() < aim and any(process.is_alive() for process in both):
            time.sleep(0.001)
        for process in chance.sample(both, 2):
            time.sleep(chance.uniform(0, 0.05))
            kills += process.is_alive()
            process.kill()
        for process in both:
            process.join()
    for process in [start("killed", rank, 2) for rank in (0, 1)]:
        process.join()
        assert process.exitcode == 0, (tmp_path / "killed.log").read_text()
    print(f"{kills} kills, {total} lines")
    assert kills >= 20
    assert results_of(tmp_path / "killed") == results_of(tmp_path / "whole")
