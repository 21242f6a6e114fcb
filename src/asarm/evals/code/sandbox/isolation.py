"""Checks of what the sandbox enforces on this machine: a program tries to break each guarantee."""

import os
import socket
import tempfile
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

from asarm.evals.code.sandbox.runner import Limits, check_all

LIMITS = Limits(memory_mb=128, processes=4)
# Each tries something that must fail, and reaches its end if it does.
PROBES = {
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


def isolation() -> dict[str, bool]:
    """What is enforced on this machine, by name, as programs have tried it out (under half a second, once a process).

    - network: none, not even the machine's own.
    - files: none outside the temporary folder can be written.
    - secrets: nor read, but for Python and the system's libraries.
    - other processes: can be neither seen nor signalled, and those that a program starts always end with it.
    - number of processes, memory: the limits hold.
    - no root: the program is not root.
    """
    return dict(_isolation())


@lru_cache(maxsize=1)
def _isolation() -> dict[str, bool]:
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)  # what protects it must be the sandbox
        secret = Path(folder, "secret")
        secret.write_text("secret")
        secret.chmod(0o644)
        values = {"port": server.getsockname()[1], "folder": folder, "pid": os.getpid()} | asdict(LIMITS)
        finished = check_all([probe.format(**values) for probe in PROBES.values()], LIMITS, workers=1)
        verdicts = {index: verdict for index, verdict, _ in finished}
    return {name: verdicts[index].passed for index, name in enumerate(PROBES)}


def describe_isolation() -> str:
    """One line for people: what the sandbox keeps from programs on this machine, and what it does not."""
    holds = isolation()
    kept = ", ".join(name for name, held in holds.items() if held)
    missing = ", ".join(name for name, held in holds.items() if not held)
    if not missing:
        return f"generated code runs in a sandbox that guards {kept}"
    return f"generated code runs in a sandbox that guards {kept or 'nothing'}; NOT ENFORCED by this machine: {missing}"
