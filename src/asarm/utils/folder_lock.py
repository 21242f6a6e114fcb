"""`locked`: one process at a time writes to a folder, on one host or on several that share it.

The lock is a folder, FOLDER/.lock, with one empty file in it, whose name says who holds it. It needs two renames, each
of which succeeds for one process only, on any file system, and locks of files nowhere: on NFS and Lustre `flock` (and
so the package filelock) may hold within one host only, fail or hang.

- A free lock is taken by renaming a new folder with a file in it to .lock, which fails if that is there and not empty.
- A dead holder's is taken by renaming its file, which fails if another process has renamed it before.

A holder that can be seen from here is dead when its process is, and an earlier run of this Slurm job is dead. Any other
(on another host, or in another container) is watched: it touches its file every few seconds, and is dead if the time
stamp stands still. Clocks are not compared.
"""

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from asarm.utils.errors import InputError, first_line
from asarm.utils.preemption import exit_on_sigterm

logger = logging.getLogger(__name__)
TOUCH_SECONDS = 10.0  # between signs of life
WATCH_SECONDS = 60.0  # without one, after which a holder that cannot be seen is dead
POLL_SECONDS = 1.0


class Holder(NamedTuple):
    """A process. start: in clock ticks since boot. job: Slurm's, with its cluster; run: how often it was requeued."""

    host: str = ""
    boot: str = ""
    pid_space: str = ""
    pid: str = ""
    start: str = ""
    job: str = ""
    run: str = "0"

    def __str__(self) -> str:
        job = f", Slurm job {self.job.rpartition('-')[2]}" if self.job else ""
        return f"process {self.pid or '?'} on host {self.host or '?'}{job}"

    def lives(self, me: "Holder") -> bool | None:
        """Whether it does; None if that cannot be seen from here."""
        if me.job and self.job == me.job and int(self.run) < int(me.run):
            return False  # Slurm ends all of a job before it runs it again
        if not me.start or self[:3] != me[:3]:
            return None
        try:
            os.kill(int(self.pid), 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # another user's, of which /proc may show nothing
            return None
        return start_of(self.pid) == self.start


def this_process() -> Holder:
    """This process as a holder. All fields together fit into the name of a file."""
    boot, pid_space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    job = os.environ.get("SLURM_JOB_ID", "")
    values = (
        socket.gethostname(),
        boot.read_text(encoding="ascii")[:8] if boot.exists() else "",
        str(pid_space.stat().st_ino) if pid_space.exists() else "",
        str(os.getpid()),
        start_of(os.getpid()),
        job and f"{os.environ.get('SLURM_CLUSTER_NAME', '')}-{job}",
        os.environ.get("SLURM_RESTART_COUNT") or "0",
    )
    return Holder(*(re.sub(r"[^\w.-]", "-", value)[:64] for value in values))


def start_of(pid: int | str) -> str:
    """When a process started; "" if it has ended, or there is no /proc."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # the third and the 22nd of all fields
    return ""


@contextlib.contextmanager
def locked(path: str | Path, beside: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, which is made if there is none, and let go of it however the block ends.

    Meanwhile SIGTERM raises SystemExit, unless it is handled otherwise. A process that loses the lock, since someone
    deleted it or another process saw no signs of life, gets a KeyboardInterrupt.

    beside: the lock of PATH, a file or folder, is .PATH.lock beside it. wait: until it is free, instead of raising.

    Raises InputError when another process holds the lock, or when it cannot be written.
    """
    path, me = Path(path).absolute(), this_process()
    lock = path.with_name(f".{path.name}.lock") if beside else path / ".lock"
    mine, is_new, released = lock / ",".join(f"{k}={v}" for k, v in me._asdict().items()), False, threading.Event()
    waited_for = None
    try:
        is_new = not lock.parent.exists()
        while holder := _take(lock, mine, me):
            if not wait:
                raise InputError(
                    f"{path} is in use by {holder}: wait for its end, or choose another output_dir (if there is no "
                    f"such process, delete {lock})"
                )
            if holder != waited_for:
                logger.info("waiting for %s, which works on %s", holder, path)
            waited_for = holder
            time.sleep(POLL_SECONDS)
    except OSError as error:
        raise InputError(f"cannot lock {path}: {error.strerror or first_line(error)}") from error
    threading.Thread(target=_touch, args=(mine, released), daemon=True).start()
    try:
        with exit_on_sigterm():
            yield
    finally:
        released.set()
        with contextlib.suppress(OSError):  # it is not ours any more, or already another's
            mine.unlink()
            lock.rmdir()
            if is_new:
                lock.parent.rmdir()  # if nothing was written


def _take(lock: Path, mine: Path, me: Holder) -> Holder | None:
    """Take the lock with the file `mine`. Returns who holds it, if that is another process that lives."""
    while not _take_free(lock, mine.name):
        for name in os.listdir(lock) if lock.exists() else ():
            parts = (part.partition("=")[::2] for part in name.split(","))
            holder = Holder(**{key: value for key, value in parts if key in Holder._fields})
            lives = holder.lives(me)
            if lives or (lives is None and _shows_life(lock / name, holder)):
                return holder
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                (lock / name).rename(mine)
                logger.info("%s was left locked by %s, which has ended", lock.parent, holder)
                return None
    return None


def _take_free(lock: Path, name: str) -> bool:
    """Take the lock, with a file of that name, if nobody holds it."""
    new = lock.with_name(f"{lock.name}.{secrets.token_hex(4)}")
    new.mkdir(parents=True)
    (new / name).touch()
    try:
        new.rename(lock)
    except OSError as error:
        shutil.rmtree(new)
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _shows_life(file: Path, holder: Holder) -> bool:
    """Watch for a while whether the time stamp of a holder's file changes."""
    logger.info("%s is locked by %s; watching for up to %.0f s if it lives", file.parents[1], holder, WATCH_SECONDS)
    stamps: set[int] = set()
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end and len(stamps) < 2:
        time.sleep(POLL_SECONDS)
        try:
            with file.open() as opened:  # NFS asks the server when a file is opened
                stamps.add(os.fstat(opened.fileno()).st_mtime_ns)
        except FileNotFoundError:  # released, or taken
            return False
    return len(stamps) > 1


def _touch(mine: Path, released: threading.Event) -> None:
    """Give signs of life until the lock is released or lost."""
    while not released.wait(TOUCH_SECONDS):
        try:
            os.utime(mine)
        except FileNotFoundError:
            if not released.is_set():
                logger.error("%s is no longer locked by this process, which ends therefore", mine.parents[1])
                os.kill(os.getpid(), signal.SIGINT)
            return
        except OSError as error:  # of a server that may come back
            logger.warning("cannot touch the lock of %s: %s", mine.parents[1], error)
