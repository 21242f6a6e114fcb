"""Baselines that need no model."""

import pytest

from asarm.evals.code.baselines import frequent_line
from support.code_problems import problem_row, problems_of


@pytest.mark.parametrize(
    ("prompt", "suffix", "line"),
    [
        ("def f(a):\n    b = 1\n", "    b = 1\n    return b\n", "    b = 1\n"),
        ("def f(a):\n    for x in a:\n", "    return x\n", "        for x in a:\n"),  # the nearest one of equals
        ('def f(a):\n    """A.\n    A.\n    A.\n    """\n', "    return a\n", "    def f(a):\n"),
        ("def f(a):\n    # so\n    # so\n    b = a\n", "", "    b = a\n"),
        ("def f(a):\n    b = 1\n    c =", " 2\n    b = 1\n", "b = 1"),  # in a line, without the line's own pieces
        ("def f(a):\n", "\n    return a\n", "    def f(a):"),
        ("", "x = 1\n", "x = 1\n"),
        ("", "", ""),
    ],
)
def test_frequent_line(prompt, suffix, line):
    assert frequent_line(problems_of([problem_row(0, prompt, "pass", suffix)])[0]) == line
