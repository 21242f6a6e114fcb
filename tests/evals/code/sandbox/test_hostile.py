"""Hostile programs neither pass nor do any harm."""

import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from asarm.evals.code.sandbox import runner
from asarm.evals.code.sandbox.isolation import isolation
from asarm.evals.code.sandbox.runner import Verdict, check, check_all
from support.sandbox import BENIGN, QUICK, linux, needs

# Each would not end by itself, or end in a way that might look like a pass. They know CANARY, a folder outside; PID,
# the test's process; and PORT, a server of the test's.
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


# What the kernel must enforce so that a program does no harm.
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


@linux
@pytest.mark.parametrize("name", ["endless loop", "zombies", "daemon", "daemon of another program"])
def test_what_a_program_started_is_ended_without_namespaces_too(name, monkeypatch):
    refused = "supervisor.Linux.enter_namespaces = lambda self: False\nsupervisor.main()"
    monkeypatch.setattr(runner, "START_SUPERVISOR", runner.START_SUPERVISOR.replace("supervisor.main()", refused))
    verdicts = {index: verdict for index, verdict, _ in check_all([HOSTILE[name], BENIGN], QUICK)}
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
    verdicts = {index: verdict for index, verdict, _ in check_all([known + HOSTILE[name], BENIGN, BENIGN], QUICK)}
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
found = {}
frame = sys._getframe()
while frame:
    found |= {**frame.f_globals, **frame.f_locals}
    frame = frame.f_back
for name in ('describe', 'getpid', 'take_token', 'send', 'run_and_send_token', 'leave', 'run_program'):
    for arguments in ((), ('',), (3, b'')):
        try: found[name](*arguments)
        except BaseException: pass
assert False
""",
    "changed variables of frames": """
import sys
frame = sys._getframe().f_back
while frame:
    for scope in (frame.f_globals, frame.f_locals):
        for name in set(scope) - {'__builtins__'}:
            scope[name] = lambda *_: 0
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
