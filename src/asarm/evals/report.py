"""What people read of a run on stories: a Markdown table and a page of stories side by side; what such pages share."""

import html
from collections import defaultdict
from collections.abc import Sequence

from asarm.evals.rouge import MEASURES
from asarm.evals.stats import markdown_table, plus_minus, stated, with_interval
from asarm.evals.story_stats import MARGIN

WHAT_IS_MASKED = {"1/5": "the third of five sentences", "3/5": "the second, third and fourth of five sentences"}
SHOWN = 20


def story_table(metrics: dict) -> str:
    """The metrics as Markdown: scores and costs, length errors and comparisons of each task."""
    parts = []
    for task in dict.fromkeys(one["task"] for one in metrics["variants"]):
        variants = [one for one in metrics["variants"] if one["task"] == task]
        compared = [one for one in metrics["comparisons"] if one["task"] == task]
        parts += [_heading(task, variants[0]), _scores(variants), length_table(variants), _comparisons(compared)]
    return "\n".join(part for part in parts if part)


def _heading(task: str, variant: dict) -> str:
    trials = f"{variant['trials']} trial{'s' * (variant['trials'] > 1)}"
    return (
        f"**{task}**: {WHAT_IS_MASKED[task]} masked; {variant['stories']} stories, {trials}. ROUGE F1 x 100, mean and "
        "95 % bootstrap interval over stories.\n"
    )


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


def cost_cells(variant: dict) -> list[str]:
    """NFE, tokens per NFE and seconds of a variant."""
    rate = variant["tokens_per_nfe"]
    return [plus_minus(variant["nfe"], 1), plus_minus(rate, 2) if rate else "-", f"{variant['seconds']:.3f}"]


def length_table(variants: list[dict]) -> str:
    """How far the lengths of gaps were off, of the variants that had to find them; "" if none had to."""
    guessed = [one for one in variants if one["gap_length"] not in ("", "oracle")]
    if not guessed:
        return ""
    rows = [
        [
            one["model"],
            one["variant"],
            plus_minus(one["length_error"]["absolute"], 2),
            f"{one['length_error']['bias']['mean']:+.2f}",
        ]
        for one in guessed
    ]
    return "Length of the gap in tokens, against that of the right text.\n\n" + markdown_table(
        ["model", "variant", "absolute error", "bias"], rows
    )


def _comparisons(compared: list[dict]) -> str:
    if not compared:
        return ""
    rows = [
        [
            one["model"],
            one["variant"],
            one["against"],
            *(stated(one[key], 2) for key in ("rouge1", "rougeL")),
            f"{one['nfe']['difference']:+.1f}",
            f"{one['times_as_fast']:.2f}" if one["times_as_fast"] else "-",
        ]
        for one in compared
    ]
    return (
        "Differences paired by story: 95 % intervals, and whether the two are the same up to "
        f"{MARGIN} points (two one-sided t-tests at 0.05).\n\n"
        + markdown_table(["model", "variant", "against", "ROUGE-1", "ROUGE-L", "NFE", "times as fast"], rows)
    )


STYLE = """
body { font: 16px/1.5 Georgia, serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1, h2, th, .score { font-family: system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p.prompt { background: #f4f4f0; padding: .6rem .9rem; margin: .4rem 0; }
.gap { color: #b03a2e; font-weight: bold; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-top: 1px solid #ddd; }
th { font-size: .8rem; font-weight: normal; white-space: nowrap; color: #555; width: 1%; }
tr.gold td { background: #fdf6dd; }
td.score { font-size: .8rem; color: #777; white-space: nowrap; width: 1%; }
"""


def shown(text: str) -> str:
    """Text for HTML, on one line; characters that cannot be printed show as the replacement character."""
    line = " ".join(text.split())
    return html.escape("".join(letter if letter.isprintable() else "\ufffd" for letter in line))


def spread(indices: Sequence[int]) -> list[int]:
    """Twenty of them (SHOWN), spread evenly over those there are."""
    return list(indices[:: max(1, len(indices) // SHOWN)][:SHOWN])


def html_page(title: str, heading: str, introduction: str, body: str, style: str = STYLE) -> str:
    """A page that loads nothing from elsewhere. title, heading, introduction: plain text."""
    title, heading, introduction = map(html.escape, (title, heading, introduction))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{style}</style>\n</head>\n<body>\n<h1>{heading}</h1>\n<p>{introduction}</p>\n"
        f"{body}</body>\n</html>\n"
    )


def story_page(lines: list[dict]) -> str:
    """An HTML page of twenty stories: the prompt, the right text, and the first trial of each variant."""
    lines = [line for line in lines if line["trial"] == 0]
    indices = sorted({line["index"] for line in lines})
    some = spread(indices)
    order = list(dict.fromkeys((line["model"], line["variant"]) for line in lines))
    groups = defaultdict(lambda: defaultdict(list))
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
