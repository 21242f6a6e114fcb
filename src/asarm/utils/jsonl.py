"""JSON lines: result files (`read_json_lines`, `write_json_lines`), and files from users, checked (`read_rows`)."""

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from asarm.utils.errors import InputError
from asarm.utils.files import write_text


def read_json_lines(path: str | Path) -> list[dict]:
    """The lines of a result file, [] if there is no such file.

    A last line without a newline, left by an interrupted run, is dropped. Raises InputError for other damage.
    """
    path = Path(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): choose another output_dir, or delete it") from error


def write_json_lines(path: str | Path, lines: list[dict]) -> None:
    """Write a result file atomically."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_rows(path: str | Path, wanted: Sequence[str]) -> list[dict]:
    """The objects of a user's JSON-lines file, which may be compressed by gzip. Blank lines are skipped.

    wanted: fields that must be strings. Raises InputError when there is no such file, it is damaged or empty, or, with
    the line, when a line is no JSON object or lacks one of the wanted fields.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8").split("\n")
    except FileNotFoundError as error:
        raise InputError(f"no such file: {path}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged or cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error.reason} at byte {error.start}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            rows.append(parse_row(line, where))
            for field in wanted:
                if not isinstance(rows[-1].get(field), str):
                    raise InputError(f"{where} has no field {field} with a text in it")
    if not rows:
        raise InputError(f"{path} is empty")
    return rows


def parse_row(line: str, where: str) -> dict:
    """The object in a line of JSON. Raises InputError, beginning with `where`, when there is none."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is no JSON object: {line[:60]}")
    return row
