"""Verdicts on honest programs: which pass, how the others fail, and in which order."""

import gzip
import json

import pytest

from asarm.evals.code.sandbox.runner import Limits, check, check_all
from support.paths import SHARED
from support.sandbox import BENIGN, QUICK, needs

PROBLEMS = SHARED / "humaneval-infilling/HumanEval-SingleLineInfilling.jsonl.gz"


@pytest.mark.parametrize(
    ("program", "result"),
    [
        (BENIGN, "passed"),
        ("", "passed"),
        ("assert __name__ == 'builtins'", "passed"),  # as in OpenAI's runner, so no `if __name__ == '__main__'`
        ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()", "passed"),
        ("print('x' * 5_000_000, '\\udc80 \u00e9')", "passed"),
        ("import os, subprocess\nopen('f', 'w').write('x')\nos.remove('f')\nassert os.listdir() == []", "passed"),
        ("#" * 2_000_000, "passed"),
        ("assert 1 == 2", "failed: AssertionError"),
        ("assert 1 == 2, 'first\\nsecond'", "failed: AssertionError: first"),
        ("raise ValueError('\\x1b[2J' + 'long' * 1000)", "failed: ValueError: ?[2J" + "long" * 74),
        ("unknown", "failed: NameError: name 'unknown' is not defined"),
        ("def f(:", "failed: SyntaxError: invalid syntax (<string>, line 1)"),
        ("input()", "failed: OSError: a program has no input"),
        ("exit()", "failed: NameError: name 'exit' is not defined"),
        ("import sys\nsys.exit(0)", "failed: SystemExit: 0"),
        ("raise KeyboardInterrupt", "failed: KeyboardInterrupt"),
        ("import os\nos._exit(0)", "failed: exited with code 0 before its end"),
        ("import os\nos.write(2, b'one\\ntwo')\nos._exit(3)", "failed: exited with code 3 before its end: two"),
        ("while True: pass", "timed out"),
        ("while True:\n    try:\n        while True: pass\n    except BaseException: pass", "timed out"),
        ("import numpy", "failed: ModuleNotFoundError: No module named 'numpy'"),
        ("bytearray(10 << 30)", "failed: MemoryError"),
        (
            "class E(Exception):\n    def __str__(self): raise self\nraise E",
            "failed: an exception that cannot be shown",
        ),
    ],
)
def test_result(program, result):
    if "10 <<" in program:
        needs("memory")
    verdict = check(program, QUICK)
    assert verdict == (result == "passed", result)


def test_strange_sources_fail_and_nothing_else():
    for program in (
        "x = '\0'",
        "x = 1\udc80",
        "(" * 100_000,
        "-" * 100_000 + "1",
        "x = " + "[" * 90 + "]" * 90 + "\n1/0",
    ):
        verdict = check(program, QUICK)
        assert not verdict.passed
        assert verdict.result.startswith(("failed: ", "timed out"))


def test_order_is_that_of_completion_and_all_are_run():
    programs = ["import time\ntime.sleep(0.8)", "", "1 / 0"]
    verdicts = list(check_all(programs, workers=2))
    assert [index for index, _, _ in verdicts] == [1, 2, 0]
    assert [verdict.passed for _, verdict, _ in verdicts] == [True, False, True]


def test_verdicts_are_reproducible():
    program = "raise ValueError(hash('seed'), list({str(n) for n in range(20)}))"
    assert check(program) == check(program)


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0}, {"seconds": float("inf")}, {"seconds": float("nan")}, {"memory_mb": 1}, {"processes": 0}]
)
def test_limits_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)
    with pytest.raises(ValueError, match="workers"):
        next(check_all([BENIGN], workers=0))


def test_humaneval():
    """Canonical solutions pass; with the line left out or its work undone they do not."""
    if not PROBLEMS.exists():
        pytest.skip(f"no {PROBLEMS}")
    with gzip.open(PROBLEMS, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file][::50]

    def program(problem, completion):
        whole = problem["prompt"] + completion + problem["suffix"]
        return f"{whole}\n{problem['test']}\ncheck({problem['entry_point']})"

    canonical = [program(problem, problem["canonical_solution"]) for problem in problems]
    broken = [program(problem, " " * 4 + "raise NotImplementedError\n") for problem in problems]
    verdicts = {index: verdict for index, verdict, _ in check_all(canonical + broken)}
    assert [verdicts[index].result for index in range(len(problems))] == ["passed"] * len(problems)
    assert not any(verdicts[len(problems) + index].passed for index in range(len(problems)))
