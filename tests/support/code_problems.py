"""Problems of the code evaluation that tests share, made up or official, and a stand-in for the test runner."""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from asarm.cli.code import PRESETS
from asarm.evals.code.data import FIELDS, Problem
from asarm.evals.code.sandbox.runner import Limits, Verdict
from asarm.evals.infilling.example import InfillExample
from support.paths import SHARED

HUMANEVAL = SHARED / "humaneval-infilling"
OFFICIAL = sorted(HUMANEVAL.glob("*.jsonl.gz"))
needs_official = pytest.mark.skipif(not OFFICIAL, reason=f"no official problems in {HUMANEVAL}")
OWN = [Path(path) for path in PRESETS["tiny"]["problems"]]
SAMPLES, BATCH = 2, 2  # of the runs in tests


def problem_row(
    number: int, prompt: str, solution: str, suffix: str, prefix: str = "SingleLineInfilling", **changes: str
) -> dict[str, str]:
    """A row of a problem file, whose function is called f."""
    row = {
        "task_id": f"{prefix}/made/{number}/L1", "entry_point": "f", "prompt": prompt, "suffix": suffix,
        "canonical_solution": solution, "test": "def check(candidate):\n    assert candidate(1) == 2\n",
    }  # fmt: skip
    return row | changes


ROWS = [
    problem_row(0, "def f(a):\n", "    b = a + 1\n", "    return b\n"),
    problem_row(1, "def f(a):\n    b = 2\n", "    return b\n", ""),
    problem_row(2, "def f(a):\n    <b> = 'café'\n".replace("<b>", "b"), "    c = 2 * a\n", "    return c\n"),
    problem_row(
        3, "def f(a):\n    # " + "the <i>long</i> & winding road\n    # " * 4 + "ends\n", "    return a + 1\n", ""
    ),
]
SPAN_ROWS = [
    problem_row(0, "def f(a):\n    b = a", " + 1\n    ret", "urn b\n", "RandomSpanInfilling"),
    problem_row(1, "def f(a):\n    return ", "2", " * a\n", "RandomSpanInfilling"),
]


def infill_example(prefix: int = 0, reference: int = 1, suffix: int = 0, visible: Sequence[int] = ()) -> InfillExample:
    """An example whose parts have these numbers of tokens."""
    parts = {"prefix_tokens": [1] * prefix, "reference_tokens": [2] * reference, "suffix_tokens": [3] * suffix}
    return InfillExample(index=0, name="a", visible=list(visible), **parts)


def write_rows(path: Path, rows: Sequence[dict], compressed: bool = False) -> str:
    """A file of rows, as JSON lines."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if compressed else text)
    return str(path)


def problems_of(rows: Sequence[dict]) -> list[Problem]:
    """The problems of some rows."""
    return [Problem(index, **{field: row[field] for field in FIELDS}) for index, row in enumerate(rows)]


def fake_verdicts(programs: Sequence[str], limits: Limits, workers: int) -> Iterator[tuple[int, Verdict, float]]:
    """A runner that runs nothing: a program passes if it holds a canonical solution. The last one comes first."""
    right = {problem.program(problem.canonical_solution) for problem in problems_of(ROWS) + problems_of(SPAN_ROWS)}
    for index in reversed(range(len(programs))):
        passed = programs[index] in right
        yield index, Verdict(passed, "passed" if passed else "failed: AssertionError <x>"), 0.1
