"""Reports of a run on code: Markdown tables, a plot, and a page of problems with their completions side by side."""

import html
import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from asarm.evals.code.data import SPLITS, Problem
from asarm.evals.code.metrics import MEASURES, STATIC_MEASURES, pass_keys
from asarm.evals.html import STYLE, html_page, shown, spread
from asarm.evals.infilling.report import (
    by_group,
    comparison_lines,
    cost_cells,
    cost_differences,
    faster_samplers,
    length_table,
    model_lines,
    model_table,
    row_names,
    spread_table,
    summary_table,
)
from asarm.evals.plots import plot_intervals
from asarm.evals.stats import BASELINE
from asarm.evals.tables import counted, markdown_table, share_difference, too_few, with_interval

SUFFIX_PASS = "suffix_pass@1"


def code_table(metrics: dict) -> str:
    """The metrics as Markdown: for each split shares and costs, errors of length, and comparisons.

    metrics: those of `metrics.summarise`, and `judging`, a line on how programs were run.
    """
    parts = [metrics["judging"] + ".\n"]
    for split, variants, compared, models in by_group(metrics, "split"):
        few = too_few(variants[0]["problems"], "problems")
        about = "" if few else ", mean and 95 % bootstrap interval over problems"
        tests = [f"{few}\n"] if few else [_comparisons(compared), model_table(models, _measures(models), "problem")]
        parts += [f"{_heading(split, variants)} in %{about}.\n", _shares(variants), _truncated(variants)]
        parts += [_with_suffix(variants), spread_table(variants), length_table(variants), *tests]
    return "\n".join(part for part in parts if part)


def code_summary(metrics: dict) -> str:
    """What is printed at the end: the shares of each split, and a line on each comparison that matters."""
    parts = [metrics["judging"] + ".\n"]
    for split, variants, compared, models in by_group(metrics, "split"):
        few = too_few(variants[0]["problems"], "problems")
        shown = {key: key for key in pass_keys(variants)} | {key: STATIC_MEASURES[key] for key in ("exact", "syntax")}
        parts += [f"{_heading(split, variants)} in %.\n", summary_table(variants, shown, factor=100)]
        parts += filter(None, [_suffix_line(variants)])
        if few:
            parts.append(few)
        else:
            trivial = [one for one in compared if one["variant"] == BASELINE and one["against"] != BASELINE]
            parts += comparison_lines(faster_samplers(compared) + trivial, _measures(compared))
            parts += model_lines(models, _measures(models))
        parts.append("")
    return "\n".join(parts)


def _heading(split: str, variants: list[dict]) -> str:
    samples = counted(max(one["samples"] for one in variants), "samples")
    problems = counted(variants[0]["problems"], "problems")
    return f"**{split}**: {SPLITS[split].masked} is to be written; {problems}, {samples} of each. Shares"


def _shares(variants: list[dict]) -> str:
    rates = pass_keys(variants)
    header = ["model", "variant", *rates, *STATIC_MEASURES.values()]
    rows = [
        [
            one["model"],
            one["variant"],
            *(with_interval(one[key], 1, 100) if key in one else "-" for key in (*rates, *STATIC_MEASURES)),
            *cost_cells(one),
        ]
        for one in variants
    ]
    return markdown_table([*header, "NFE", "tokens per NFE", "seconds a sample"], rows)


def _with_suffix(variants: list[dict]) -> str:
    """pass@1 of the problems whose suffix is not empty, to be compared with results of the paper's script."""
    some = [one for one in variants if SUFFIX_PASS in one]
    if not some:
        return ""
    count, total = some[0][SUFFIX_PASS]["n"], some[0]["problems"]
    others = total - count
    rows = [
        [
            one["model"],
            one["variant"],
            with_interval(one[SUFFIX_PASS], 1, 100),
            f"{100 * one[SUFFIX_PASS]['mean'] * count / total:.1f}",
        ]
        for one in some
    ]
    return (
        f"pass@1 of the {count} of {total} problems whose suffix is not empty. The paper's script loses the "
        f"completions of the other {others}:\nthe last column counts them as failed.\n\n"
        + markdown_table(["model", "variant", f"pass@1 of {count}", f"{others} failed"], rows)
    )


def _suffix_line(variants: list[dict]) -> str:
    """The same pass@1 in a line; "" where there is none."""
    rates = [
        f"{100 * one[SUFFIX_PASS]['mean']:.1f} {name}"
        for name, one in zip(row_names(variants), variants, strict=True)
        if SUFFIX_PASS in one
    ]
    if not rates:
        return ""
    count = next(one[SUFFIX_PASS]["n"] for one in variants if SUFFIX_PASS in one)
    return f"pass@1 of the {count} problems whose suffix is not empty: {'; '.join(rates)}.\n"


def _truncated(variants: list[dict]) -> str:
    cuts = [f"{one['cut']} of {one['variant']} ({one['model']})" for one in variants if one["cut"]]
    return f"Cut at their far ends, as the model takes no more tokens: {', '.join(cuts)}.\n" if cuts else ""


def _comparisons(compared: list[dict]) -> str:
    """Two tables: variants against sequential decoding, and against the trivial baselines."""
    if not compared:
        return ""
    measures = _measures(compared)
    tests = sorted({one[key]["test"] for one in compared for key in MEASURES if key in one})
    names = {"McNemar": "McNemar's exact test", "t-test": "a t-test of means over samples"}
    about = (
        "Differences paired by problem, in points of %, with 95 % bootstrap intervals; p by "
        f"{' or '.join(names[test] for test in tests)}.\n"
    )
    tables = [about]
    for with_costs in (True, False):
        some = [one for one in compared if (one["against"] == BASELINE) == with_costs]
        rows = [
            [*(one[key] for key in ("model", "variant", "against")), *(text(one) for text in measures.values())]
            + with_costs * cost_differences(one)
            for one in some
        ]
        header = ["model", "variant", "against", *measures, *with_costs * ["NFE", "times as fast"]]
        tables += [markdown_table(header, rows)] if rows else []
    return "\n".join(tables)


def _measures(compared: list[dict]) -> dict[str, Callable[[dict], str]]:
    """{label: text of the difference}, of those of MEASURES that comparisons have: without pass@1 where programs were
    not run."""
    return {label: partial(_difference, key) for key, label in MEASURES.items() if compared and key in compared[0]}


def _difference(measure: str, comparison: dict) -> str:
    return share_difference(comparison[measure])


CODE_STYLE = """
pre { font: 13px/1.4 ui-monospace, monospace; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
pre.prompt { background: #f4f4f0; padding: .6rem .9rem; margin: .4rem 0; }
tr.passed td.score { color: #1e7d32; } tr.failed td.score { color: #b03a2e; }
td.score { white-space: normal; min-width: 11rem; }
"""


def escape_code(text: str) -> str:
    """Code as HTML, with its lines; characters that cannot be printed are replaced by U+FFFD."""
    return html.escape("".join(letter if letter.isprintable() or letter in "\n\t" else "\ufffd" for letter in text))


def code_page(lines: list[dict], problems: dict[str, list[Problem]]) -> str:
    """An HTML page of twenty problems of each split: the code, and the first sample of each variant, with verdicts.

    problems: by split.
    """
    groups: dict[str, dict[int, list[dict]]] = defaultdict(lambda: defaultdict(list))
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
            body += _problem_section(problems[split][index], ordered)
    introduction = f"{', '.join(counts)}; the first sample of each variant, with its verdict on the right."
    heading = "Code: what was given, the right solution, what was filled in"
    return html_page("Code", heading, introduction, body, STYLE + CODE_STYLE)


def _problem_section(problem: Problem, lines: list[dict]) -> str:
    """One problem: its code, then a row for the canonical solution and for each variant."""
    rows = "".join(
        f'<tr class="{_row_class(line)}"><th>{shown(line["variant"])}<br>{shown(line["model"])}</th>'
        f"<td><pre>{escape_code(line['completion'])}</pre></td>"
        f'<td class="score">{shown(_verdict_text(line))}</td></tr>\n'
        for line in lines
    )
    return (
        f"<h2>{shown(problem.task_id)}</h2>\n"
        f'<pre class="prompt">{escape_code(problem.prompt)}<span class="gap">___</span>'
        f"{escape_code(problem.suffix)}</pre>\n"
        f'<table>\n<tr class="gold"><th>solution</th><td><pre>{escape_code(problem.canonical_solution)}</pre></td>'
        f"<td></td></tr>\n{rows}</table>\n"
    )


def _row_class(line: dict) -> str:
    return ("passed" if line["passed"] else "failed") if "passed" in line else "unknown"


def _verdict_text(line: dict) -> str:
    """What is known of a completion, in a few words."""
    match = "exact match" if line["exact"] else "exact up to white space" if line["stripped"] else ""
    known = [line.get("result", ""), match, "" if line["syntax"] else "no valid syntax"]
    return "; ".join(filter(None, known)) or "valid syntax"


def plot_code(folder: str | Path) -> Path:
    """Shares of completions and their intervals by split, variant and model, from metrics.json: `code.png`."""
    folder = Path(folder)
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["variants"]
    labels = {key: f"{key}, %" for key in pass_keys(found)} | {"exact": "exact match, %", "syntax": "valid syntax, %"}
    return plot_intervals(folder / "code.png", found, "split", labels, 100.0)
