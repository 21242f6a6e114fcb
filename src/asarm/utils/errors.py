"""`InputError`: user errors, shown as one line, with exit code 2; and what machines lack, said in the same way."""

import errno

MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # what torch says, on a GPU or a CPU
DISK = ("No space left on device", "Disk quota exceeded")


class InputError(ValueError):
    """Input that cannot be used. The message says what is wrong, with which value, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(": ")


def want_of_memory(error: BaseException) -> str:
    """What torch could not allocate, without its account of the GPU's memory, which follows in the same line."""
    return first_line(error).split(" GPU ")[0]


def shortage(error: BaseException) -> str | None:
    """What to say of an error for want of memory or disk, or of a number that is too large; None for other errors."""
    message = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(part in message for part in MEMORY)):
        return f"not enough memory ({want_of_memory(error)}): lower batch sizes and lengths, or take a smaller model"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(part in message for part in DISK):
        return f"the disk is full ({first_line(error)}): make room, and run the same command again"
    if isinstance(error, OverflowError):
        return f"a number is too large ({first_line(error)})"
    return None
