"""Result files of JSON lines. Those of users are read by `asarm.data.rows`."""

import json
from pathlib import Path

from asarm.utils.errors import InputError
from asarm.utils.files import write_text


def read_json_lines(path: str | Path) -> list[dict]:
    """The lines of a result file, [] if there is no such file.

    A last line without a newline, left by an interrupted run, is dropped. Raises InputError for other damage.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): choose another output_dir, or delete it") from error


def write_json_lines(path: str | Path, lines: list[dict]) -> None:
    """Write a result file atomically."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
