"""Fixtures of the tests of the sandbox: none may leave a process running."""

import os
import sys
from pathlib import Path

import pytest

from asarm.evals.code.sandbox.supervisor import descendants, processes


@pytest.fixture(scope="module", autouse=True)
def _adopt():
    """Processes that lose their parent become children of this one, so that none gets away unseen."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


@pytest.fixture(autouse=True)
def _no_process_left():
    before = descendants(os.getpid()) if processes() else set()
    yield
    if processes():
        left = descendants(os.getpid()) - before
        assert not left, {pid: Path(f"/proc/{pid}/cmdline").read_bytes()[:200] for pid in left}
