"""`locked`: one process at a time writes to a folder, or those of one run, on one host or on several that share it.

The lock is a folder, FOLDER/.lock, with one empty file in it, whose name says who holds it. It needs two renames, each
of which succeeds for one process only, on any file system, and locks of files nowhere: on NFS and Lustre `flock` (and
so the package filelock) may hold within one host only, fail or hang.

- A free lock is taken by renaming a new folder with a file in it to .lock, which fails if that is there and not empty.
- A dead holder's is taken by renaming its file, which fails if another process has renamed it before.
- Each of N processes of a run has a lock of its own, .lock-3-of-N. Who has taken .lock, or one of N, lets go of it if a
  lock of another kind is in the folder and its holder lives. Of two that begin at once, both may let go.

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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from asarm.utils.cluster.preemption import exit_on_sigterm
from asarm.utils.cluster.processes import WHOLE, Shard
from asarm.utils.errors import InputError, first_line

logger = logging.getLogger(__name__)
TOUCH_SECONDS = 10.0  # between signs of life
WATCH_SECONDS = 60.0  # without one, after which a holder that cannot be seen is dead
POLL_SECONDS = 1.0
LOCK = re.compile(r"\.lock(-(?P<index>\d+)-of-(?P<count>\d+))?")  # names of locks in their folder


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
def locked(path: str | Path, beside: bool = False, wait: bool = False, shard: Shard = WHOLE) -> Iterator[None]:
    """Hold the lock of a folder, which is made if there is none, and let go of it however the block ends.

    Meanwhile SIGTERM raises SystemExit, unless it is handled otherwise. A process that loses the lock, since someone
    deleted it or another process saw no signs of life, gets a KeyboardInterrupt.

    beside: the lock of PATH, a file or folder, is .PATH.lock beside it. wait: until it is free, instead of raising.
    shard: which of the processes this is that write to the folder together; only those of as many get in, once each.

    Raises InputError when another process holds the lock, or when it cannot be written.
    """
    path, me = Path(path).absolute(), this_process()
    part = "" if shard.count == 1 else f"-{shard.index}-of-{shard.count}"
    lock = path.with_name(f".{path.name}.lock") if beside else path / f".lock{part}"
    mine, is_new = lock / ",".join(f"{k}={v}" for k, v in me._asdict().items()), False
    waited_for = None
    try:
        is_new = not lock.parent.exists()
        while isinstance(taken := _take(lock, mine, me), Path):
            if not wait:
                raise InputError(
                    f"{path} is in use by {_about(taken)}: wait for its end, or choose another output_dir (if there "
                    f"is no such process, delete {taken.parent})"
                )
            if taken != waited_for:
                logger.info("waiting for %s, which works on %s", _about(taken), path)
            waited_for = taken
            time.sleep(POLL_SECONDS)
    except OSError as error:
        raise InputError(f"cannot lock {path}: {error.strerror or first_line(error)}") from error
    try:
        with exit_on_sigterm():
            yield
    finally:
        taken.let_go()
        if is_new:
            with contextlib.suppress(OSError):
                lock.parent.rmdir()  # if nothing was written


class _Held:
    """A lock that was taken with the file `mine`, and gives signs of life."""

    def __init__(self, mine: Path):
        self.mine, self.released = mine, threading.Event()
        threading.Thread(target=_touch, args=(mine, self.released), daemon=True).start()

    def let_go(self) -> None:
        self.released.set()
        with contextlib.suppress(OSError):  # it is not ours any more, or already another's
            self.mine.unlink()
            self.mine.parent.rmdir()


def _take(lock: Path, mine: Path, me: Holder) -> _Held | Path:
    """Take the lock with the file `mine`. Returns the file of the holder that is in the way, if it lives."""
    if found := _take_one(lock, mine, me):
        return found
    held = _Held(mine)
    try:
        found = _excluding(lock, me)
    except BaseException:
        held.let_go()
        raise
    if found:
        held.let_go()
    return found or held


def _take_one(lock: Path, mine: Path, me: Holder) -> Path | None:
    """Take the lock, whatever others are in the folder. Returns its holder's file, if that is another that lives."""
    while not _take_free(lock, mine.name):
        files = _files([lock])
        if found := _living(files, me):
            return found
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                file.rename(mine)
                logger.info("%s was left locked by %s, which has ended", lock.parent, _about(file))
                return None
    return None


def _excluding(lock: Path, me: Holder) -> Path | None:
    """The file of a holder that lives of another kind of lock in the folder. What the dead left there is removed."""
    mine = LOCK.fullmatch(lock.name)
    while mine:
        kinds = {name: LOCK.fullmatch(name) for name in os.listdir(lock.parent)}
        others = [lock.with_name(name) for name, kind in kinds.items() if kind and kind["count"] != mine["count"]]
        files = _files(others)
        found = _living(files, me)
        if found or not files:
            return found
        for file in files:
            file.unlink(missing_ok=True)  # if it is there no more, another process has taken the lock: look again
            with contextlib.suppress(OSError):
                file.parent.rmdir()
    return None


def _files(locks: Iterable[Path]) -> list[Path]:
    """Those of the holders of some locks; a lock that is let go of meanwhile has none."""
    files: list[Path] = []
    for lock in locks:
        with contextlib.suppress(FileNotFoundError):
            files += [lock / name for name in os.listdir(lock)]
    return files


def _living(files: list[Path], me: Holder) -> Path | None:
    """The first of some holders' files whose holder lives. Those that cannot be seen from here are watched together."""
    unseen = []
    for file in files:
        lives = _holder(file).lives(me)
        if lives:
            return file
        if lives is None:
            unseen.append(file)
    return _showing_life(unseen) if unseen else None


def _holder(file: Path) -> Holder:
    parts = (part.partition("=")[::2] for part in file.name.split(","))
    return Holder(**{key: value for key, value in parts if key in Holder._fields})


def _about(file: Path) -> str:
    """Who holds a lock with this file, in words."""
    kind = LOCK.fullmatch(file.parent.name)
    part = f", shard {kind['index']} of {kind['count']}" if kind and kind["count"] else ""
    return f"{_holder(file)}{part}"


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


def _showing_life(files: list[Path]) -> Path | None:
    """Watch for a while whether the time stamp of a holder's file changes: the first of which it does."""
    names = ", ".join(map(_about, files))
    logger.info("%s is locked by %s; watching for up to %.0f s for life", files[0].parents[1], names, WATCH_SECONDS)
    stamps: dict[Path, set[int]] = {file: set() for file in files}
    end = time.monotonic() + WATCH_SECONDS
    while stamps and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
        for file, seen in list(stamps.items()):
            try:
                with file.open() as opened:  # NFS asks the server when a file is opened
                    seen.add(os.fstat(opened.fileno()).st_mtime_ns)
            except FileNotFoundError:  # released, or taken
                del stamps[file]
            if len(seen) > 1:
                return file
    return None


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
