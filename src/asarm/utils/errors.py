"""Errors that are the user's to mend: shown as one line, exit code 2."""


class InputError(ValueError):
    """Input that cannot be used. The message says what was wrong, with which value, and what to do."""


def first_line(error: Exception) -> str:
    """The first line of what another library's error says, or its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(": ")
