"""`InputError`: user errors, shown as one line, with exit code 2."""


class InputError(ValueError):
    """Input that cannot be used. The message says what is wrong, with which value, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(": ")
