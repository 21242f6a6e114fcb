"""The supervisor of one hostile program: prepares the sandbox, starts the program's interpreter, ends all that is left.

Runs in an interpreter that knows only the standard library and this package, under the name `sandbox`; hence the
relative imports. Standard input is a file, the secret token and then the program; standard output is the pipe of the
report, and when its reader is gone the supervisor ends everything; standard error takes the program's output.
"""

import os
import sys

from . import program
from .linux import SIGKILL, Linux

POLL_MILLISECONDS = 5  # how often to look whether the program has ended
FIRST_USER = 2_000_000_000  # root gives each sandbox a user id of its own, far from those of people
NOBODY = 65534  # where user ids end below that


def supervise(folder: str, limits: dict[str, float]) -> None:
    """Run the program in a sandbox; end it, and all that it started, when it ends or the report's reader is gone.

    Does not return: exits with the program's exit code, or 128 + the signal that ended it.

    Args:
        folder: an empty folder, where the sandbox's root is mounted or, where that is not allowed, the program works.
        limits: those of `runner.Limits`, by name.
    """
    import select

    kernel = Linux() if sys.platform == "linux" else None
    namespaces = kernel is not None and kernel.enter_namespaces()
    own_root = kernel is not None and namespaces and kernel.build_root(folder, int(limits["file_mb"]))
    user, other_tasks = choose_user(own_root, namespaces)
    child = os.fork()
    if child == 0:
        try:
            start_program(kernel, folder, own_root, user, other_tasks, limits)
        except BaseException as error:  # a forked child must not go on as its parent
            os.write(2, f"{type(error).__name__}: {error}".encode())
        os._exit(127)
    os.close(0)  # the token is for the other interpreter alone
    reader = select.poll()
    reader.register(1, 0)  # reports only that the reader is gone
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended and not reader.poll(POLL_MILLISECONDS):
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, SIGKILL)
        status = os.waitpid(child, 0)[1]
    if not namespaces:  # else the kernel has ended all the others with the first
        end_descendants(child)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def choose_user(own_root: bool, namespaces: bool) -> tuple[int, int]:
    """The user id that root changes to (0: it stays, or is not root), and how many tasks of that user run elsewhere,
    which count towards the limit of processes."""
    if os.geteuid() != 0:
        release = tuple(int(part) for part in os.uname().release.split(".")[:2] if part.isdigit())
        counts_separately = namespaces and release >= (5, 14)  # as user namespaces do since then
        return 0, 0 if counts_separately else count_tasks(os.getuid())
    for user in (FIRST_USER + os.getpid(), NOBODY):
        try:
            os.seteuid(user)
        except OSError:  # no such user in this container
            continue
        needed = [] if own_root else [sys.executable, os.__file__]  # may be in a home that is closed to others
        reachable = all(os.access(path, os.R_OK, effective_ids=True) for path in needed)
        os.seteuid(0)
        if reachable:
            return user, count_tasks(user) if user == NOBODY else 0
    return 0, 0


def start_program(
    kernel: Linux | None, folder: str, own_root: bool, user: int, other_tasks: int, limits: dict[str, float]
) -> None:
    """Become the interpreter that runs the program: own session, root, folder, limits, user and environment."""
    with open(program.__file__, encoding="utf-8") as file:
        source = file.read()  # now: it cannot be read once the root has changed
    python = os.path.realpath(sys.executable)
    os.setsid()
    os.dup2(1, program.REPORT_FD)
    os.dup2(2, 1)
    if kernel:
        kernel.prefer_for_oom_killer()
        kernel.drop_capabilities()
    if own_root:
        os.chroot(folder)
        folder = "/tmp"
    elif user:
        os.chown(folder, user, user)
    os.chdir(folder)
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    set_limits(limits, other_tasks)
    if kernel:
        kernel.die_with_parent()
    os.execve(python, [python, "-sSB", "-c", source + "\n\nrun_program()"], program_environment(folder))


def program_environment(folder: str) -> dict[str, str]:
    """The environment variables of the program, which works in `folder`."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the same verdict every time
        "PYTHONIOENCODING": "utf-8:backslashreplace",
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",  # else each thread takes 64 MB of the address space that is limited
    }
    if "LD_LIBRARY_PATH" in os.environ:
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    return environment


def set_limits(limits: dict[str, float], other_tasks: int) -> None:
    """Set the limits of a process. That of processes counts all threads of the user, also the `other_tasks`."""
    import resource

    values = {
        "AS": int(limits["memory_mb"]) << 20,
        "CORE": 0,
        "CPU": (int(limits["seconds"]) + 2) * int(limits["processes"]),  # the runner's clock ends all threads before
        "FSIZE": int(limits["file_mb"]) << 20,
        "NOFILE": 64,
        "NPROC": int(limits["processes"]) + other_tasks,
    }
    if sys.platform != "linux":
        del values["NPROC"]  # it counts all of the user's processes, and how many those are is not known there
    for name, value in values.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):  # macOS knows RLIMIT_AS but refuses it
            if sys.platform == "linux":
                raise


def end_descendants(child: int) -> None:
    """End what the program has started, where there is no namespace of processes that would have done so."""
    import contextlib
    import time

    with contextlib.suppress(OSError):  # nobody left in it
        os.killpg(child, SIGKILL)
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        for pid in descendants(os.getpid()):  # orphans become children of this process, their subreaper
            try:
                os.kill(pid, SIGKILL)
            except OSError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def processes() -> list[int]:
    """The ids of all processes, [] where there is no /proc."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []


def count_tasks(user: int) -> int:
    """The number of a user's threads, 0 where there is no /proc."""
    count = 0
    for pid in processes():
        try:
            if os.stat(f"/proc/{pid}").st_uid == user:
                count += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:  # has ended
            continue
    return count


def descendants(ancestor: int) -> set[int]:
    """The ids of all processes that descend from one; orphans have lost their ancestors."""
    children: dict[int, list[int]] = {}
    for pid in processes():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:  # has ended
            continue
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    new = [ancestor]
    while new:
        new = [pid for parent in new for pid in children.get(parent, ())]
        found.update(new)
    return found


def main() -> None:
    """Arguments: an empty folder, and the limits as name=value."""
    pairs = (argument.partition("=") for argument in sys.argv[2:])
    supervise(sys.argv[1], {name: float(value) for name, _, value in pairs})
