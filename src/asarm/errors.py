"""Errors that are the user's to mend: shown as one line, exit code 2."""


class InputError(ValueError):
    """Input that cannot be used. The message says what was wrong, with which value, and what to do."""
