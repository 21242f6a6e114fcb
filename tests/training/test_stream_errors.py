"""A run that streams its data ends within seconds with all its processes, however it ends."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from asarm.training.trainer import Trainer
from asarm.utils.errors import InputError
from support.training import PROSE, run_config

SMALL = {
    "max_steps": 100_000, "block_size": 32, "vocab_size": 400, "n_embd": 16, "n_layer": 1, "n_head": 2,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "eval_blocks": 2, "eval_decodings": 0,
    "logging_steps": 1, "held_out": 0.1, "streams": 4, "num_workers": 2, "shuffle_buffer": 20,
}  # fmt: skip
# The command line with a fault in the workers, which are forks of its process: after 100 documents.
PROGRAM = """
import os, sys, time
from asarm.__main__ import main
from asarm.data.streaming import PackedStreams
tokens, documents = PackedStreams.tokens, []
def faulty(self, text):
    documents.append(text)
    if len(documents) > 100:
        FAULT
    return tokens(self, text)
PackedStreams.tokens = faulty
sys.exit(main())
"""
SECONDS = 120  # from the start, on a busy machine; the end itself takes few


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(4):
        rows = [{"text": PROSE[n * 100 : n * 100 + 150]} for n in range(file, 400, 4)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def start(tmp_path, corpus):
    """Starts a run with a fault; what is left of it at the end is killed."""
    started = []

    def run(fault, *launcher):
        (tmp_path / "program.py").write_text(PROGRAM.replace("FAULT", fault))
        options = SMALL | {"dataset": corpus, "output_dir": tmp_path / "run"}
        words = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        keep = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "ACCELERATE_"))}
        started.append(
            subprocess.Popen(
                [sys.executable, *launcher, tmp_path / "program.py", "train", *words],
                env=keep | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
                stderr=subprocess.PIPE, text=True, start_new_session=True,
            )
        )  # fmt: skip
        return started[-1]

    yield run
    for process in started:
        for left in members(process):
            left.kill()
        process.wait()


def members(process):
    """The processes of a run that still live, and their workers: those of its program. A launcher's have other parents
    and sessions when it is gone."""
    found = []
    for other in psutil.process_iter():
        try:
            if process.args[-1] in other.cmdline() and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
        except psutil.Error:
            continue
    return found


def wait_for_steps(process, run):
    deadline = time.monotonic() + SECONDS
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_bytes()) < 100:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.1)


def assert_ended(process):
    deadline = time.monotonic() + 20
    while left := members(process):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_no_worker_outlives_an_error(tmp_path, corpus):
    """A file that is damaged in its middle, so that it opens; the error, and with it torch's iterator, is kept."""
    good = (corpus / "0.jsonl").read_text()
    (corpus / "3.jsonl").write_text(good + '{"text": "x\n' + good)
    options = SMALL | {"train_files": [], "dataset": str(corpus), "max_steps": 100}
    with pytest.raises(InputError, match=r"^the dataset .*corpus cannot be read any further: JSON") as caught:
        Trainer(run_config(tmp_path, **options)).run()
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_error_of_a_worker(start):
    process = start("raise KeyError('a bug')")
    errors = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 1
    assert "in faulty" in errors  # the worker's traceback
    assert_ended(process)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_is_killed(start, tmp_path):
    process = start("pass")
    wait_for_steps(process, tmp_path / "run")
    psutil.Process(process.pid).children()[0].kill()
    errors = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 2
    assert errors.splitlines()[-1].startswith("asarm train: a process that reads the data was killed (DataLoader work")
    assert_ended(process)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_interrupt_while_workers_wait_for_their_source(start, tmp_path):
    """Ctrl-C goes to all processes of a terminal."""
    process = start("time.sleep(1000)")
    wait_for_steps(process, tmp_path / "run")
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "asarm train: interrupted; finished parts are kept"
    assert "Traceback" not in errors
    assert_ended(process)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_end_with_a_process_that_is_killed(start, tmp_path):
    process = start("time.sleep(1000)")
    wait_for_steps(process, tmp_path / "run")
    process.kill()
    process.wait()
    assert_ended(process)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_error_in_one_of_two_processes_ends_both(start):
    fault = "if os.environ['RANK'] == '1': raise ValueError('no more')"
    process = start(fault, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")
    errors = process.communicate(timeout=2 * SECONDS)[1]
    assert process.returncode == 1  # the launcher's
    assert "ValueError: no more" in errors
    assert_ended(process)
