"""Local corpora: text, JSON lines, JSON, CSV, parquet and folders of source files, as documents in pieces."""

import io
import re
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TextIO

from asarm.data.rows import TEXT, check_text, lines_of, listed, opened, rows_of, text_of, text_value
from asarm.utils.errors import InputError

PIECE = 1 << 20  # characters that are tokenised at once, so that a document of any length takes little memory
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


def documents(
    path: Path, text_field: str | None = "", on_read: Callable[[int], object] | None = None
) -> Iterator[tuple[bool, str]]:
    """The documents of a file in pieces of about PIECE characters at most: (is the first of a document, piece).

    A text file is one document; other files (see `asarm.data.rows`) have one a row. Empty ones are left out.
    text_field: as in `find_field`. on_read: as in `opened`. Raises InputError, with the line, for what cannot be read,
    or has no such field.
    """
    with opened(path, on_read) as (file, kind):
        if kind == TEXT:
            line = 1
            for is_first, piece in pieces(text_of(file)):
                yield is_first, check_text(piece, path, line)
                line += piece.count("\n")
            return
        for where, name, value in _column(file, kind, path, text_field):
            if text := document_text(value, where, name):
                yield from pieces(io.StringIO(text))


def _column(
    file: io.BufferedIOBase, kind: str, path: Path, text_field: str | None
) -> Iterator[tuple[str, str, object]]:
    """(where, field, value) of the field with the text, of each row of an opened file."""
    for where, fields in rows_of(file, kind, path, lambda names, where: [find_field(names, text_field, where)]):
        for name, value in fields.items():
            yield where, name, value


def document_text(value: object, where: str, field: str) -> str:
    """A document of a column of texts, in which null stands for an empty one. See `text_value`."""
    return "" if value is None else text_value(value, where, field)


def read_text(path: str | Path) -> str:
    """The documents of a file as one text. Raises InputError as `documents` does, and if it is empty."""
    text = joined(documents(Path(path), None))
    if not text.strip():
        raise InputError(f"{path} is empty")
    return text


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file, each with its newline, or the texts of the rows of other files; empty ones, too.

    Raises InputError as `documents` does, for a text that is null, and if all are empty.
    """
    path = Path(path)
    with opened(path) as (file, kind):
        if kind != TEXT:
            found = [text_value(value, where, name) for where, name, value in _column(file, kind, path, None)]
            if not "".join(found).strip():
                raise InputError(f"{path} is empty")
            return found
    return list(io.StringIO(read_text(path), newline="\n"))


def joined(parts: Iterable[tuple[bool, str]]) -> str:
    """Documents in pieces (is the first of a document, piece) as one text in which each begins a line."""
    text: list[str] = []
    for is_first, piece in parts:
        if is_first and text and not text[-1].endswith("\n"):
            text.append("\n")
        text += [piece] if piece else []
    return "".join(text)


def read_texts(path: str | Path) -> list[tuple[str, str]]:
    """(where, text) of each line of a text file that is not blank, or of each row of other files.

    Raises InputError as `documents` does, for a text that is null, and if there are none.
    """
    path = Path(path)
    with opened(path) as (file, kind):
        if kind == TEXT:
            found = [(f"{path}, line {number}", line.removesuffix("\n")) for number, line in lines_of(file, path)]
        else:
            found = [(where, text_value(value, where, name)) for where, name, value in _column(file, kind, path, None)]
    if not found:
        raise InputError(f"{path} is empty")
    return found


def find_field(names: Iterable[str], wanted: str | None, where: str) -> str:
    """The field with the text: the one wanted, or else `text` or `content`. Raises InputError when there is none.

    wanted: None where no option names it.
    """
    names = list(names)
    for field in [wanted] if wanted else TEXT_FIELDS:
        if field in names:
            return field
    hint = "" if wanted is None else ": name one by text_field"
    raise InputError(f"{where} has no field {wanted or ' or '.join(TEXT_FIELDS)} (it has {listed(names)}){hint}")


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
