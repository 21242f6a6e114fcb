"""Progress bars."""

import sys

from tqdm import tqdm


def update_seconds() -> float:
    """Seconds between two updates of a bar: often on a terminal, sparse lines in a log file."""
    return 0.5 if sys.stderr.isatty() else 30


def progress_bar(
    description: str,
    unit: str,
    total: int,
    done: int = 0,
    shown: bool = True,
    scaled: bool = False,
    delayed: bool = False,
) -> tqdm:
    """A bar on standard error. done: units that were done before, by an earlier run. shown: False for no bar. scaled:
    with k, M and G. delayed: no bar if it would not be updated."""
    return tqdm(
        total=total, initial=done, desc=description, unit=unit, mininterval=update_seconds(), disable=not shown,
        unit_scale=scaled, delay=update_seconds() if delayed else 0,
    )  # fmt: skip
