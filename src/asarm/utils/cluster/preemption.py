"""Signals that end a run on clusters.

Training notes the one that announces pre-emption, saves at the end of its step, and stops. An evaluation, whose units
are on disk as they are done, exits at once and goes back into the queue; what else holds a lock exits, too.
"""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """`with StopRequest() as stop:` keeps the signals from ending the process.

    `stop.signal` is the number of the last signal that arrived, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.signal = number


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that what is open is closed, unless the process handles it otherwise."""
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def requeued_when_stopped() -> Iterator[None]:
    """Let the signals raise SystemExit, and then `requeue`.

    torchrun sends SIGTERM also when another process has failed, and so its processes are not put back.
    """
    if not _in_main_thread():
        yield
        return
    before = {number: signal.signal(number, _leave) for number in SIGNALS}
    try:
        yield
    except SystemExit as end:
        if end.code in {128 + number for number in SIGNALS} and "TORCHELASTIC_RUN_ID" not in os.environ:
            requeue()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def requeue() -> None:
    """Put this Slurm job back into the queue, unless Slurm is ending it already. Does nothing outside of Slurm.

    A job whose time is nearly up, or that has grace time before it is pre-empted, is still running, and Slurm does not
    requeue it when it ends by itself. A job that is being cancelled, or requeued by Slurm, is no longer running.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return
    try:
        if _output("squeue", "--noheader", "--format=%T", "--jobs", job) == "RUNNING":
            _output("scontrol", "requeue", job)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        logger.warning("job %s is not requeued (%s): submit it again", job, reason.strip())


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
