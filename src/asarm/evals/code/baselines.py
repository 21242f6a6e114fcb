"""Baselines that need no model: nothing, the most frequent visible line, and the canonical solution."""

from collections import Counter

from asarm.evals.code.data import Problem
from asarm.evals.code.examples import code_lines

INDENT = 4  # columns


def empty(problem: Problem) -> str:
    """Nothing."""
    return ""


def canonical(problem: Problem) -> str:
    """The canonical solution."""
    return problem.canonical_solution


def frequent_line(problem: Problem) -> str:
    """The line that occurs most often in the visible code; of several, the one nearest to the gap, above it first.

    At the beginning of a line it becomes a line of its own, indented like the line above, or one step more after a
    colon; elsewhere it continues the line, without indentation.
    """
    prompt, _, begun = problem.prompt.rpartition("\n")
    rest = problem.suffix.partition("\n")[2] if begun else problem.suffix  # without the end of the gap's own line
    lines = [line.strip() for line in (*reversed(code_lines(prompt)), *code_lines(rest))]
    if not lines:
        return ""
    line = Counter(lines).most_common(1)[0][0]  # of equals, the first
    if begun:
        return line
    return " " * indentation(problem.prompt) + line + ("" if problem.suffix.startswith("\n") else "\n")


def indentation(prompt: str) -> int:
    """Columns by which a line after the prompt may be indented."""
    lines = [line.expandtabs(8) for line in prompt.splitlines() if line.strip()]
    if not lines:
        return 0
    return len(lines[-1]) - len(lines[-1].lstrip()) + INDENT * lines[-1].rstrip().endswith(":")


BASELINES = {"frequent-line": frequent_line, "empty": empty, "canonical": canonical}
