"""Runs programs that a model wrote: each in a sandbox of its own; it passes if it reaches its end in time.

The programs are taken for hostile. Each gets a process without privileges, with limits on time, memory, files and
processes, an empty temporary folder and, as far as the kernel allows it (`isolation` tries it out), no network, no
sight of other processes and no files but Python's own. When it ends, or its time does, all that it started is ended.

A pass is a random token that the program's interpreter sends when the program has run to its end, see
`program.run_and_send_token`; exit codes, printed words, patched builtins and forked copies cannot make one.

Differences from OpenAI's `human-eval-infilling`, for harmless programs: memory is limited; only the standard
library can be imported, without `ctypes` and `asyncio`; the functions of `os` and `subprocess` that are taken away
there work here, in the sandbox; a program that swallows the exception of the time limit has timed out all the same;
messages name the type of the exception; strings hash the same in every run.
"""

import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple

from asarm.evals.code.sandbox import supervisor
from asarm.evals.code.sandbox.program import MESSAGE_CHARACTERS, READY, TOKEN_BYTES

START_SECONDS = 60  # for a sandbox to start, on a busy machine
END_SECONDS = 20  # for the supervisor to end what a program started
POLL_SECONDS = 0.1  # how often to look whether a running sandbox is still wanted
REPORT_BYTES = 1 << 14  # read of a report; longer ones are a program's doing
PASSED, TIMED_OUT, FAILED = "passed", "timed out", "failed: "

# Source of the supervisor's interpreter. It finds this folder as a package `sandbox` of its own, not as a part of
# `asarm`; and its byte code, which the import above has written, in half the time that the source would take.
START_SUPERVISOR = f"""import sys
sys.path.insert(0, {str(Path(supervisor.__file__).parents[1])!r})
from sandbox import supervisor
del sys.path[0]
supervisor.main()"""


@dataclass(frozen=True)
class Limits:
    """What a program may use. Memory and files are limited for each process: all together take at most `processes`
    times as much memory, and `file_mb` where the folder is in memory of its own. Raises ValueError."""

    seconds: float = 3.0  # on the clock, from the program's start
    memory_mb: int = 512  # address space of a process, MiB
    file_mb: int = 8  # size of a file, and of all in the temporary folder, MiB
    processes: int = 8  # processes and threads at a time, the first among them
    output_bytes: int = 4096  # of what it prints, kept for the message if it dies without a report

    def __post_init__(self) -> None:
        least = {"seconds": 0.1, "memory_mb": 64, "file_mb": 1, "processes": 1, "output_bytes": 0}
        for name, smallest in least.items():
            if not smallest <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number of at least {smallest}, not {getattr(self, name)}")


class Verdict(NamedTuple):
    """passed, and why: "passed", "timed out" or "failed: ..." with the exception's type and message in one line."""

    passed: bool
    result: str


class _Stopped(Exception):
    """The verdict is no longer wanted."""


def check(program: str, limits: Limits = Limits()) -> Verdict:
    """Run Python source in a sandbox; it passes if it runs to its end, without an exception, within the limits.

    Its globals are empty, as in OpenAI's runner, so `__name__` is not "__main__". Raises RuntimeError if the sandbox
    itself does not start, which no program can bring about.
    """
    return _run(program, limits, threading.Event())[0]


def check_all(
    programs: Sequence[str], limits: Limits = Limits(), workers: int = 2
) -> Iterator[tuple[int, Verdict, float]]:
    """Yield (index, verdict, seconds that it took) of each program, in order of completion, `workers` at a time.

    Whatever ends the iteration, an interrupt or an iterator that is dropped, ends all that still runs. Raises
    ValueError for workers < 1, and RuntimeError as `check` does.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
    try:
        futures = {pool.submit(_run, program, limits, stop): index for index, program in enumerate(programs)}
        pending = set(futures)
        while pending:
            # Without a time limit, a signal that comes just before the wait is not seen until a program has ended.
            done, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            for future in done:
                yield futures[future], *future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _run(program: str, limits: Limits, stop: threading.Event) -> tuple[Verdict, float]:
    token = secrets.token_hex(TOKEN_BYTES // 2).encode()
    with _sandbox(token + program.encode("utf-8", "surrogatepass"), limits) as (process, report_pipe, output_pipe):
        report, output, in_time, seconds = _listen(report_pipe, output_pipe, limits, stop)
    if not report.startswith(READY):
        raise RuntimeError(f"the sandbox of generated code did not start: {_last_line(output) or 'no message'}")
    end = report[len(READY) :]
    if secrets.compare_digest(end, token):
        return Verdict(True, PASSED), seconds
    if not in_time:
        return Verdict(False, TIMED_OUT), limits.seconds
    return Verdict(False, FAILED + (_last_line(end) or _reason_of_death(process.returncode, output))), seconds


@contextmanager
def _sandbox(request: bytes, limits: Limits) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]]:
    """A started sandbox: its supervisor, the pipe of the report and that of the program's output. It is gone
    afterwards."""
    arguments = [f"{name}={value}" for name, value in asdict(limits).items()]
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with (
        tempfile.TemporaryDirectory(prefix="asarm-code-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as file,
    ):
        file.write(request)
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-ISB", "-c", START_SUPERVISOR, os.path.realpath(folder), *arguments],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a Ctrl-C is ours to handle
        )
        file.close()
        assert process.stdout
        assert process.stderr
        try:
            yield process, process.stdout, process.stderr
        finally:
            process.stdout.close()  # what the supervisor takes as the order to end, if it has not yet
            process.stderr.close()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _listen(
    report_pipe: IO[bytes], output_pipe: IO[bytes], limits: Limits, stop: threading.Event
) -> tuple[bytes, bytes, bool, float]:
    """Read both pipes until the report ends: (report, output, whether it ended in time, seconds from the program's
    start to the last news of the report, at most the limit).

    Both are cut at their limits, but read on, so that a program that prints without end neither fills our memory nor
    waits for a reader.
    """
    report, output = bytearray(), bytearray()
    room = {report_pipe.fileno(): (report, REPORT_BYTES), output_pipe.fileno(): (output, limits.output_bytes)}
    start, news, deadline = None, 0.0, time.monotonic() + START_SECONDS
    with selectors.DefaultSelector() as selector:
        for descriptor in room:
            selector.register(descriptor, selectors.EVENT_READ)
        while report_pipe.fileno() in selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if stop.is_set():
                raise _Stopped
            for key, _ in selector.select(min(left, POLL_SECONDS)):
                piece = os.read(key.fd, 1 << 16)
                news = time.monotonic() if key.fd == report_pipe.fileno() else news
                kept, size = room[key.fd]
                kept += piece[: size - len(kept)]
                if not piece:
                    selector.unregister(key.fd)
            if start is None and report.startswith(READY):
                start = time.monotonic()
                deadline = start + limits.seconds
        in_time = report_pipe.fileno() not in selector.get_map()
    seconds = 0.0 if start is None else min(max(news - start, 0.0), limits.seconds)
    return bytes(report), bytes(output), in_time, seconds


def _last_line(text: bytes) -> str:
    """The last line of what a program says, fit to be shown: no control characters, not too long."""
    lines = text.decode("utf-8", "replace").strip().splitlines() or [""]
    shown = "".join(character if character.isprintable() else "?" for character in lines[-1])
    return shown[: MESSAGE_CHARACTERS + 100]


def _reason_of_death(code: int, output: bytes) -> str:
    """How a program ended that did not report it."""
    try:
        end = f"ended by {signal.Signals(code - 128).name}"
    except ValueError:
        end = f"exited with code {code} before its end"
    return f"{end}: {_last_line(output)}" if _last_line(output) else end
