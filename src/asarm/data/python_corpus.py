"""Python source files of this installation as a corpus to train on: written by hand, not evaluated on, and once each.

Files are those of Python's standard library and of the installed packages. Tests, vendored and generated files are left
out, and so is every file that shares a line of some length, or the name and signature of a function, with a problem of
an evaluation set (HumanEval). Of files that are nearly alike the first is kept. Short functions can be taken out of
them.
"""

import ast
import logging
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from asarm.utils.errors import InputError
from asarm.utils.jsonl import read_rows

logger = logging.getLogger(__name__)
UNWANTED_FOLDERS = {
    "test", "tests", "testing", "_test", "_tests", "testdata", "idle_test", "_vendor", "_vendored", "vendor",
    "vendored", "vendored_packages", "_internal_vendor", "lib2to3", "ensurepip", "__pycache__", "site-packages",
    "dist-packages",
}  # fmt: skip
UNWANTED_NAMES = re.compile(r"(^test_|_tests?\.py$|^tests?\.py$|^conftest\.py$|_pb2(_grpc)?\.py$|^_?version\.py$)")
GENERATED = re.compile(r"(auto-?matically|auto-?)?\s*generated (by|from|file)|do not edit|@generated", re.IGNORECASE)
HEAD = 2000  # characters in which a file says that it is generated
SIZES = (400, 200_000)  # characters of a file that is taken
LONGEST_LINE, MEAN_LINE = 400, 90  # longer ones are data
FEWEST_LETTERS = 0.35  # share of letters; tables of numbers have fewer
SHARED_LINE = 40  # characters, white space left out, from which a line that an evaluation holds too tells of a copy
SEEN_LINE = 12  # characters from which lines count when files are compared
FUNCTION_LINES, FUNCTION_CHARACTERS = (4, 60), 2000  # of a function that is taken
MOST_DOCSTRING = 0.5  # share of a function that its docstring may take
MOST_SEEN = 0.5  # share of such lines that other files may have had before


@dataclass
class Evaluation:
    """What must not be trained on: long lines (without white space), and functions as name and arguments."""

    lines: set[str] = field(default_factory=set)
    signatures: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, paths: Iterable[str | Path]) -> "Evaluation":
        """From JSON-lines files (also .gz) whose text fields hold code, as HumanEval's. InputError for other files."""
        found = cls()
        for path in paths:
            try:
                rows = read_rows(path, ())
            except InputError as error:
                raise InputError(f"cannot read the evaluation set {path}: {error}") from error
            for text in (value for row in rows for value in row.values() if isinstance(value, str)):
                found.lines.update(long_lines(text, SHARED_LINE))
                found.signatures.update(signatures(text))
        return found

    def holds(self, text: str) -> bool:
        """Whether a file holds any of it."""
        return not self.lines.isdisjoint(long_lines(text, SHARED_LINE)) or not self.signatures.isdisjoint(
            signatures(text)
        )


def long_lines(text: str, least: int) -> set[str]:
    """The lines of a text without their white space, those of at least so many characters."""
    lines = ("".join(line.split()) for line in text.splitlines())
    return {line for line in lines if len(line) >= least}


def signatures(text: str) -> set[str]:
    """Functions of at least one argument and a name of at least six letters, without annotations."""
    found = set()
    for name, arguments in re.findall(r"^\s*def +([a-z_0-9]{6,})\((.*?)\)", text, re.MULTILINE):
        names = [re.split(r"[:=]", part)[0].strip() for part in re.sub(r"\[.*?\]", "", arguments).split(",")]
        if any(names) and names[0] not in ("self", "cls"):
            found.add(f"{name}({','.join(names)})")
    return found


def installed_files(folders: Iterable[str | Path] = ()) -> list[Path]:
    """The .py files of the standard library and of the installed packages (or of other folders), sorted by path."""
    paths = sysconfig.get_paths()
    roots = [Path(folder) for folder in folders] or [Path(paths[name]) for name in ("stdlib", "purelib", "platlib")]
    files = set()
    for root in roots:
        if not root.is_dir():
            raise InputError(f"no such folder: {root}")
        files.update(path for path in root.rglob("*.py") if not UNWANTED_FOLDERS & set(path.relative_to(root).parts))
    return sorted(path for path in files if path.is_file() and not UNWANTED_NAMES.search(path.name))


def is_hand_written(text: str) -> bool:
    """Whether a text looks like code that a person wrote: of usual size and lines, not generated, and valid Python."""
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


def python_sources(files: Iterable[Path], evaluation: Evaluation) -> Iterator[tuple[Path, str]]:
    """The files that are trained on, and their texts. What is left out, and why, is logged."""
    seen: set[int] = set()
    left_out = dict.fromkeys(("not UTF-8, generated, or no usual code", "of an evaluation set", "nearly alike"), 0)
    unusual, evaluated, alike = left_out
    for path in files:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            left_out[unusual] += 1
            continue
        if not is_hand_written(text):
            left_out[unusual] += 1
        elif evaluation.holds(text):
            left_out[evaluated] += 1
        else:
            lines = set(map(hash, long_lines(text, SEEN_LINE)))
            if len(lines & seen) > MOST_SEEN * len(lines):
                left_out[alike] += 1
            else:
                seen |= lines
                yield path, text
    logger.info("left out: %s", ", ".join(f"{count} files {reason}" for reason, count in left_out.items()))


def short_functions(texts: Iterable[str]) -> list[str]:
    """The short functions of files, without decorators, each once, in random order (always the same).

    Methods are left out, as they speak of a class that is not in sight; functions inside of functions stay there.
    """
    found: dict[str, str] = {}
    for function in (function for text in texts for function in _functions(text)):
        found.setdefault("".join(function.split()), function)
    functions = list(found.values())
    random.Random(0).shuffle(functions)
    return functions


def _functions(text: str) -> Iterator[str]:
    """The short functions of a file of which at least half is code."""
    lines = text.splitlines(keepends=True)
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            function = "".join(lines[node.lineno - 1 : node.end_lineno])
            if _is_short(function) and len(ast.get_docstring(node) or "") <= MOST_DOCSTRING * len(function):
                yield function


def _is_short(function: str) -> bool:
    least, most = FUNCTION_LINES
    lines = function.count("\n") + (not function.endswith("\n"))
    return least <= lines <= most and len(function) <= FUNCTION_CHARACTERS
