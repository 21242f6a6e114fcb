"""The innermost interpreter: runs one untrusted program and reports how it ended.

`supervisor` passes the text of this file to an interpreter with `-c`, since from inside the sandbox no file of ours can
be read. Standard input is a file, the secret token and then the program. Imports are few: they cost start-up time.
"""

import os
import sys

TOKEN_BYTES = 32
REPORT_FD = 3  # file descriptor of the report, a pipe
READY = b"ready\n"  # the report's first line, sent before the program starts
MESSAGE_CHARACTERS = 300  # kept of an exception's message


def run_program() -> None:
    """Run the program on standard input and report: READY, then the token if it ran to its end, else what went wrong.

    Does not return.
    """
    send, leave = os.write, os._exit  # the program may patch `os`
    program = os.pread(0, os.fstat(0).st_size, TOKEN_BYTES).decode("utf-8", "surrogatepass")
    sys.path[:] = [folder for folder in sys.path if folder]  # no imports from the program's folder
    sys.modules["__main__"] = type(sys)("__main__")
    sys.stdin = no_input()
    send(REPORT_FD, READY)
    try:
        run_and_send_token(program)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures like all others
        send(REPORT_FD, describe(error))
        leave(1)
    leave(0)  # neither threads nor atexit functions are waited for


def run_and_send_token(program: str) -> None:
    """Run a program and, if it reaches its end, send the token on the report. The token is what makes a pass.

    Threat model: the program is hostile and runs in this very interpreter. It may patch every builtin and module, read
    and change the variables of all frames and modules, exit, fork, start threads, and write to every open file. It wins
    if the token is sent although the program has not run to its end.

    Defence: while the program runs, the token and all that sends it exist on the interpreter's value stack alone, to
    which Python code has no access. Operands are evaluated from left to right, so `os.write`, the descriptor, the token
    and the process id have been pushed when `exec` begins; no variable of a frame or module holds the token, and
    nothing that a variable holds is looked up afterwards. Besides,

    - the token is read last of all, and standard input is empty from then on (`take_token`);
    - an audit hook refuses what reads the stack or moves the program counter (`refuse_introspection`);
    - a forked copy of the program has another process id, and sends nothing.

    Not covered: objects that are equal to everything, and code that reads the expected answers in its caller's frame,
    since tests and tested code share the interpreter; bugs of CPython; /proc/self/mem, where the kernel does not let
    the sandbox hide it. These fake the verdict on the one program, and none of them leaves the sandbox.
    """
    send, getpid, process = os.write, os.getpid, os.getpid()
    code = compile(program, "<string>", "exec", dont_inherit=True)
    refuse_introspection()
    # (getpid, None)[0]() is called after the program, but was looked up before it.
    send(REPORT_FD, take_token() * (process == (getpid, exec(code, {}))[0]()))  # type: ignore[func-returns-value]


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
    """`<type>: <first line of the message>` of an exception of the program, whose methods may do anything."""
    try:
        text = type(error).__name__
        message = str(error)[:MESSAGE_CHARACTERS].strip().partition("\n")[0]
        text = f"{text}: {message}" if message else text
        return text.encode("utf-8", "backslashreplace")
    except BaseException:
        return b"an exception that cannot be shown"
