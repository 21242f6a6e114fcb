"""Files from users: rows of JSON lines, JSON, CSV and parquet, and plain text. These rules hold for all of them.

- What a file is, its suffix says (without .gz) or else its first bytes. Rows are never read as plain text.
- Text is UTF-8. A byte order mark is left out; other encodings and NUL bytes are refused.
- A blank line is no row. A JSON file holds an object (or a text) a line, or a list of them.
- Lone surrogates, which JSON can write and UTF-8 cannot, become U+FFFD.
- What cannot be read, or is not of the type that it should be, is an InputError of one line with file and line.
"""

import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow.parquet

from asarm.utils.errors import InputError, first_line

logger = logging.getLogger(__name__)
LONGEST_LINE = 1 << 24  # characters of a line, or of a CSV file's cell, that are read at once
MESSAGE_NAMES = 200  # characters of all names in a message
TEXT, JSON, PARQUET = "text", "json", "parquet"
KINDS = {".jsonl": JSON, ".ndjson": JSON, ".json": JSON, ".csv": ",", ".tsv": "\t", ".parquet": PARQUET}
DELIMITERS = (",", "\t")  # a CSV file's kind is its delimiter
HEAD = 256  # first bytes that say what a file without a suffix is
JSON_HEAD = re.compile(rb'(\xef\xbb\xbf)?\s*(\{\s*"|\[\s*[{"])')
GZIP_HEAD, PARQUET_HEAD, UTF16_HEADS = b"\x1f\x8b", b"PAR1", (b"\xff\xfe", b"\xfe\xff")
NO_TEXT = re.compile("[\0\udc80-\udcff]")  # a NUL byte, and bytes that are not UTF-8, as `surrogateescape` reads them
SURROGATE = re.compile("[\ud800-\udfff]")
Choose = Callable[[Sequence[str], str], Sequence[str]]  # fields that are wanted, of those there are


class Row(NamedTuple):
    """where: its file and line, for messages. fields: its values by name."""

    where: str
    fields: dict[str, Any]


class _ReportingFile(io.FileIO):
    """A file that tells how many bytes are read."""

    def __init__(self, path: Path, on_read: Callable[[int], object]):
        super().__init__(path)
        self.on_read = on_read

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self.on_read(count)
        return count


@contextmanager
def opened(path: Path, on_read: Callable[[int], object] | None = None) -> Iterator[tuple[io.BufferedIOBase, str]]:
    """A file from its beginning, decompressed if need be, and its kind. Errors of reading it become InputError.

    on_read: is told how many bytes of the file were read, each time (not of parquet files, which pyarrow reads).
    """
    try:
        with ExitStack() as stack:
            raw = _ReportingFile(path, on_read) if on_read else io.FileIO(path)
            file: io.BufferedReader[Any] | gzip.GzipFile = stack.enter_context(io.BufferedReader(raw))
            if path.suffix == ".gz" or file.peek(2).startswith(GZIP_HEAD):
                file = stack.enter_context(gzip.GzipFile(fileobj=file))
            head = file.peek(HEAD)
            _refuse_utf16(head, path)
            yield file, _kind(path, head)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or first_line(error)}") from error


def _kind(path: Path, head: bytes) -> str:
    by_head = PARQUET if head.startswith(PARQUET_HEAD) else JSON if JSON_HEAD.match(head) else TEXT
    return KINDS.get(Path(path.name.removesuffix(".gz")).suffix.lower(), by_head)


def _refuse_utf16(head: bytes, where: str | Path) -> None:
    if head.startswith(UTF16_HEADS):
        raise InputError(f"{where} is UTF-16 text: convert it to UTF-8")


def text_of(file: io.BufferedIOBase, newline: str | None = None) -> io.TextIOWrapper:
    """A file as text, to be checked by `check_text`. newline: as in `open`; by default, all ends of lines are `\\n`."""
    return io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def check_text(text: str, where: str | Path, line: int = 1) -> str:
    """The text itself, which begins at a line of a file. Raises InputError if it was not UTF-8, or holds a NUL byte."""
    if found := NO_TEXT.search(text):
        line += text.count("\n", 0, found.start())
        raise InputError(f"{where} is not UTF-8 text: byte {ord(found[0]) & 0xFF:#04x} in line {line}")
    return text


def decode(data: bytes, where: str) -> str:
    """Bytes as text, by the same rules. where: what they are, for messages."""
    _refuse_utf16(data, where)
    return check_text(text_of(io.BytesIO(data)).read(), where)


def plain_text(path: str | Path) -> str:
    """The whole text of a file, as it is, whatever it holds."""
    with opened(Path(path)) as (file, _):
        return check_text(text_of(file).read(), path)


def lines_of(file: io.BufferedIOBase, path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers, from 1; longer ones than LONGEST_LINE are left out."""
    text, number = text_of(file), 0
    while line := text.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            logger.warning("line %d of %s is left out: it is over %d characters", number, path, LONGEST_LINE)
            while (rest := text.readline(LONGEST_LINE)) and not rest.endswith("\n"):
                pass
        elif line.strip():
            yield number, check_text(line, path, number)


def rows_of(file: io.BufferedIOBase, kind: str, path: Path, choose: Choose) -> Iterator[Row]:
    """The rows of an opened file, each with the chosen fields; a file without a known kind has JSON lines."""
    if kind == PARQUET:
        yield from _parquet_rows(file, path, choose)
    elif kind in DELIMITERS:
        yield from _csv_rows(file, path, choose, kind)
    else:
        for where, row in _json_rows(file, path):
            yield Row(where, {name: row[name] for name in choose(list(row), where)})


def _json_rows(file: io.BufferedIOBase, path: Path) -> Iterator[Row]:
    head = cast(Any, file).peek(HEAD).removeprefix(b"\xef\xbb\xbf")
    if head.lstrip().startswith(b"["):
        text = check_text(text_of(file).read(), path)
        values = ((f"{path}, item {number}", value) for number, value in enumerate(_parsed(text, path, 1), 1))
    else:
        values = (
            (f"{path}, line {number}", _parsed(line.rstrip(), path, number)) for number, line in lines_of(file, path)
        )
    for where, value in values:
        if not isinstance(value, dict | str):
            raise InputError(f"{where} is no JSON object, but {value!r:.60}")
        yield Row(where, {"text": value} if isinstance(value, str) else value)


def _parsed(text: str, path: Path, line: int) -> Any:
    """The JSON value of a text that begins at a line of a file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"{path}, line {line + error.lineno - 1} is no JSON: {error.msg} (column {error.colno})"
        hint = "; a JSON file holds an object a line, or a list of them" if line == error.lineno == 1 else ""
        raise InputError(message + hint) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists in lists
        raise InputError(f"{path}, line {line} is no JSON that can be read: {first_line(error)}") from error


def _csv_rows(file: io.BufferedIOBase, path: Path, choose: Choose, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_LINE)
    lines = (check_text(line, path, number) for number, line in enumerate(text_of(file, newline=""), 1))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        cells = (row for row in reader if any(cell.strip() for cell in row))
        names = next(cells, [])
        wanted = _chosen(names, path, choose) if names else []
        for row in cells:
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(names):
                raise InputError(f"{where} has {len(row)} cells, and the header {len(names)}")
            fields = dict(zip(names, row, strict=True))
            yield Row(where, {name: fields[name] for name in wanted})
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is no CSV that can be read: {error}") from error


def _parquet_rows(file: io.BufferedIOBase, path: Path, choose: Choose) -> Iterator[Row]:
    where: str | Path = path
    try:
        table = pyarrow.parquet.ParquetFile(io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else path)
        wanted, number = _chosen(table.schema_arrow.names, path, choose), 0
        for batch in table.iter_batches(batch_size=64, columns=wanted):
            columns = [batch.column(name) for name in wanted]
            for index in range(len(batch)):
                number += 1
                where = f"{path}, row {number}"
                yield Row(where, {name: column[index].as_py() for name, column in zip(wanted, columns, strict=True)})
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: byte {error.object[error.start]:#04x}") from error
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is no parquet file that can be read: {first_line(error)}") from error


def _chosen(names: Sequence[str], path: Path, choose: Choose) -> list[str]:
    """The fields that are wanted of a file's columns. Raises InputError for one that is there twice."""
    wanted = list(choose(names, str(path)))
    for name in wanted:
        if names.count(name) > 1:
            raise InputError(f"{path} has the column {name} {names.count(name)} times")
    return wanted


def well_formed(value: Any) -> Any:
    """A value of JSON whose texts have U+FFFD for lone surrogates."""
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [well_formed(one) for one in value]
    if isinstance(value, dict):
        return {name: well_formed(one) for name, one in value.items()}
    return value


def text_value(value: object, where: str, field: str) -> str:
    """The text of a field, with U+FFFD for lone surrogates. Raises InputError if it is of another type."""
    if not isinstance(value, str):
        shown = "null" if value is None else f"{value!r:.40} ({type(value).__name__})"
        raise InputError(f"{where}: the field {field} holds {shown}, not text")
    return cast(str, well_formed(value))


def checked_rows(rows: Iterable[Row], texts: Sequence[str], as_written: bool = False) -> Iterator[Row]:
    """Rows whose fields are checked. Raises InputError if one of `texts` is missing or of another type.

    as_written: whether lone surrogates stay.
    """
    for where, fields in rows:
        check_fields(list(fields), where, texts)
        for name in texts:
            text_value(fields[name], where, name)
        yield Row(where, fields if as_written else well_formed(fields))


def check_fields(names: Sequence[str], where: str, wanted: Iterable[str]) -> None:
    """Raise InputError if one of the wanted fields is not among the names."""
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"{where} has no field {', '.join(missing)} (it has {listed(names)})")


def listed(names: Iterable[str]) -> str:
    """Names in a message: on one line, and cut where they are very long."""
    text = " ".join(", ".join(names).split())
    return text if len(text) <= MESSAGE_NAMES else f"{text[:MESSAGE_NAMES]}..."


def read_rows(
    path: str | Path, texts: Sequence[str], others: Sequence[str] = (), as_written: bool = False
) -> list[Row]:
    """All rows of a file with all their fields.

    texts: fields that must be there and hold texts. others: fields that must be there. as_written: whether lone
    surrogates stay. Raises InputError for what does not keep the rules of this module, and if there are no rows.
    """

    def all_of(names: Sequence[str], where: str) -> Sequence[str]:
        check_fields(names, where, (*texts, *others))
        return names

    with opened(Path(path)) as (file, kind):
        found = list(checked_rows(rows_of(file, kind, Path(path), all_of), texts, as_written))
    if not found:
        raise InputError(f"{path} is empty")
    return found
