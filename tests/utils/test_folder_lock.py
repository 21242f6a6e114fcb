"""The lock of a folder: one process holds it, nobody's death keeps it, and no command writes without it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from asarm.__main__ import main
from asarm.data.config import CorpusConfig
from asarm.data.packed import local_corpus
from asarm.models.load import load
from asarm.utils import folder_lock
from asarm.utils.cluster.processes import Shard
from asarm.utils.errors import InputError
from asarm.utils.folder_lock import locked, this_process
from support.code_problems import ROWS, write_rows
from support.paths import SOURCE

# Take the lock of a folder, say so, and hold it for some seconds. Arguments: folder, seconds, WATCH_SECONDS.
HOLD = f"""
import sys, time, types
for name in ("asarm", "asarm.utils"):  # without torch
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [{str(SOURCE)!r} + name[5:].replace(".", "/")]
from asarm.utils import folder_lock
folder_lock.WATCH_SECONDS, folder_lock.POLL_SECONDS = float(sys.argv[3]), 0.02
print("ready", flush=True)
sys.stdin.readline()
try:
    with folder_lock.locked(sys.argv[1]):
        print("taken", flush=True)
        time.sleep(float(sys.argv[2]))
except ValueError as error:
    print(error, flush=True)
"""


def start(folder, seconds=60.0, watch=600.0):
    """A process that waits for a line on its standard input, then takes the lock."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds), str(watch)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def go(process) -> str:
    """What it says when it has tried."""
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def leave_lock(folder, lock=".lock", **changes):
    """The lock of another holder, which differs from this process in some fields. Returns its file."""
    holder = this_process()._replace(**changes)
    file = folder / lock / ",".join(f"{key}={value}" for key, value in holder._asdict().items())
    file.parent.mkdir(parents=True)
    file.touch()
    return file


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(folder_lock, "TOUCH_SECONDS", 0.02)
    monkeypatch.setattr(folder_lock, "WATCH_SECONDS", 0.4)
    monkeypatch.setattr(folder_lock, "POLL_SECONDS", 0.02)


@pytest.fixture
def never_watch(monkeypatch):
    monkeypatch.setattr(folder_lock, "_showing_life", lambda *args: pytest.fail("watched"))


@pytest.mark.parametrize("before", ["free", "left here", "left elsewhere"])
def test_of_several_processes_one_takes_the_lock(tmp_path, before):
    folder = tmp_path / "run"
    if before != "free":
        leave_lock(folder, start="0", host=this_process().host if before == "left here" else "elsewhere")
    processes = [start(folder, watch=0.3) for _ in range(4)]
    for process in processes:  # all at once
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in processes]
    (winner,) = [process for process, words in zip(processes, said, strict=True) if words == "taken"]
    line = f"{folder} is in use by process {winner.pid} on host {this_process().host}: wait for its end, or choose"
    assert sum(words.startswith(line) for words in said) == 3
    winner.terminate()
    for process in processes:
        process.communicate()
    assert winner.returncode == 143
    assert not folder.exists() or list(folder.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_holder_does_not_bind(tmp_path, never_watch, number):
    (tmp_path / "result").touch()
    process = start(tmp_path)
    assert go(process) == "taken"
    with pytest.raises(InputError, match=f"in use by process {process.pid} on"), locked(tmp_path):
        pass
    process.send_signal(number)
    if number == signal.SIGKILL:
        time.sleep(0.2)  # it has ended, but nobody has asked for its exit code
    else:
        process.communicate()
    assert (tmp_path / ".lock").exists() == (number == signal.SIGKILL)
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_holder_elsewhere_lives_while_it_touches_its_file(tmp_path, quick):
    file, stop = leave_lock(tmp_path, host="node7", pid="12", job="cluster-77"), threading.Event()
    os.utime(file, (1, 1))  # its clock says 1970

    def touch():
        while not stop.wait(0.02):
            os.utime(file, (1, os.stat(file).st_mtime + 1))

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(InputError, match="in use by process 12 on host node7, Slurm job 77: "), locked(tmp_path):
            pass
    finally:
        stop.set()
        thread.join()
    with locked(tmp_path):
        assert not file.exists()
        mine = next((tmp_path / ".lock").iterdir())
        before = mine.stat().st_mtime_ns
        time.sleep(0.2)
        assert mine.stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("changes", "watched"),
    [
        ({"start": "1"}, False),  # the process id is another process's now
        ({"host": "node7", "job": "c-5", "run": "0"}, False),  # this job, before it was requeued
        ({"host": "node7", "job": "c-5", "run": "1"}, True),  # another task of this job
        ({"host": "node7", "job": "d-5", "run": "0"}, True),  # a job of another cluster
        ({"boot": "other"}, True),
        ({"pid_space": "1"}, True),  # another container
    ],
)
def test_who_is_dead_at_once_and_who_is_watched(tmp_path, monkeypatch, changes, watched):
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    leave_lock(tmp_path, **changes)
    looks = []
    monkeypatch.setattr(folder_lock, "_showing_life", lambda *args: looks.append(args))  # None: it does not
    with locked(tmp_path):
        assert len(looks) == watched


@pytest.mark.parametrize("shard", [Shard(), Shard(0, 2)])
@pytest.mark.parametrize("host", ["here", "node7"])
def test_what_dead_processes_of_other_runs_left_is_removed(tmp_path, quick, shard, host):
    """All that cannot be seen are watched at once."""
    for number in range(5):
        leave_lock(tmp_path, f".lock-{number}-of-5", start="0", host=this_process().host if host == "here" else host)
    began = time.monotonic()
    with locked(tmp_path, shard=shard):
        assert len(list(tmp_path.iterdir())) == 1
    assert time.monotonic() - began < 5 * folder_lock.WATCH_SECONDS


def test_an_own_lock_shows_life_while_others_are_watched(tmp_path, quick):
    leave_lock(tmp_path, ".lock-0-of-5", host="node7")
    stamps = set()

    def look():
        while len(stamps) < 2:
            stamps.update(file.stat().st_mtime_ns for file in (tmp_path / ".lock-1-of-2").glob("*"))

    thread = threading.Thread(target=look)
    thread.start()
    with locked(tmp_path, shard=Shard(1, 2)):
        thread.join(10)
    assert len(stamps) == 2


def test_unknown_files_in_the_lock_do_not_bind_for_ever(tmp_path, quick):
    (tmp_path / ".lock").mkdir()
    (tmp_path / ".lock" / ".nfs000,x=1").touch()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_process_does_not_take_a_lock_twice(tmp_path):
    with locked(tmp_path):
        with pytest.raises(InputError, match=f"in use by process {os.getpid()} "), locked(tmp_path):
            pass
        with locked(tmp_path / "file", beside=True):
            assert {path.name for path in tmp_path.iterdir()} == {".lock", ".file.lock"}
    with locked(tmp_path):
        pass


def test_who_waits_gets_the_lock_next(tmp_path, quick):
    process = start(tmp_path, seconds=0.3)
    assert go(process) == "taken"
    with locked(tmp_path, wait=True):
        pass
    process.communicate()


def test_a_process_that_loses_its_lock_ends(tmp_path, quick):
    def work():
        with locked(tmp_path):
            next((tmp_path / ".lock").iterdir()).unlink()
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        work()
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot lock .*file: "), locked(tmp_path / "file"):
        pass
    (tmp_path / ".lock").touch()
    with pytest.raises(InputError, match=r"cannot lock .*: Not a directory"), locked(tmp_path):
        pass


@pytest.mark.parametrize("command", ["decode", "code judge", "train", "draft_head", "sources"])
def test_no_command_writes_where_another_does(tmp_path, monkeypatch, capsys, tiny_folder, sample_text, command):
    text, output = tmp_path / "text.txt", tmp_path / "out"
    text.write_text(sample_text * 20, encoding="utf-8")
    problems, completions = write_rows(tmp_path / "problems.jsonl", ROWS), tmp_path / "completions.jsonl"
    completions.write_text(
        "".join(json.dumps({"task_id": row["task_id"], "completion": "x"}) + "\n" for row in ROWS), encoding="utf-8"
    )
    arguments, target = {
        "decode": (["tiny", "--model", tiny_folder, "--text", text, "--length", "32", "--output_dir", output], output),
        "code judge": (
            [completions, "--problems", problems, "--output_dir", output, "--allow_code_execution"],
            output / "completions.jsonl",
        ),
        "train": (["--train_files", text, "--output_dir", output], output),
        "draft_head": (["--model", tiny_folder, "--train_files", text, "--output_dir", output], output),
        "sources": ([output, "--exclude", "none", "--folders", tmp_path], output),
    }[command]
    monkeypatch.setattr(sys, "argv", ["asarm", *command.split(), *map(str, arguments)])
    beside = command not in ("decode", "train")
    with locked(target, beside=beside):
        before = sorted(path.name for path in tmp_path.rglob("*"))
        assert main() == 2
        assert sorted(path.name for path in tmp_path.rglob("*")) == before
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith(f"asarm {command.split()[0]}: {target} is in use by process {os.getpid()} on host ")


def test_a_lock_that_is_let_go_of_while_it_is_read(tmp_path, monkeypatch):
    """Between the attempt to take it and the look at whose it is."""
    (tmp_path / ".lock").mkdir()
    (tmp_path / ".lock" / "host=other").touch()
    listed, listdir = [], os.listdir

    def too_late(folder):
        listed.append(folder)
        if len(listed) == 1:
            shutil.rmtree(folder)
        return listdir(folder)

    monkeypatch.setattr(folder_lock.os, "listdir", too_late)
    with locked(tmp_path):
        assert [path.name for path in (tmp_path / ".lock").iterdir()] != ["host=other"]
    assert listed[0] == tmp_path / ".lock"


def test_a_corpus_is_tokenised_once(tmp_path, tiny_folder, sample_text, quick):
    (tmp_path / "text.txt").write_text(sample_text, encoding="utf-8")
    config = CorpusConfig(train_files=[str(tmp_path / "text.txt")], cache_dir=str(tmp_path / "cache"))
    codec, found = load(tiny_folder)[1], []
    threads = [threading.Thread(target=lambda: found.append(local_corpus(config, codec))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(train.tolist()) for train, _ in found}) == 1
    assert len(found) == 3
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.slow
def test_of_two_evaluations_one_does_the_work(tmp_path, tiny_folder, sample_text):
    (tmp_path / "text.txt").write_text(sample_text * 3, encoding="utf-8")
    command = [sys.executable, "-m", "asarm", "decode", "tiny", "--model", tiny_folder, "--length", "32"]
    command += ["--text", tmp_path / "text.txt", "--num_texts", "4", "--output_dir", tmp_path / "out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 0], [0, 2]), errors  # the second may begin when the first has ended
    if 2 in codes:
        assert "out is in use by process" in errors[codes.index(2)].splitlines()[-1]
    lines = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").open()]
    assert sorted({(line["variant"], line["index"]) for line in lines}) == sorted(
        (line["variant"], line["index"]) for line in lines
    )
    assert {line["variant"] for line in lines} >= {"sequential", "fused"}
