"""The child's side of `code_runner`, in two interpreters that know only the standard library, for one hostile program.

The supervisor takes from itself what the kernel lets it take (network, other processes, files), starts the second, and
outlives the program to end all that it left behind. The second runs the program, as a user without rights, and reports
on a pipe how that ended; it knows the first half of this file only.

The supervisor's standard input is a file, the secret token and then the program; its standard output is the pipe of the
report, and when the reader of that pipe is gone it ends everything; its standard error takes the program's output.
"""

import os
import sys

TOKEN_BYTES = 32
REPORT = 3  # the program's file descriptor of the report
READY = b"ready\n"  # the report's first line, before the program starts
MESSAGE_CHARACTERS = 300  # kept of an exception's message
LOOK_MILLISECONDS = 5  # how often the supervisor looks whether the program has ended
KILL = 9  # the module `signal` takes as long to import as the interpreter to start
FIRST_USER = 2_000_000_000  # a user id of its own for each sandbox of root's, far from those of people
NOBODY = 65534  # where user ids end below that
INNER_USER = 1000  # the user's name for itself in a user namespace: not 0, which would get its rights back by exec
# Linux: <sched.h>, <sys/mount.h>, <sys/prctl.h>, <linux/mount.h>
NEW_USER = 0x10000000
NEW_MOUNTS, NEW_PIDS, NEW_NETWORK, NEW_IPC, NEW_HOSTNAME = 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000
READ_ONLY, NO_SUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PARENT_DEATH_SIGNAL, DROP_RIGHT, CHILD_SUBREAPER, NO_NEW_RIGHTS = 1, 24, 36, 38
MOUNT_SETATTR, HERE, AT_RECURSIVE = 442, -100, 0x8000


# ---- the program


def run_program() -> None:
    """Run the program on standard input and report: READY, then the token if it ran to its end, else what went wrong.

    Between the program and the token stand a fresh interpreter that learns the token last, a stack that Python code
    cannot read, and an audit hook that refuses the ways around that.
    """
    program = os.pread(0, os.fstat(0).st_size, TOKEN_BYTES).decode("utf-8", "surrogatepass")
    send, getpid, leave, me = os.write, os.getpid, os._exit, os.getpid()
    sys.path[:] = [folder for folder in sys.path if folder]  # no imports from the program's folder
    sys.modules["__main__"] = type(sys)("__main__")
    sys.stdin = no_input()
    send(REPORT, READY)
    try:
        code = compile(program, "<string>", "exec", dont_inherit=True)
        refuse_introspection()
        # While the program runs, all that the next line still needs waits on the interpreter's value stack: it is in no
        # variable of a frame or module where the program could find it or put something else in its place. A forked
        # copy of the program has another process id and sends nothing.
        send(REPORT, take_token() * (me == (getpid, exec(code, {}))[0]()))
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures like all others
        send(REPORT, describe(error))
        leave(1)
    leave(0)  # neither threads nor atexit functions are waited for


def take_token() -> bytes:
    """The token; after that standard input is empty."""
    token = os.pread(0, TOKEN_BYTES, 0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return token


def refuse_introspection() -> None:
    """Refuse, until this process ends, what reads the interpreter's stack and memory or moves its program counter."""

    def hook(event, arguments):  # literals alone: names could be given another meaning
        if event in {
            "code.__new__",
            "gc.get_objects",
            "gc.get_referents",
            "gc.get_referrers",
            "sys._current_frames",
            "sys.monitoring.register_callback",
            "sys.setprofile",
            "sys.settrace",
        } or event.startswith("ctypes."):
            raise RuntimeError(event + " is not allowed here")
        if event == "import" and arguments[0] in {"ctypes", "_ctypes", "_testcapi", "_testinternalcapi"}:
            raise ImportError(arguments[0] + " is not allowed here")

    sys.addaudithook(hook)


def no_input():
    """A standard input of which every read raises OSError, as in OpenAI's runner."""
    import io

    class NoInput(io.StringIO):
        def read(self, *_):
            raise OSError("a program has no input")

        readline = readlines = read

        def readable(self):
            return False

    return NoInput()


def describe(error: BaseException) -> bytes:
    """`<type>: <first line of the message>` of an exception of the program, which may do anything when it is asked."""
    try:
        text = type(error).__name__
        message = str(error)[:MESSAGE_CHARACTERS].strip().partition("\n")[0]
        text = f"{text}: {message}" if message else text
        return text.encode("utf-8", "backslashreplace")
    except BaseException:
        return b"an exception that cannot be shown"


# ---- the supervisor


def supervise(folder: str, limits: dict[str, float]) -> None:
    """Run the program in a sandbox; end it, and all that it started, when it ends or the report's reader is gone.

    folder: an empty folder, where the sandbox's root is mounted or, where that is not allowed, the program works.
    limits: those of `code_runner.Limits`, by name. Exits with the program's exit code, or 128 + the signal that ended
    it.
    """
    import select

    kernel = Linux() if sys.platform == "linux" else None
    namespaces = kernel is not None and kernel.enter_namespaces()
    own_root = namespaces and kernel.build_root(folder, int(limits["file_mb"]))
    user, others = choose_user(own_root, namespaces)
    child = os.fork()
    if child == 0:
        try:
            start_program(kernel, folder, own_root, user, others, limits)
        except BaseException as error:  # a forked child must not go on as its parent
            os.write(2, f"{type(error).__name__}: {error}".encode())
        os._exit(127)
    os.close(0)  # the token is for the other interpreter alone
    reader = select.poll()
    reader.register(1, 0)  # tells of its end only
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended and not reader.poll(LOOK_MILLISECONDS):
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, KILL)
        status = os.waitpid(child, 0)[1]
    if not namespaces:  # else the kernel has ended all the others with the first
        end_descendants(child)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def choose_user(own_root: bool, namespaces: bool) -> tuple[int, int]:
    """The user id that root gives up its own for, 0 for none, and how many tasks of that user there are beside ours,
    which count towards the limit of processes."""
    if os.geteuid() != 0:
        release = tuple(int(part) for part in os.uname().release.split(".")[:2] if part.isdigit())
        counts_anew = namespaces and release >= (5, 14)  # as user namespaces do since then
        return 0, 0 if counts_anew else count_tasks(os.getuid())
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


def count_tasks(user: int) -> int:
    """How many threads a user has, 0 where there is no /proc."""
    count = 0
    for pid in processes():
        try:
            if os.stat(f"/proc/{pid}").st_uid == user:
                count += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:  # has ended
            continue
    return count


def processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []


def start_program(kernel, folder: str, own_root: bool, user: int, others: int, limits: dict[str, float]) -> None:
    """Become the interpreter that runs the program: own session, root, folder, limits, user and environment."""
    with open(__file__, encoding="utf-8") as file:
        program_half = file.read().partition("# ---- the supervisor")[0]  # compiled in half the time
    python = os.path.realpath(sys.executable)
    os.setsid()
    os.dup2(1, REPORT)
    os.dup2(2, 1)
    if kernel:
        kernel.die_first()
        kernel.give_up_rights()
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
    set_limits(limits, others)
    if kernel:
        kernel.die_with_parent()
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
    os.execve(python, [python, "-sSB", "-c", program_half + "run_program()"], environment)


def set_limits(limits: dict[str, float], others: int) -> None:
    """Limits of one process, but for that of processes, which counts all threads of the user."""
    import resource

    values = {
        "AS": int(limits["memory_mb"]) << 20,
        "CORE": 0,
        "CPU": int(limits["seconds"]) + 2,  # the clock on the wall ends it before
        "FSIZE": int(limits["file_mb"]) << 20,
        "NOFILE": 64,
        "NPROC": int(limits["processes"]) + others,
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
    """End what the program left behind, where there is no namespace of processes that would have done so."""
    import contextlib
    import time

    with contextlib.suppress(OSError):  # nobody left in it
        os.killpg(child, KILL)
    give_up = time.monotonic() + 5
    while time.monotonic() < give_up:
        for pid in descendants(os.getpid()):  # orphans become children of this process, their subreaper
            try:
                os.kill(pid, KILL)
            except OSError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return


def descendants(ancestor: int) -> set[int]:
    children = {}
    for pid in processes():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:  # has ended
            continue
        children.setdefault(parent, []).append(pid)
    found, new = set(), [ancestor]
    while new:
        new = [pid for parent in new for pid in children.get(parent, ())]
        found.update(new)
    return found


class Linux:
    """The system calls that Python has no functions for."""

    def __init__(self):
        import ctypes

        self.ctypes = ctypes
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.prctl(NO_NEW_RIGHTS, 1)  # nothing set-uid
        self.prctl(CHILD_SUBREAPER, 1)

    def prctl(self, option: int, value: int) -> None:
        self.libc.prctl(option, *(self.ctypes.c_ulong(number) for number in (value, 0, 0, 0)))

    def die_first(self) -> None:
        """Where the machine's memory runs out."""
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")
        except OSError:
            pass

    def give_up_rights(self) -> None:
        """From the next exec on, for root too."""
        for right in range(64):
            self.prctl(DROP_RIGHT, right)

    def die_with_parent(self) -> None:
        self.prctl(PARENT_DEATH_SIGNAL, KILL)

    def enter_namespaces(self) -> bool:
        """Namespaces of our own: mounts, network, IPC, host name and, for children, processes. Those who are not root
        need a user namespace for it; where the kernel refuses both, False."""
        wanted = NEW_MOUNTS | NEW_PIDS | NEW_NETWORK | NEW_IPC | NEW_HOSTNAME
        user, group = os.geteuid(), os.getegid()
        if self.libc.unshare(wanted) == 0:
            return True
        if self.libc.unshare(wanted | NEW_USER) != 0:
            return False
        maps = {"setgroups": "deny", "uid_map": f"{INNER_USER} {user} 1", "gid_map": f"{INNER_USER} {group} 1"}
        try:
            for name, text in maps.items():
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        except OSError:  # some systems give no rights in it: nothing can be mounted then, the rest holds
            pass
        return True

    def build_root(self, root: str, file_mb: int) -> bool:
        """Mount, in `root`, a root folder with nothing but the system's libraries, Python's, a few devices, all
        read-only, and an empty /tmp of `file_mb` megabytes in memory. False where the kernel refuses."""
        try:
            self.mount(None, "/", None, RECURSIVE | PRIVATE)
            self.mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEVICES, "mode=755,size=1m")
            for path in visible():
                self.show(path, root)
            for name in ("null", "zero", "random", "urandom"):
                self.show(f"/dev/{name}", root)
            os.mkdir(f"{root}/tmp")
            options = f"mode=1777,size={file_mb}m,nr_inodes=1024"
            self.mount("tmpfs", f"{root}/tmp", "tmpfs", NO_SUID | NO_DEVICES, options)
            self.mount(None, root, None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEVICES)
        except OSError:
            return False
        return True

    def show(self, path: str, root: str) -> None:
        """Let `path` be seen in `root`, read-only."""
        target = root + path
        if os.path.lexists(target) or not os.path.lexists(path):
            return
        os.makedirs(os.path.dirname(target), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), target)
            return
        if os.path.isdir(path):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
        self.mount(path, target, None, BIND | RECURSIVE)
        if not path.startswith("/dev/"):
            self.make_read_only(target)

    def make_read_only(self, target: str) -> None:
        attributes = (self.ctypes.c_uint64 * 4)(READ_ONLY | NO_SUID | NO_DEVICES)
        arguments = (MOUNT_SETATTR, HERE, target.encode(), AT_RECURSIVE, attributes, self.ctypes.sizeof(attributes))
        if self.libc.syscall(*map(self.widened, arguments)) != 0:  # before Linux 5.12
            kept = os.statvfs(target).f_flag & 0xF
            self.mount(None, target, None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEVICES | kept)

    def widened(self, argument):
        return self.ctypes.c_long(argument) if isinstance(argument, int) else argument

    def mount(self, source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        texts = [text and text.encode() for text in (source, target, kind, options)]
        if self.libc.mount(*texts[:3], self.ctypes.c_ulong(flags), texts[3]) != 0:
            error = self.ctypes.get_errno()
            raise OSError(error, os.strerror(error), target)


def visible() -> list[str]:
    """What a program may read: the system's libraries, the interpreter with its standard library, and the folders of
    the libraries that it has loaded. Parents come before what is in them."""
    paths = {"/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/etc/ld.so.cache", "/etc/localtime"}
    python = os.path.realpath(sys.executable)
    paths.add(python)
    for prefix in (sys.base_prefix, os.path.dirname(os.path.dirname(python))):
        paths.update(f"{prefix}/{name}" for name in ("lib", "lib64"))
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            path = line.rstrip("\n").partition("/")[2]
            if ".so" in path:
                paths.add(os.path.dirname(f"/{path}"))
    return sorted(paths)


def main() -> None:
    """Arguments: an empty folder, and the limits as name=value."""
    pairs = (argument.partition("=") for argument in sys.argv[2:])
    supervise(sys.argv[1], {name: float(value) for name, _, value in pairs})
