"""How often a progress bar shows itself."""

import sys


def update_seconds() -> float:
    """Seconds between two updates: often on a terminal, sparse lines in a log file."""
    return 0.5 if sys.stderr.isatty() else 30
