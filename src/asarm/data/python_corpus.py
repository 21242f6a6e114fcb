"""Python source files of this installation as a corpus to train on, decontaminated and without near-duplicates.

Files are those of Python's standard library and of the installed packages. Tests, vendored and generated files are left
out, and so is every file that shares a long line, or the name and arguments of a function, with a problem of an
evaluation set (HumanEval). Of near-duplicates the first is kept. Short functions can be extracted from the files.
"""

import ast
import logging
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from asarm.data.rows import plain_text, read_rows
from asarm.utils.errors import InputError

logger = logging.getLogger(__name__)
UNWANTED_FOLDERS = {
    "test", "tests", "testing", "_test", "_tests", "testdata", "idle_test", "_vendor", "_vendored", "vendor",
    "vendored", "vendored_packages", "_internal_vendor", "lib2to3", "ensurepip", "__pycache__", "site-packages",
    "dist-packages",
}  # fmt: skip
UNWANTED_NAMES = re.compile(r"(^test_|_tests?\.py$|^tests?\.py$|^conftest\.py$|_pb2(_grpc)?\.py$|^_?version\.py$)")
GENERATED = re.compile(r"(auto-?matically|auto-?)?\s*generated (by|from|file)|do not edit|@generated", re.IGNORECASE)
HEAD = 2000  # first characters of a file, searched for a note that it is generated
SIZES = (400, 200_000)  # fewest and most characters of a file
LONGEST_LINE, MEAN_LINE = 400, 90  # characters; data has longer lines
FEWEST_LETTERS = 0.35  # share of letters; tables of numbers have fewer
SHARED_LINE = 40  # fewest characters, without white space, of a line that shows a copy from an evaluation set
SEEN_LINE = 12  # fewest characters, without white space, of lines that are compared between files
MAX_SEEN = 0.5  # share of a file's compared lines that earlier files may have, too
FUNCTION_LINES, FUNCTION_CHARACTERS = (4, 60), 2000  # fewest and most lines, and most characters, of a short function
MAX_DOCSTRING = 0.5  # share of a short function that may be docstring


@dataclass
class ExcludedCode:
    """Code that must not be trained on: long lines (without white space), and functions as name and arguments."""

    lines: set[str] = field(default_factory=set)
    signatures: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, paths: Iterable[str | Path]) -> "ExcludedCode":
        """From files of rows whose texts are code, as HumanEval's. Raises InputError for others."""
        found = cls()
        for path in paths:
            values = (value for row in read_rows(path, ()) for value in row.fields.values())
            for text in (value for value in values if isinstance(value, str)):
                found.lines.update(long_lines(text, SHARED_LINE))
                found.signatures.update(signatures(text))
        return found

    def overlaps(self, text: str) -> bool:
        """Whether a file has any of these lines or functions."""
        return not self.lines.isdisjoint(long_lines(text, SHARED_LINE)) or not self.signatures.isdisjoint(
            signatures(text)
        )


def long_lines(text: str, least: int) -> set[str]:
    """The lines of a text, without white space, that then have `least` characters or more."""
    lines = ("".join(line.split()) for line in text.splitlines())
    return {line for line in lines if len(line) >= least}


def signatures(text: str) -> set[str]:
    """Functions with an argument and a name of six letters or more, as `name(arguments)` without annotations."""
    found = set()
    for name, arguments in re.findall(r"^\s*def +([a-z_0-9]{6,})\((.*?)\)", text, re.MULTILINE):
        names = [re.split(r"[:=]", part)[0].strip() for part in re.sub(r"\[.*?\]", "", arguments).split(",")]
        if any(names) and names[0] not in ("self", "cls"):
            found.add(f"{name}({','.join(names)})")
    return found


def installed_files(folders: Iterable[str | Path] = ()) -> list[Path]:
    """The .py files of `folders` (the standard library and the installed packages, if there are none), sorted by path.

    Raises InputError for a folder that does not exist.
    """
    paths = sysconfig.get_paths()
    roots = [Path(folder) for folder in folders] or [Path(paths[name]) for name in ("stdlib", "purelib", "platlib")]
    files: set[Path] = set()
    for root in roots:
        if not root.is_dir():
            raise InputError(f"no such folder: {root}")
        files.update(path for path in root.rglob("*.py") if not UNWANTED_FOLDERS & set(path.relative_to(root).parts))
    return sorted(path for path in files if path.is_file() and not UNWANTED_NAMES.search(path.name))


def is_hand_written(text: str) -> bool:
    """Whether a text looks like code that a person wrote: valid Python of usual size and lines, and not generated."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not SIZES[0] <= len(text) <= SIZES[1] or GENERATED.search(text[:HEAD]):
        return False
    letters = sum(letter.isalpha() for letter in text) / len(text)
    longest, mean = max(map(len, lines)), sum(map(len, lines)) / len(lines)
    if longest > LONGEST_LINE or mean > MEAN_LINE or letters < FEWEST_LETTERS:
        return False
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def python_sources(files: Iterable[Path], excluded: ExcludedCode) -> Iterator[tuple[Path, str]]:
    """The files to train on, and their texts. Logs how many are left out, and why."""
    seen: set[int] = set()
    left_out = dict.fromkeys(("not UTF-8, generated, or no usual code", "of an evaluation set", "nearly alike"), 0)
    unusual, evaluated, alike = left_out
    for path in files:
        try:
            text = plain_text(path)
        except InputError:
            left_out[unusual] += 1
            continue
        if not is_hand_written(text):
            left_out[unusual] += 1
        elif excluded.overlaps(text):
            left_out[evaluated] += 1
        else:
            lines = set(map(hash, long_lines(text, SEEN_LINE)))
            if len(lines & seen) > MAX_SEEN * len(lines):
                left_out[alike] += 1
            else:
                seen |= lines
                yield path, text
    logger.info("left out: %s", ", ".join(f"{count} files {reason}" for reason, count in left_out.items()))


def short_functions(texts: Iterable[str]) -> list[str]:
    """The short functions of files, without decorators, each once, in a fixed random order.

    Methods are left out, as they refer to a class that is not shown; nested functions stay where they are.
    """
    found: dict[str, str] = {}
    for function in (function for text in texts for function in _functions(text)):
        found.setdefault("".join(function.split()), function)
    functions = list(found.values())
    random.Random(0).shuffle(functions)
    return functions


def _functions(text: str) -> Iterator[str]:
    """The short functions of a file that are not mostly docstring."""
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            function = "".join(lines[node.lineno - 1 : node.end_lineno])
            if _is_short(function) and len(ast.get_docstring(node) or "") <= MAX_DOCSTRING * len(function):
                yield function


def _is_short(function: str) -> bool:
    fewest, most = FUNCTION_LINES
    lines = function.count("\n") + (not function.endswith("\n"))
    return fewest <= lines <= most and len(function) <= FUNCTION_CHARACTERS
