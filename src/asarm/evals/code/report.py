"""What people read of a run on code: a Markdown table, and a page of problems with what was written, side by side."""

import html
import json
import math
from collections import defaultdict
from pathlib import Path

from asarm.evals.code.data import SPLITS, Problem
from asarm.evals.code.metrics import BASELINE, MEASURES, rates_of
from asarm.evals.html import STYLE, html_page, shown, spread
from asarm.evals.infilling.report import cost_cells, length_table
from asarm.evals.plots import plot_intervals
from asarm.evals.tables import markdown_table, p_text, with_interval

TRUE_OF_ALL = {"exact": "exact match", "stripped": "up to white space", "syntax": "valid syntax"}


def code_table(metrics: dict) -> str:
    """The metrics as Markdown: shares and costs, errors of length and comparisons of each split."""
    parts = [metrics["judging"] + ".\n"]
    for split in dict.fromkeys(one["split"] for one in metrics["variants"]):
        variants = [one for one in metrics["variants"] if one["split"] == split]
        compared = [one for one in metrics["comparisons"] if one["split"] == split]
        parts += [_heading(split, variants), _shares(variants), _cuts(variants)]
        parts += [length_table(variants), _comparisons(compared)]
    return "\n".join(part for part in parts if part)


def _heading(split: str, variants: list[dict]) -> str:
    samples = max(one["samples"] for one in variants)
    return (
        f"**{split}**: {SPLITS[split].masked} is to be written; {variants[0]['problems']} problems, {samples} "
        f"sample{'s' * (samples > 1)} of each. Shares in %, mean and 95 % bootstrap interval over problems.\n"
    )


def _shares(variants: list[dict]) -> str:
    rates = rates_of(variants)
    header = ["model", "variant", *rates, *TRUE_OF_ALL.values()]
    rows = [
        [
            one["model"],
            one["variant"],
            *(
                with_interval(one[key], 1, 100) if key in one else "-"
                for key in (*rates, "exact", "stripped", "syntax")
            ),
            *cost_cells(one),
        ]
        for one in variants
    ]
    return markdown_table([*header, "NFE", "tokens per NFE", "seconds a sample"], rows)


def _cuts(variants: list[dict]) -> str:
    cuts = [f"{one['cut']} of {one['variant']} ({one['model']})" for one in variants if one["cut"]]
    return f"Cut at their far ends, for the model takes no more tokens: {', '.join(cuts)}.\n" if cuts else ""


def _comparisons(compared: list[dict]) -> str:
    """Two tables: variants against sequential decoding, and against what needs no model."""
    if not compared:
        return ""
    measures = {key: label for key, label in MEASURES.items() if key in compared[0]}
    tests = sorted({one[key]["test"] for one in compared for key in measures})
    names = {"McNemar": "McNemar's exact test", "t-test": "a t-test of means over samples"}
    about = (
        "Differences paired by problem, in points of %, with 95 % bootstrap intervals; p by "
        f"{' or '.join(names[test] for test in tests)}.\n"
    )
    tables = [about]
    for costs_count in (True, False):
        some = [one for one in compared if (one["against"] == BASELINE) == costs_count]
        rows = [
            [*(one[key] for key in ("model", "variant", "against")), *(_difference(one[key]) for key in measures)]
            + costs_count * [f"{one['nfe']['difference']:+.1f}", f"{one['times_as_fast'] or math.nan:.2f}"]
            for one in some
        ]
        header = ["model", "variant", "against", *measures.values(), *costs_count * ["NFE", "times as fast"]]
        tables += [markdown_table(header, rows)] if rows else []
    return "\n".join(tables)


def _difference(test: dict) -> str:
    ends = test["interval_95"]
    interval = "" if ends is None else f" [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"
    return f"{100 * test['difference']:+.1f}{interval}, {p_text(test['p'])}"


CODE_STYLE = """
pre { font: 13px/1.4 ui-monospace, monospace; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.prompt { background: #f4f4f0; padding: .6rem .9rem; margin: .4rem 0; }
tr.passed td.score { color: #1e7d32; } tr.failed td.score { color: #b03a2e; }
td.score { white-space: normal; min-width: 11rem; }
"""


def shown_code(text: str) -> str:
    """Code for HTML, with its lines; characters that cannot be printed show as the replacement character."""
    return html.escape("".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text))


def code_page(lines: list[dict], problems: dict[str, list[Problem]]) -> str:
    """An HTML page of twenty problems of each split: the code, and the first sample of each variant, with verdicts."""
    groups = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["sample"] == 0:
            groups[line["split"]][line["index"]].append(line)
    body, counts = "", []
    order = list(dict.fromkeys((line["model"], line["variant"]) for line in lines))
    for split, of_split in groups.items():
        some = spread(sorted(of_split))
        counts.append(f"{len(some)} of {len(of_split)} problems of {split}")
        for index in some:
            ordered = sorted(of_split[index], key=lambda line: order.index((line["model"], line["variant"])))
            body += _card(problems[split][index], ordered)
    introduction = f"{', '.join(counts)}; the first sample of each variant, with its verdict on the right."
    heading = "Code: what was given, the right solution, what was filled in"
    return html_page("Code", heading, introduction, body, STYLE + CODE_STYLE)


def _card(problem: Problem, lines: list[dict]) -> str:
    """One problem: its code, then a row for the right solution and for each variant."""
    rows = "".join(
        f'<tr class="{_kind(line)}"><th>{shown(line["variant"])}<br>{shown(line["model"])}</th>'
        f'<td><pre>{shown_code(line["completion"])}</pre></td><td class="score">{shown(_verdict(line))}</td></tr>\n'
        for line in lines
    )
    return (
        f"<h2>{shown(problem.task_id)}</h2>\n"
        f'<pre class="prompt">{shown_code(problem.prompt)}<span class="gap">___</span>'
        f"{shown_code(problem.suffix)}</pre>\n"
        f'<table>\n<tr class="gold"><th>solution</th><td><pre>{shown_code(problem.canonical_solution)}</pre></td>'
        f"<td></td></tr>\n{rows}</table>\n"
    )


def _kind(line: dict) -> str:
    return {True: "passed", False: "failed"}.get(line.get("passed"), "unknown")


def _verdict(line: dict) -> str:
    """What is known of a completion, in a few words."""
    match = "exact match" if line["exact"] else "exact up to white space" if line["stripped"] else ""
    known = [line.get("result", ""), match, "" if line["syntax"] else "no valid syntax"]
    return "; ".join(filter(None, known)) or "valid syntax"


def plot_code(folder: str | Path) -> Path:
    """Shares of completions and their intervals by split, variant and model, from metrics.json: `code.png`."""
    folder = Path(folder)
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["variants"]
    labels = {key: f"{key}, %" for key in rates_of(found)} | {"exact": "exact match, %", "syntax": "valid syntax, %"}
    return plot_intervals(folder / "code.png", found, "split", labels, 100.0)
