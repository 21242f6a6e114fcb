"""Results are never half written: everything goes to a temporary name and is then renamed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from asarm.errors import InputError


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


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value) -> None:
    """Write a JSON file as a whole."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json_lines(path: str | Path) -> list[dict]:
    """The lines of a JSON-lines file, [] if there is none. A last line without its end, left by an interrupted run, is
    dropped."""
    path = Path(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): choose another output_dir, or delete it") from error


def write_json_lines(path: str | Path, lines: list[dict]) -> None:
    """Write a JSON-lines file as a whole."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
