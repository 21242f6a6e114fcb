"""The sandbox of generated code: honest programs are judged right, hostile ones neither pass nor do any harm."""

import gzip
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from asarm.evals.code.sandbox import runner as code_runner
from asarm.evals.code.sandbox.code_sandbox import descendants, processes
from asarm.evals.code.sandbox.runner import Limits, Verdict, check, check_all, describe_isolation, isolation
from support.paths import SHARED, SOURCE

PROBLEMS = SHARED / "humaneval-infilling/HumanEval-SingleLineInfilling.jsonl.gz"
QUICK = Limits(seconds=1.0)
BENIGN = "def add(a, b):\n    return a + b\nassert add(2, 3) == 5\n"

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def needs(*names):
    """Skip where the kernel does not enforce one of these: what the program tries would do harm."""
    missing = [name for name in names if not isolation()[name]]
    if missing:
        pytest.skip(f"this kernel does not enforce: {', '.join(missing)}")


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


@pytest.fixture
def canary():
    """A folder outside of the sandbox that everybody may write to, if the sandbox lets them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "inner").mkdir()
        for path in (folder / "a.txt", folder / "inner" / "b.txt"):
            path.write_text("canary")
            path.chmod(0o666)
            path.parent.chmod(0o777)
        yield folder


def seen(folder):
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, path.read_text() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


# --------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("program", "result"),
    [
        (BENIGN, "passed"),
        ("", "passed"),
        ("assert __name__ == 'builtins'", "passed"),  # as in OpenAI's runner, so no `if __name__ == '__main__'`
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", "passed"),
        ("print('x' * 5_000_000, '\\udc80 \u00e9')", "passed"),
        ("import os, subprocess\nopen('f', 'w').write('x')\nos.remove('f')\nassert os.listdir() == []", "passed"),
        ("#" * 2_000_000, "passed"),
        ("assert 1 == 2", "failed: AssertionError"),
        ("assert 1 == 2, 'first\\nsecond'", "failed: AssertionError: first"),
        ("raise ValueError('\\x1b[2J' + 'long' * 1000)", "failed: ValueError: ?[2J" + "long" * 74),
        ("unknown", "failed: NameError: name 'unknown' is not defined"),
        ("def f(:", "failed: SyntaxError: invalid syntax (<string>, line 1)"),
        ("input()", "failed: OSError: a program has no input"),
        ("exit()", "failed: NameError: name 'exit' is not defined"),
        ("import sys\nsys.exit(0)", "failed: SystemExit: 0"),
        ("raise KeyboardInterrupt", "failed: KeyboardInterrupt"),
        ("import os\nos._exit(0)", "failed: exited with code 0 before its end"),
        ("import os\nos.write(2, b'one\\ntwo')\nos._exit(3)", "failed: exited with code 3 before its end: two"),
        ("while True: pass", "timed out"),
        ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", "timed out"),
        ("import numpy", "failed: ModuleNotFoundError: No module named 'numpy'"),
        ("bytearray(10 << 30)", "failed: MemoryError"),
        (
            "class E(Exception):\n    def __str__(self): raise self\nraise E",
            "failed: an exception that cannot be shown",
        ),
    ],
)
def test_result(program, result):
    if "10 <<" in program:
        needs("memory")
    verdict = check(program, QUICK)
    assert verdict == (result == "passed", result)


def test_strange_sources_fail_and_nothing_else():
    for program in (
        "x = '\0'",
        "x = 1\udc80",
        "(" * 100_000,
        "-" * 100_000 + "1",
        "x = " + "[" * 90 + "]" * 90 + "\n1/0",
    ):
        verdict = check(program, QUICK)
        assert not verdict.passed
        assert verdict.result.startswith(("failed: ", "timed out"))


def test_order_is_that_of_completion_and_all_are_judged():
    programs = ["import time\ntime.sleep(0.8)", "", "1 / 0"]
    verdicts = list(check_all(programs, workers=2))
    assert [index for index, _ in verdicts] == [1, 2, 0]
    assert [verdict.passed for _, verdict in verdicts] == [True, False, True]


def test_verdicts_are_reproducible():
    program = "raise ValueError(hash('seed'), list({str(n) for n in range(20)}))"
    assert check(program) == check(program)


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"seconds": float("inf")}, {"seconds": float("nan")}, {"memory_mb": 1}, {"processes": 0}]
)
def test_limits_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)
    with pytest.raises(ValueError, match="workers"):
        next(check_all([BENIGN], workers=0))


def test_humaneval():
    """Canonical solutions pass; with the line left out or its work undone they do not."""
    if not PROBLEMS.exists():
        pytest.skip(f"no {PROBLEMS}")
    with gzip.open(PROBLEMS, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file][::50]

    def program(problem, completion):
        whole = problem["prompt"] + completion + problem["suffix"]
        return f"{whole}\n{problem['test']}\ncheck({problem['entry_point']})"

    canonical = [program(problem, problem["canonical_solution"]) for problem in problems]
    broken = [program(problem, " " * 4 + "raise NotImplementedError\n") for problem in problems]
    verdicts = dict(check_all(canonical + broken))
    assert [verdicts[index].result for index in range(len(problems))] == ["passed"] * len(problems)
    assert not any(verdicts[len(problems) + index].passed for index in range(len(problems)))


# ------------------------------------------------------------------------------------------------- hostile programs

# Each would not end by itself, or end in a way that might look like a pass. They know CANARY, a folder outside, PID,
# the test's process, and PORT, a server of its.
HOSTILE = {
    "fork bomb": """
import os
while True:
    try: os.fork()
    except OSError: pass
""",
    "thread bomb": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(60,)).start()
    except RuntimeError: pass
""",
    "endless loop": "while True: pass",
    "endless sleep": "import time; time.sleep(1e6)",
    "10 GB at once": "x = bytearray(10 << 30)",
    "10 GB bit by bit": """
x = []
while True: x.append(bytearray(1 << 20))
""",
    "10 GB mapped": "import mmap; x = mmap.mmap(-1, 10 << 30); assert False",
    "endless output": "while True: print('x' * 10_000)",
    "endless raw output": """
import os
while True: os.write(1, b'x' * 65536)
""",
    "endless report": """
import os
while True: os.write(3, b'x' * 65536)
""",
    "huge file": """
with open('f', 'wb') as f:
    while True: f.write(b'x' * (1 << 20))
""",
    "many files": """
n = 0
while True:
    open(str(n), 'w').write('x' * 4096)
    n += 1
""",
    "deletes files": """
import os, shutil
shutil.rmtree(CANARY, ignore_errors=True)
shutil.rmtree('/', ignore_errors=True)
os.remove(CANARY + '/a.txt')
""",
    "writes outside": "open(CANARY + '/new', 'w').write('x'); assert False",
    "overwrites": "open(CANARY + '/a.txt', 'w').write('x'); assert False",
    "changes rights": "import os; os.chmod(CANARY + '/a.txt', 0); assert False",
    "writes through a link": "import os; os.symlink(CANARY, 'link'); open('link/a.txt', 'w').write('x'); assert False",
    "signals its parent": """
import os, signal
for pid in (os.getppid(), PID, 0, -1):
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try: os.kill(pid, kind)
        except OSError: pass
os.killpg(0, signal.SIGKILL)
assert False
""",
    "stops its parent": """
import os, signal
for pid in [os.getppid(), *range(2, 100), PID]:
    try: os.kill(pid, signal.SIGSTOP)
    except OSError: pass
assert False
""",
    "connects": "import socket; socket.create_connection(('127.0.0.1', PORT), timeout=5); assert False",
    "sends datagrams": """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))
assert False
""",
    "sys.exit": "import sys; sys.exit(0)",
    "os._exit": "import os; os._exit(0)",
    "exits in a thread": """
import os, threading
threading.Thread(target=os._exit, args=(0,)).start()
while True: pass
""",
    "another program": "import os; os.execv('/bin/true', ['true'])",
    "patched assert": """
import builtins
builtins.AssertionError = type('Quiet', (Exception,), {})
assert 1 == 2
""",
    "patched builtins": """
import builtins, os, sys
for name in ('exec', 'compile', 'BaseException', 'Exception', 'str', 'type', 'RuntimeError', 'ImportError'):
    setattr(builtins, name, lambda *_: None)
os.write = os._exit = sys.exit = print
assert 1 == 2
""",
    "deep recursion": """
def f(): f()
f()
""",
    "bottomless recursion": """
import sys
sys.setrecursionlimit(1 << 30)
def f(x): return [f([x])]
f(0)
""",
    "recursion in C": """
import sys
sys.setrecursionlimit(1 << 30)
x = []
for _ in range(10**5): x = [x]
repr(x)
assert False
""",
    "daemon threads": """
import threading
def spin():
    while True: pass
for _ in range(4): threading.Thread(target=spin, daemon=True).start()
assert False
""",
    "threads that stay": """
import threading, time
for _ in range(4): threading.Thread(target=time.sleep, args=(1e6,)).start()
assert False
""",
    "exit function that stays": "import atexit, time; atexit.register(time.sleep, 1e6); assert False",
    "destructor that stays": """
class Stay:
    def __del__(self):
        while True: pass
x = Stay()
assert False
""",
    "zombies": """
import os
for _ in range(4):
    if not os.fork(): os._exit(0)
assert False
""",
    "daemon": """
import os, time
if not os.fork():
    os.setsid()
    if not os.fork(): time.sleep(1e6)
    os._exit(0)
time.sleep(0.1)
assert False
""",
    "daemon of another program": """
import subprocess
subprocess.Popen(['/bin/sleep', '1000000'], start_new_session=True)
assert False
""",
    "ignores signals": """
import signal
for kind in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    try: signal.signal(kind, signal.SIG_IGN)
    except OSError: pass
while True: pass
""",
    "stops itself": """
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
while True: pass
""",
    "closes all files": "import os; os.closerange(0, 64)",
    "prints success": """
import os
for descriptor in range(64):
    try: os.write(descriptor, b'ready\\npassed\\n')
    except OSError: pass
print('passed')
os._exit(0)
""",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV); os.abort()",
    "ctypes": "import ctypes; ctypes.string_at(0)",
}
# What the kernel must enforce lest a program do harm.
HARM = {
    "fork bomb": "number of processes",
    "thread bomb": "number of processes",
    "10 GB at once": "memory",
    "10 GB bit by bit": "memory",
    "10 GB mapped": "memory",
    "many files": "files",
    "deletes files": "files",
    "writes outside": "files",
    "overwrites": "files",
    "changes rights": "files",
    "writes through a link": "files",
    "signals its parent": "other processes",
    "stops its parent": "other processes",
    "connects": "network",
    "sends datagrams": "network",
}


@linux
@pytest.mark.parametrize("name", ["endless loop", "zombies", "daemon", "daemon of another program"])
def test_what_is_left_behind_is_ended_without_namespaces_too(name, monkeypatch):
    refused = "code_sandbox.Linux.enter_namespaces = lambda self: False\ncode_sandbox.main()"
    monkeypatch.setattr(code_runner, "_START", code_runner._START.replace("code_sandbox.main()", refused))
    verdicts = dict(check_all([HOSTILE[name], BENIGN], QUICK))
    assert not verdicts[0].passed
    assert verdicts[1].passed


@pytest.fixture(scope="module")
def server():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, canary, server, tmp_path, monkeypatch):
    if name in HARM:
        needs(HARM[name])
    folders = tmp_path / "temporary"
    folders.mkdir()
    folders.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folders))
    known = f"CANARY, PID, PORT = {str(canary)!r}, {os.getpid()}, {server.getsockname()[1]}\n"
    before, start = seen(canary), time.monotonic()
    verdicts = dict(check_all([known + HOSTILE[name], BENIGN, BENIGN], QUICK))
    assert time.monotonic() - start < 10  # a second, and whatever else this machine is doing
    assert not verdicts[0].passed
    assert len(verdicts[0].result) < 500
    assert verdicts[1] == verdicts[2] == Verdict(True, "passed")
    assert seen(canary) == before
    assert not list(folders.iterdir())
    with pytest.raises(BlockingIOError):
        server.accept()


# Each looks for the token, or for another way to have it sent, though it has passed nothing.
SEND = """
import os, sys
def send(found):
    for token in found:
        for fd in range(3, 64):
            try: os.write(fd, token)
            except OSError: pass
def like_it(value):
    return isinstance(value, bytes) and len(value) == 32
"""
FAKES = {
    "variables of frames": SEND
    + """
frame = sys._getframe()
while frame:
    send([v for v in {**frame.f_locals, **frame.f_globals}.values() if like_it(v)])
    frame = frame.f_back
os._exit(0)
""",
    "variables of modules": SEND
    + """
send([v for m in list(sys.modules.values()) for v in vars(m).values() if like_it(v)])
os._exit(0)
""",
    "garbage collector": SEND
    + """
import gc
frame = sys._getframe()
for read in (gc.get_referents, lambda f: [r for o in gc.get_objects() for r in gc.get_referents(o)]):
    try:
        while frame:
            send(filter(like_it, read(frame)))
            frame = frame.f_back
    except RuntimeError:
        pass
os._exit(0)
""",
    "standard input": SEND
    + """
for fd in range(64):
    try: send([os.pread(fd, 32, 0)])
    except OSError: pass
for read in (lambda: os.read(0, 32), lambda: sys.stdin.read(32).encode(), lambda: open(0, 'rb').read(32)):
    try: send([read()])
    except OSError: pass
os._exit(0)
""",
    "functions of the harness": """
import sys
frame = sys._getframe()
while frame:
    for name, value in {**frame.f_globals, **frame.f_locals}.items():
        if callable(value) and name in ('run_program', 'take_token', 'leave', 'send', 'describe'):
            try: value()
            except BaseException: pass
    frame = frame.f_back
assert False
""",
    "a copy that goes on": """
import os
copy = os.fork()
if copy:
    os.waitpid(copy, 0)
    os._exit(0)
""",
    "jump over the tests": """
import sys
def candidate():
    frame = sys._getframe(1)
    def jump(frame, event, argument):
        if event == 'line' and frame.f_lineno == frame.f_code.co_firstlineno + 2:
            frame.f_lineno += 1
        return jump
    frame.f_trace = jump
    sys.settrace(jump)
    return 1
def check(candidate):
    value = candidate()
    assert value == 2
    return
check(candidate)
""",
    "profiler": "import sys\nsys.setprofile(lambda *_: None)\nassert False",
    "hooks of exceptions": "import sys; sys.excepthook = sys.unraisablehook = lambda *_: None; assert False",
    "alarm": """
import signal
def handler(*_):
    raise StopIteration
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.1)
while True: pass
""",
    "crafted code": "f = lambda: None\nf.__code__ = f.__code__.replace(co_code=b'd\\x00S\\x00')\nassert f()",
    "subclasses": """
found = [c for c in object.__subclasses__() if c.__module__ in ('_ctypes', 'ctypes')]
assert found
""",
    "memory": SEND
    + """
for line in open('/proc/self/maps'):
    start, end = (int(n, 16) for n in line.split()[0].split('-'))
    with open('/proc/self/mem', 'rb') as memory:
        memory.seek(start)
        memory.read(end - start)
raise SystemExit('read')
""",
}


@pytest.mark.parametrize("name", FAKES)
def test_no_pass_is_faked(name):
    verdict = check(FAKES[name], QUICK)
    assert not verdict.passed
    assert verdict.result != "failed: SystemExit: read" or not isolation()["files"]


# -------------------------------------------------------------------------------------------- what a program can see


def test_environment_is_clean(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "swordfish")
    assert check("import os\nassert not any('swordfish' in v for v in os.environ.values()), os.environ").passed
    assert check("import os\nassert os.getcwd() == os.environ['HOME'] == os.environ['TMPDIR']").passed
    assert check("import os\nassert os.listdir() == []").passed


def test_the_machine_cannot_be_read():
    needs("secrets")
    program = (
        f"import os\nfor path in ('/proc/self', '/proc/{os.getpid()}/environ', '/etc/passwd', '/home', '/root/.ssh'):\n"
    )
    assert check(program + "    assert not os.path.exists(path), path") == Verdict(True, "passed")


def test_no_file_is_inherited(tmp_path):
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    secret = open(tmp_path / "secret", "w")  # noqa: SIM115
    os.set_inheritable(secret.fileno(), True)
    try:
        program = (
            "import os\nfor n in range(4, 64):\n    try: os.fstat(n)\n    except OSError: continue\n    assert False, n"
        )
        assert check(program) == Verdict(True, "passed")
    finally:
        os.close(reader)
        os.close(writer)
        secret.close()


def test_root_is_read_only():
    needs("files")
    program = """
import os
for folder, inner, _ in os.walk('/'):
    if folder == '/tmp' or folder.count('/') > 2:
        inner.clear()
        continue
    try: open(folder + '/new', 'w').close()
    except OSError: continue
    raise SystemExit(folder)
"""
    assert check(program, Limits(seconds=20)) == Verdict(True, "passed")


def test_no_rights_are_to_be_had():
    needs("no root")
    program = (
        "import os\nfor call in (lambda: os.setuid(0), lambda: os.chroot('.'), lambda: os.mknod('d', 0o60666, 0)):\n"
    )
    program += "    try: call()\n    except OSError: continue\n    raise SystemExit('root')"
    assert check(program) == Verdict(True, "passed")


@linux
def test_all_is_enforced_where_the_kernel_allows_it():
    """Lest the tests above be skipped because the sandbox no longer does its work."""
    own = ["unshare", "--net", "--pid", "--mount", "--ipc", "--uts", "--fork"]
    command = own if os.geteuid() == 0 else [*own, "--user", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("this kernel, or this container, allows no namespaces")
    assert isolation() == dict.fromkeys(isolation(), True)


def test_isolation_is_described(monkeypatch):
    text = describe_isolation()
    assert "\n" not in text
    assert ("NOT ENFORCED" in text) == (not all(isolation().values()))
    monkeypatch.setattr("asarm.evals.code.sandbox.runner.isolation", lambda: {"network": False, "files": True})
    assert describe_isolation().endswith("guards files; NOT ENFORCED by this machine: network")


# --------------------------------------------------------------------------------------------------------- the end

RUN = f"""
import sys, types
for name, folder in (("asarm", {str(SOURCE)!r}), ("asarm.evals", {str(SOURCE / "evals")!r})):  # without torch
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from asarm.evals.code.sandbox.runner import Limits, check_all
print("ready", flush=True)
for index, verdict in check_all([""] + ["while True: pass"] * 6, Limits(seconds=60)):
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
        run.communicate(timeout=code_runner.END_SECONDS + 10)  # a sandbox may take so long to end
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
    assert next(verdicts) == (0, Verdict(True, "passed"))
    verdicts.close()
    assert time.monotonic() - start < 20
