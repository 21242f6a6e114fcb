"""Parts of the tables that stories and code share."""

from collections.abc import Callable, Iterator, Mapping

from asarm.evals.infilling.config import NO_MODEL
from asarm.evals.stats import BASELINE
from asarm.evals.tables import aligned_table, markdown_table, plus_minus, with_interval
from asarm.sampling.registry import NAMED_SAMPLERS

SPECULATIVE = [name for name, changes in NAMED_SAMPLERS.items() if changes["sampler"] in ("assd", "fused")]


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


def by_group(metrics: dict, field: str) -> Iterator[tuple[str, list[dict], list[dict]]]:
    """Each value of a field (task, split) with its variants and their comparisons."""
    for group in dict.fromkeys(one[field] for one in metrics["variants"]):
        variants, compared = (
            [one for one in metrics[key] if one[field] == group] for key in ("variants", "comparisons")
        )
        yield group, variants, compared


def summary_table(variants: list[dict], measures: dict[str, str], factor: float = 1.0) -> str:
    """What is printed of some variants: the measures ({field: label}), and costs.

    A variant without a measure, or without cost, has - there.
    """
    several = len({one["model"] for one in variants} - {NO_MODEL}) > 1
    rows = []
    for one in variants:
        name = f"{one['variant']}, {one['model']}" if several and one["model"] != NO_MODEL else one["variant"]
        values = [with_interval(one[key], 1, factor) if key in one else "-" for key in measures]
        costs = [f"{one['nfe']['mean']:.1f}", f"{one['seconds']:.3f}"] if one["gap_length"] else ["-", "-"]
        rows.append([name, *values, *costs])
    return aligned_table(["variant", *measures.values(), "NFE", "seconds"], rows)


def comparison_lines(compared: list[dict], measures: Mapping[str, Callable[[dict], str]]) -> list[str]:
    """A line on each of some comparisons: what it costs and, for each measure, its difference.

    measures: {label: text of the difference}.
    """
    lines = []
    for one in compared:
        fast = f" and {one['times_as_fast']:.2f} times as fast" if one["times_as_fast"] else ""
        costs = [f"{one['nfe']['difference']:+.1f} NFE{fast}"] if one["against"] == BASELINE else []
        differences = [f"{label} {text(one)}" for label, text in measures.items()]
        lines.append(f"{one['variant']} against {one['against']}: " + "; ".join(costs + differences))
    return lines


def faster_samplers(compared: list[dict]) -> list[dict]:
    """The comparisons of speculative samplers with sequential decoding."""
    return [one for one in compared if one["variant"] in SPECULATIVE and one["against"] == BASELINE]
