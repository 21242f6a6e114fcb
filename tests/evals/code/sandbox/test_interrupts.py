"""Interrupts: whatever ends a run of programs, all processes end and no files are left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asarm.evals.code.sandbox import runner
from asarm.evals.code.sandbox.runner import Limits, Verdict, check_all
from asarm.evals.code.sandbox.supervisor import descendants
from support.paths import SOURCE
from support.sandbox import BENIGN, linux

RUN = f"""
import sys, types
for name, folder in (("asarm", {str(SOURCE)!r}), ("asarm.evals", {str(SOURCE / "evals")!r})):  # without torch
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from asarm.evals.code.sandbox.runner import Limits, check_all
print("ready", flush=True)
for index, verdict, _ in check_all([""] + ["while True: pass"] * 6, Limits(seconds=60)):
    print(index, verdict.result, flush=True)
"""


@linux
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_leaves_nothing(kind, tmp_path):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", RUN], env=os.environ | {"TMPDIR": str(tmp_path)}, **pipes) as run:
        assert [run.stdout.readline() for _ in range(2)] == ["ready\n", "0 passed\n"]
        time.sleep(0.3)
        started = descendants(run.pid)
        assert len(started) >= 2
        run.send_signal(kind)
        run.communicate(timeout=runner.END_SECONDS + 10)  # a sandbox may take so long to end
    assert run.returncode != 0
    if kind == signal.SIGINT:
        assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 10
    while left := [pid for pid in started if Path(f"/proc/{pid}").exists() and not reaped(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def reaped(pid):
    """Whether a child of this process, or one that it has adopted, has ended; it is gone then."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def test_a_dropped_iterator_ends_what_runs():
    start = time.monotonic()
    verdicts = check_all([BENIGN, *["while True: pass"] * 5], Limits(seconds=60))
    assert next(verdicts)[:2] == (0, Verdict(True, "passed"))
    verdicts.close()
    assert time.monotonic() - start < 20
