"""Results are never half written: everything goes to a temporary name and is then renamed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path


def write_whole(path: str | Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file or folder under a temporary name beside `path`, then put it in the place of `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial{path.suffix}")
    old = path.with_name(f".{path.name}.old")
    for leftover in (temporary, old):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    write(temporary)
    if path.is_dir():
        path.rename(old)
    temporary.rename(path)
    if old.is_dir():
        shutil.rmtree(old)


def write_json(path: str | Path, value) -> None:
    """Write a JSON file as a whole."""
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8"))
