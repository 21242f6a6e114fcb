"""Readers of local files: text, JSON lines, parquet and folders of source files, as documents in pieces."""

import gzip
import io
import json
import logging
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import pyarrow.parquet

from asarm.utils.errors import InputError

logger = logging.getLogger(__name__)
PIECE = 1 << 20  # characters that are tokenised at once, so that a document of any length takes little memory
LONGEST_LINE = 1 << 24  # bytes of JSON that are read at once
TEXT_FIELDS = ("text", "content")
STDLIB = "stdlib"
STDLIB_PACKAGES = ("asyncio", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing",
                   "unittest", "urllib", "xml")  # fmt: skip


def corpus_files(paths: list[str], extensions: Iterable[str] = (".txt",)) -> list[Path]:
    """The files named, and the files below the folders named that have one of the extensions, sorted by folder.

    `stdlib` means some packages of Python's standard library. Raises InputError if there are no such files.
    """
    files = []
    for path in paths:
        if path == STDLIB and not Path(path).exists():
            library = Path(sysconfig.get_paths()["stdlib"])
            folders = [library / package for package in STDLIB_PACKAGES]
        elif not Path(path).exists():
            raise InputError(f"no such file or folder: {path}")
        elif Path(path).is_dir():
            folders = [Path(path)]
        else:
            files.append(Path(path))
            continue
        found = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        files += sorted(file for file in found if file.name.removesuffix(".gz").endswith(tuple(extensions)))
    if not files:
        raise InputError(f"no {', '.join('*' + end for end in extensions)} files in {', '.join(map(str, paths))}")
    return files


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises InputError when it cannot be read, is not UTF-8 or is empty."""
    text = "".join(piece for _, piece in documents(Path(path), as_text=True))
    if not text.strip():
        raise InputError(f"{path} is empty")
    return text


def documents(path: Path, text_field: str = "", as_text: bool = False) -> Iterator[tuple[bool, str]]:
    """The documents of a file in pieces of about PIECE characters at most: (is the first of a document, piece).

    A text file is one document; .jsonl and .parquet files (unless as_text) have one per line or row. Raises InputError,
    with the line, for what cannot be read, is not UTF-8 or JSON, or has no such field.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    try:
        if kind == ".parquet" and not as_text:
            yield from _parquet_documents(path, text_field)
        elif kind == ".jsonl" and not as_text:
            yield from _json_documents(path, text_field)
        else:
            with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
                yield from pieces(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {_first_wrong_byte(path)}") from error
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _first_wrong_byte(path: Path) -> str:
    """Value and offset of the first byte of a file that is not UTF-8."""
    offset = 0
    with _open(path) as file:
        for line in file:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"{line[error.start]:#x} at {offset + error.start}"
            offset += len(line)
    return "at its end"


def _json_documents(path: Path, text_field: str) -> Iterator[tuple[bool, str]]:
    with _open(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                logger.warning("line %d of %s is left out: it is over %d bytes", number, path, LONGEST_LINE)
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                raise
            except ValueError as error:
                raise InputError(f"line {number} of {path} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"line {number} of {path} is no JSON object")
            text = row.get(find_field(row, text_field, f"line {number} of {path}"))
            if not isinstance(text, str):
                raise InputError(f"line {number} of {path} has no text in its field, but {str(text)[:40]!r}")
            yield from pieces(io.StringIO(text))


def _parquet_documents(path: Path, text_field: str) -> Iterator[tuple[bool, str]]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        field = find_field(file.schema_arrow.names, text_field, str(path))
        for batch in file.iter_batches(batch_size=64, columns=[field]):
            for text in batch.column(0).to_pylist():
                yield from pieces(io.StringIO(text or ""))
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is no parquet file that can be read: {str(error).splitlines()[0]}") from error


def find_field(names: Iterable[str], wanted: str, where: str) -> str:
    """The field with the text: the one wanted, or else `text` or `content`. Raises InputError when there is none."""
    names = list(names)
    for field in [wanted] if wanted else TEXT_FIELDS:
        if field in names:
            return field
    raise InputError(
        f"{where} has no field {wanted or ' or '.join(TEXT_FIELDS)} (it has {', '.join(names)}): name one by text_field"
    )


def pieces(file: TextIO) -> Iterator[tuple[bool, str]]:
    """A text file's characters in pieces: (is the first, piece). Cuts are before white space, where tokenizers cut
    anyway."""
    text, first = file.read(PIECE), True
    while more := file.read(PIECE):
        tail = max(0, len(text) - 4096)
        spaces = [match.start() for match in re.finditer(r"(?<=\S)\s", text[tail:])]
        cut = tail + spaces[-1] if spaces else len(text)
        yield first, text[:cut]
        text, first = text[cut:] + more, False
    yield first, text
