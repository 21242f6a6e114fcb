"""Judge programs that a model wrote: each runs in a sandbox of its own, and passes if it reaches its end in time.

The programs are taken for hostile. Each gets a process that has no rights, limits on time, memory, files and processes,
an empty temporary folder and, as far as the kernel lets us (`isolation` tries it out), no network, no sight of other
processes and no files but Python's own. When it ends, or its time does, the kernel ends all that it started.

A pass is a random token that the program's interpreter sends when the program has run to its end. Exit codes, printed
words, patched builtins and forked copies cannot make one, and the stack where it lies is closed to Python code. What no
runner of this kind can prevent: the tests run in the interpreter of the code that they test, so an object that is equal
to everything passes them, as does code that reads the answers in its caller's frame; and code that defeats the
interpreter itself (a bug of CPython, or /proc/self/mem where the files are not guarded) can find the token. All that
fakes the verdict of one program, and none of it leaves the sandbox.

Where this differs from OpenAI's `human-eval-infilling`, for programs that mean no harm: memory is limited; only the
standard library can be imported, without `ctypes` and `asyncio`; the functions of `os` and `subprocess` that are taken
away there work here, in the sandbox; a program that swallows the exception of the time limit has timed out all the
same; messages name the type of the exception, and strings hash the same in every run.
"""

import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from asarm.evals.code.sandbox import code_sandbox
from asarm.evals.code.sandbox.code_sandbox import MESSAGE_CHARACTERS, READY, TOKEN_BYTES

START_SECONDS = 60  # for a sandbox to start, on a busy machine
END_SECONDS = 20  # for it to clear away what a program started
LOOK_SECONDS = 0.1  # how often a running sandbox looks whether it is still wanted
REPORT_BYTES = 1 << 14  # read of a report; longer ones are a program's doing
# An import finds what was compiled before, and takes half as long as running the file.
_START = f"""import sys
sys.path.insert(0, {str(Path(code_sandbox.__file__).parent)!r})
import code_sandbox
del sys.path[0]
code_sandbox.main()"""


PASSED, TIMED_OUT, FAILED = "passed", "timed out", "failed: "


@dataclass(frozen=True)
class Limits:
    """What a program may use. Memory and files are limited for each process: all together take at most `processes`
    times as much memory, and `file_mb` where the folder is in memory of its own."""

    seconds: float = 3.0  # on the clock, from the program's start
    memory_mb: int = 512  # address space of a process, MiB
    file_mb: int = 8  # size of a file, and of all in the temporary folder, MiB
    processes: int = 8  # processes and threads at a time, the first among them
    output_bytes: int = 4096  # of what it prints, kept for the message if it dies without a report

    def __post_init__(self):
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

    Its globals are empty, as in OpenAI's runner, so `__name__` is not "__main__". RuntimeError if the sandbox itself
    does not start, which no program can bring about.
    """
    return _judge(program, limits, threading.Event())


def check_all(programs: Sequence[str], limits: Limits = Limits(), workers: int = 2) -> Iterator[tuple[int, Verdict]]:
    """(index, verdict) of each program, in order of completion, `workers` at a time.

    Whatever ends the iteration, an interrupt or an iterator that is dropped, ends all that still runs.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, not {workers}")
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
    try:
        futures = {pool.submit(_judge, program, limits, stop): index for index, program in enumerate(programs)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _judge(program: str, limits: Limits, stop: threading.Event) -> Verdict:
    token = secrets.token_hex(TOKEN_BYTES // 2).encode()
    with _sandbox(token + program.encode("utf-8", "surrogatepass"), limits) as process:
        report, output, in_time = _listen(process, limits, stop)
    if not report.startswith(READY):
        raise RuntimeError(f"the sandbox of generated code did not start: {_line(output) or 'no message'}")
    end = report[len(READY) :]
    if secrets.compare_digest(end, token):
        return Verdict(True, PASSED)
    if not in_time:
        return Verdict(False, TIMED_OUT)
    return Verdict(False, FAILED + (_line(end) or _death(process.returncode, output)))


@contextmanager
def _sandbox(request: bytes, limits: Limits) -> Iterator[subprocess.Popen]:
    """A started sandbox, whose stdout is the report and whose stderr is the program's output. It is gone afterwards."""
    limits = [f"{name}={value}" for name, value in asdict(limits).items()]
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with (
        tempfile.TemporaryDirectory(prefix="asarm-code-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as file,
    ):
        file.write(request)
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-ISB", "-c", _START, os.path.realpath(folder), *limits],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # a Ctrl-C is ours to handle
        )
        file.close()
        try:
            yield process
        finally:
            process.stdout.close()  # what the sandbox takes as the order to end, if it has not yet
            process.stderr.close()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _listen(process: subprocess.Popen, limits: Limits, stop: threading.Event) -> tuple[bytes, bytes, bool]:
    """(report, output, whether it ended in time): both cut at their limits, though read to their ends, so that a
    program that prints without end fills nothing and waits for nobody."""
    report, output = bytearray(), bytearray()
    room = {process.stdout: (report, REPORT_BYTES), process.stderr: (output, limits.output_bytes)}
    started, deadline = False, time.monotonic() + START_SECONDS
    with selectors.DefaultSelector() as selector:
        for pipe in room:
            selector.register(pipe, selectors.EVENT_READ)
        while process.stdout in selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                return bytes(report), bytes(output), False
            if stop.is_set():
                raise _Stopped
            for key, _ in selector.select(min(left, LOOK_SECONDS)):
                piece = os.read(key.fd, 1 << 16)
                kept, size = room[key.fileobj]
                kept += piece[: size - len(kept)]
                if not piece:
                    selector.unregister(key.fileobj)
            if not started and report.startswith(READY):
                started, deadline = True, time.monotonic() + limits.seconds
    return bytes(report), bytes(output), True


def _line(text: bytes) -> str:
    """The last line of what a program says, fit to be shown: no control characters, not too long."""
    lines = text.decode("utf-8", "replace").strip().splitlines() or [""]
    shown = "".join(character if character.isprintable() else "?" for character in lines[-1])
    return shown[: MESSAGE_CHARACTERS + 100]


def _death(code: int, output: bytes) -> str:
    """How a program ended that did not say so itself."""
    try:
        end = f"ended by {signal.Signals(code - 128).name}"
    except ValueError:
        end = f"exited with code {code} before its end"
    return f"{end}: {_line(output)}" if _line(output) else end


# What each of these programs tries fails, and it reaches its end, if the sandbox holds.
_PROBES = {
    "network": """
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=1)
except OSError:
    pass
else:
    raise SystemExit("connected")
""",
    "files": """
try:
    open({folder!r} + "/new", "w").close()
except OSError:
    pass
else:
    raise SystemExit("written")
""",
    "secrets": """
try:
    open({folder!r} + "/secret").close()
except OSError:
    pass
else:
    raise SystemExit("read")
""",
    "other processes": """
import os
try:
    os.kill({pid}, 0)
except OSError:
    pass
else:
    raise SystemExit("seen")
""",
    "number of processes": """
import threading, time
try:
    for _ in range({processes}):
        threading.Thread(target=time.sleep, args=(10,), daemon=True).start()
except RuntimeError:
    pass
else:
    raise SystemExit("started")
""",
    "memory": """
try:
    bytearray({memory_mb} << 20)
except MemoryError:
    pass
else:
    raise SystemExit("allocated")
""",
    "no root": """
import os
if os.getuid() == 0:
    raise SystemExit("root")
""",
}


@lru_cache(maxsize=1)
def _isolation(limits: Limits = Limits(memory_mb=128, processes=4)) -> dict[str, bool]:
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)  # what protects it must be the sandbox
        secret = Path(folder, "secret")
        secret.write_text("secret")
        secret.chmod(0o644)
        values = {"port": server.getsockname()[1], "folder": folder, "pid": os.getpid()} | asdict(limits)
        verdicts = dict(check_all([probe.format(**values) for probe in _PROBES.values()], limits, workers=1))
    return {name: verdicts[index].passed for index, name in enumerate(_PROBES)}


def isolation() -> dict[str, bool]:
    """What is enforced on this machine, each tried out by a program (under half a second, once a process).

    network: none, not even the machine's own. files: none outside the temporary folder can be written. secrets: nor
    read, but for Python and the system's libraries. other processes: can be neither seen nor signalled, and those that
    a program leaves behind always end with it. number of processes, memory: the limits hold. no root: the program
    is not root.
    """
    return dict(_isolation())


def describe_isolation() -> str:
    """One line for people on what the sandbox keeps from programs here, and on what it does not."""
    holds = isolation()
    kept = ", ".join(name for name, held in holds.items() if held)
    missing = ", ".join(name for name, held in holds.items() if not held)
    if not missing:
        return f"generated code runs in a sandbox that guards {kept}"
    return f"generated code runs in a sandbox that guards {kept or 'nothing'}; NOT ENFORCED by this machine: {missing}"
