"""Signals with which clusters announce the end: a run takes note, saves at the end of its step, and stops."""

import logging
import os
import signal
import subprocess

logger = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """`with StopRequest() as stop:` keeps the signals from ending the process; `stop.signal` is the last that came."""

    def __init__(self):
        self.signal = 0

    def __enter__(self) -> "StopRequest":
        self.before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _) -> None:
        self.signal = number


def requeue() -> None:
    """Put this Slurm job back into the queue, unless Slurm is ending it already. Does nothing outside of Slurm.

    A job whose time is nearly up, or that is given grace time before it is pre-empted, is still running: Slurm puts
    neither back when they end by themselves. One that is being cancelled, or put back by Slurm, no longer is.
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
