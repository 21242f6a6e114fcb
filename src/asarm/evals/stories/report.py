"""Table, page of samples and plot of the stories evaluation."""

import json
from collections import defaultdict
from pathlib import Path

from asarm.evals.html import html_page, shown, spread
from asarm.evals.infilling.report import (
    by_group,
    comparison_lines,
    cost_cells,
    cost_differences,
    faster_samplers,
    length_table,
    model_lines,
    model_table,
    spread_table,
    summary_table,
)
from asarm.evals.plots import plot_intervals
from asarm.evals.stats import BASELINE
from asarm.evals.stories.metrics import AVERAGED, MARGIN, MEASURES
from asarm.evals.tables import counted, markdown_table, stated, too_few, with_interval

WHAT_IS_MASKED = {"1/5": "the third of five sentences", "3/5": "the second, third and fourth of five sentences"}
# What is compared in tables, {label: text of the difference}, and what is printed and plotted: the others of MEASURES
# are means of these, or the same for texts of one line.
COMPARED = {MEASURES[key]: lambda one, key=key: stated(one[key], 2) for key in ("rouge1", "rougeL")}
PRINTED = {key: MEASURES[key] for key in AVERAGED}


def story_table(metrics: dict) -> str:
    """The metrics as Markdown: scores and costs, length errors and comparisons of each task."""
    parts = []
    for task, variants, compared, models in by_group(metrics, "task"):
        few = too_few(variants[0]["stories"], "stories")
        about = "" if few else ", mean and 95 % bootstrap interval over stories"
        tests = [f"{few}\n"] if few else [_comparisons(compared), model_table(models, COMPARED, "story")]
        parts += [f"{_heading(task, variants[0])}{about}.\n", _scores(variants), spread_table(variants)]
        parts += [length_table(variants), *tests]
    return "\n".join(part for part in parts if part)


def story_summary(metrics: dict) -> str:
    """What is printed at the end: the scores of each task, and a line on each comparison that matters."""
    parts = []
    for task, variants, compared, models in by_group(metrics, "task"):
        few = too_few(variants[0]["stories"], "stories")
        parts += [f"{_heading(task, variants[0])}.\n", summary_table(variants, PRINTED)]
        if few:
            parts.append(few)
        else:
            searched = [one for one in compared if " search" in one["variant"] and one["against"] != BASELINE]
            rouge_l = {"ROUGE-L": COMPARED["ROUGE-L"]}
            parts += comparison_lines(faster_samplers(compared) + searched, rouge_l) + model_lines(models, rouge_l)
        parts.append("")
    return "\n".join(parts)


def _heading(task: str, variant: dict) -> str:
    stories, trials = counted(variant["stories"], "stories"), counted(variant["trials"], "trials")
    return f"**{task}**: {WHAT_IS_MASKED[task]} masked; {stories}, {trials}. ROUGE F1 x 100"


def _scores(variants: list[dict]) -> str:
    header = ["model", "variant", *MEASURES.values(), "NFE", "tokens per NFE", "seconds a story"]
    rows = [
        [
            one["model"],
            one["variant"],
            *(with_interval(one[key], 2) for key in MEASURES),
            *cost_cells(one),
        ]
        for one in variants
    ]
    return markdown_table(header, rows)


def _comparisons(compared: list[dict]) -> str:
    if not compared:
        return ""
    rows = [
        [
            one["model"],
            one["variant"],
            one["against"],
            *(text(one) for text in COMPARED.values()),
            *cost_differences(one),
        ]
        for one in compared
    ]
    return (
        "Differences paired by story: 95 % intervals, and whether the two are the same up to "
        f"{MARGIN} points (two one-sided t-tests at 0.05).\n\n"
        + markdown_table(["model", "variant", "against", *COMPARED, "NFE", "times as fast"], rows)
    )


def story_page(lines: list[dict]) -> str:
    """An HTML page of twenty stories: the prompt, the right text, and the first trial of each variant."""
    lines = [line for line in lines if line["trial"] == 0]
    indices = sorted({line["index"] for line in lines})
    some = spread(indices)
    order = list(dict.fromkeys((line["model"], line["variant"]) for line in lines))
    groups: dict[int, dict[str, list[dict]]] = defaultdict(lambda: defaultdict(list))
    for line in sorted(lines, key=lambda line: order.index((line["model"], line["variant"]))):
        groups[line["index"]][line["task"]].append(line)
    body = "".join(
        f"<h2>Story {index + 1}: {shown(next(iter(groups[index].values()))[0]['story'])}</h2>\n"
        + "".join(_card(groups[index][task]) for task in sorted(groups[index]))
        for index in some
    )
    return html_page(
        "Stories",
        "Stories: what was given, what the author wrote, what was filled in",
        f"{len(some)} of {len(indices)} stories, first trial; on the right ROUGE-L.",
        body,
    )


def _card(lines: list[dict]) -> str:
    """One story and task: the prompt, then a row for the right text and for each variant."""
    first = lines[0]
    rows = "".join(
        f"<tr><th>{shown(line['variant'])}<br>{shown(line['model'])}</th>"
        f'<td>{shown(line["text"])}</td><td class="score">{line["rougeL"]:.1f}</td></tr>\n'
        for line in lines
    )
    return (
        f'<p class="prompt">{shown(first["prefix"])} <span class="gap">___</span> {shown(first["suffix"])}</p>\n'
        f'<table>\n<tr class="gold"><th>author<br>{shown(first["task"])}</th>'
        f"<td>{shown(first['gold'])}</td><td></td></tr>\n"
        f"{rows}</table>\n"
    )


def plot_stories(folder: str | Path) -> Path:
    """Mean ROUGE and its interval by task, variant and model, from metrics.json: `rouge.png`."""
    folder = Path(folder)
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["variants"]
    labels = {key: f"{label}, F1 x 100" for key, label in PRINTED.items()}
    return plot_intervals(folder / "rouge.png", found, "task", labels)
