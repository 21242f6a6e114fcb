"""Markdown tables and the numbers in them."""

import re
from collections.abc import Iterable

SCREEN = 40  # lines of a terminal
FEWEST = 20  # items from which intervals and tests say anything


def plus_minus(value: dict, digits: int) -> str:
    """Mean ± standard error, as `mean_se` gives them."""
    error = "" if value["se"] is None else f" ± {value['se']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{error}"


def with_interval(value: dict, digits: int, factor: float = 1.0) -> str:
    """`mean [low, high]`; the mean alone if it is of fewer than FEWEST values."""
    ends = value["interval_95"] if value["n"] >= FEWEST else None
    shown = "" if ends is None else f" [{', '.join(f'{factor * end:.{digits}f}' for end in ends)}]"
    return f"{factor * value['mean']:.{digits}f}{shown}"


def p_text(value: float | None) -> str:
    """A p-value for people; None is no test."""
    return "no test" if value is None else "p < 1e-4" if value < 1e-4 else f"p = {value:.2g}"


def stated(test: dict, digits: int) -> str:
    """What `equality` found: difference, interval, verdict."""
    interval = test["interval_95"]
    ends = "" if interval is None else f" [{interval[0]:+.{digits}f}, {interval[1]:+.{digits}f}]"
    return f"{test['difference']:+.{digits}f}{ends}: {test['verdict']}"


def share_difference(test: dict) -> str:
    """What `compare_shares` found: difference and interval in points of %, and p."""
    ends = test["interval_95"]
    interval = "" if ends is None else f" [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"
    return f"{100 * test['difference']:+.1f}{interval}, {p_text(test['p'])}"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _is_text(cells: Iterable[str]) -> bool:
    return all(cell[:1].isalpha() or cell[:1] == "/" for cell in cells)


def aligned_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up on a terminal, numbers on the right. The first column is text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    numbers = [index > 0 and not _is_text(row[index] for row in rows) for index in range(len(header))]

    def line(cells: list[str]) -> str:
        columns = zip(cells, widths, numbers, strict=True)
        padded = [cell.rjust(width) if number else cell.ljust(width) for cell, width, number in columns]
        return f"| {' | '.join(padded)} |"

    rules = [("-" * (width - 1), number) for width, number in zip(widths, numbers, strict=True)]
    rule = [f"{dashes}:" if number else f":{dashes}" for dashes, number in rules]
    return "\n".join(map(line, [header, rule, *rows])) + "\n"


def too_few(count: int, what: str) -> str:
    """The sentence that replaces statistics on fewer than FEWEST items; "" if there are enough."""
    verb = "are" if count != 1 else "is"
    return f"{counted(count, what)} {verb} too few for intervals and tests." if count < FEWEST else ""


def counted(count: int, what: str) -> str:
    """A number of things, such as `1 story` or `2 stories`. what: their name for several."""
    one = re.sub("ie$", "y", what.removesuffix("s"))
    return f"{count:,} {what if count != 1 else one}"


def aligned(text: str) -> str:
    """Text whose Markdown tables have their columns lined up on a terminal."""

    def line_up(table: re.Match) -> str:
        header, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in table[0].splitlines())
        return aligned_table(header, rows)

    return re.sub(r"(?:^\|.*\|\n)+", line_up, text, flags=re.MULTILINE)


def short_names(models: Iterable[str]) -> dict[str, str]:
    """What models are called in tables: folders and repositories by their last part, if that tells them apart."""
    names = list(dict.fromkeys(models))
    short = [re.sub(r"^[^@]*/(?=[^/])", "", name) for name in names]
    return dict(zip(names, short if len(set(short)) == len(names) else names, strict=True))
