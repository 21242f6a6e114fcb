"""What the tests of the sandbox share."""

import sys

import pytest

from asarm.evals.code.sandbox.isolation import isolation
from asarm.evals.code.sandbox.runner import Limits

QUICK = Limits(seconds=1.0)
BENIGN = "def add(a, b):\n    return a + b\nassert add(2, 3) == 5\n"

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def needs(*names: str) -> None:
    """Skip where the kernel does not enforce one of these: what the program tries would do harm."""
    missing = [name for name in names if not isolation()[name]]
    if missing:
        pytest.skip(f"this kernel does not enforce: {', '.join(missing)}")
