"""System calls of Linux for which Python has no functions: namespaces, mounts and process controls.

Runs in the supervisor's interpreter, which knows only the standard library.
"""

import os
import sys

SIGKILL = 9  # importing `signal` takes as long as starting the interpreter
INNER_USER = 1000  # the user's id in a user namespace: not 0, to which exec would give its rights back
# <sched.h>, <sys/mount.h>, <sys/prctl.h>, <linux/mount.h>
NEW_USER = 0x10000000
NEW_MOUNTS, NEW_PIDS, NEW_NETWORK, NEW_IPC, NEW_HOSTNAME = 0x20000, 0x20000000, 0x40000000, 0x8000000, 0x4000000
READ_ONLY, NO_SUID, NO_DEVICES, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PARENT_DEATH_SIGNAL, DROP_CAPABILITY, CHILD_SUBREAPER, NO_NEW_PRIVILEGES = 1, 24, 36, 38
MOUNT_SETATTR, CURRENT_FOLDER, AT_RECURSIVE = 442, -100, 0x8000


class Linux:
    """The system calls of this process. Making one gives up set-uid programs, and adopts orphaned descendants."""

    def __init__(self):
        import ctypes

        self.ctypes = ctypes
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.prctl(NO_NEW_PRIVILEGES, 1)
        self.prctl(CHILD_SUBREAPER, 1)

    def prctl(self, option: int, value: int) -> None:
        self.libc.prctl(option, *(self.ctypes.c_ulong(number) for number in (value, 0, 0, 0)))

    def prefer_for_oom_killer(self) -> None:
        """Be the first process to be ended when the machine runs out of memory."""
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("1000")
        except OSError:
            pass

    def drop_capabilities(self) -> None:
        """Have no capabilities from the next exec on, as root too."""
        for capability in range(64):
            self.prctl(DROP_CAPABILITY, capability)

    def die_with_parent(self) -> None:
        self.prctl(PARENT_DEATH_SIGNAL, SIGKILL)

    def enter_namespaces(self) -> bool:
        """Enter new namespaces of mounts, network, IPC, host name and, for children, processes.

        Those who are not root need a user namespace for it. False where the kernel refuses both.
        """
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
        except OSError:  # some systems give no rights in the namespace: nothing can be mounted then, the rest holds
            pass
        return True

    def build_root(self, root: str, file_mb: int) -> bool:
        """Mount a root folder in `root`: the system's and Python's libraries and a few devices, all read-only, and an
        empty /tmp of `file_mb` MiB in memory. False where the kernel refuses."""
        try:
            self.mount(None, "/", None, RECURSIVE | PRIVATE)
            self.mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEVICES, "mode=755,size=1m")
            for path in visible_paths():
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
        """Make `path` visible in `root`, read-only."""
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
        """Make a mount and all mounts below it read-only."""
        attributes = (self.ctypes.c_uint64 * 4)(READ_ONLY | NO_SUID | NO_DEVICES)
        size = self.ctypes.sizeof(attributes)
        arguments = (MOUNT_SETATTR, CURRENT_FOLDER, target.encode(), AT_RECURSIVE, attributes, size)
        if self.libc.syscall(*map(self.widened, arguments)) != 0:  # before Linux 5.12: this mount alone
            kept = os.statvfs(target).f_flag & 0xF
            self.mount(None, target, None, REMOUNT | BIND | READ_ONLY | NO_SUID | NO_DEVICES | kept)

    def widened(self, argument):
        """An argument of `syscall`, whose integers are C's long."""
        return self.ctypes.c_long(argument) if isinstance(argument, int) else argument

    def mount(self, source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
        """mount(2). Raises OSError."""
        texts = [text and text.encode() for text in (source, target, kind, options)]
        if self.libc.mount(*texts[:3], self.ctypes.c_ulong(flags), texts[3]) != 0:
            error = self.ctypes.get_errno()
            raise OSError(error, os.strerror(error), target)


def visible_paths() -> list[str]:
    """What a program may read, parents before what they contain: the system's libraries, the interpreter with its
    standard library, and the folders of the shared libraries that it has loaded."""
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
