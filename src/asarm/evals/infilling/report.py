"""Parts of the tables that stories and code share."""

from collections.abc import Callable, Iterator, Mapping

from asarm.evals.infilling.config import NO_MODEL
from asarm.evals.stats import BASELINE
from asarm.evals.tables import aligned_table, markdown_table, plus_minus, short_names, with_interval
from asarm.sampling.config import NAMED_SAMPLERS

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


def spread_table(variants: list[dict]) -> str:
    """How long gaps are and what they take, each as mean (standard deviation) over gaps and trials."""
    columns = {
        "tokens": "tokens", "gold_tokens": "of the right text", "words": "words", "gold_words": "of the right text",
        "nfe": "NFE",
    }  # fmt: skip
    rows = [
        [one["model"], one["variant"], *(_spread_cell(one["spread"].get(key)) for key in columns)] for one in variants
    ]
    return "Length of a gap, mean (standard deviation) over gaps and trials.\n\n" + markdown_table(
        ["model", "variant", *columns.values()], rows
    )


def _spread_cell(value: dict | None) -> str:
    return f"{value['mean']:.2f} ({value['sd']:.2f})" if value else "-"


def by_group(metrics: dict, field: str) -> Iterator[tuple[str, list[dict], list[dict], list[dict]]]:
    """Each value of a field (task, split) with its variants, their comparisons, and those of models."""
    for group in dict.fromkeys(one[field] for one in metrics["variants"]):
        variants, compared, models = (
            [one for one in metrics[key] if one[field] == group]
            for key in ("variants", "comparisons", "model_comparisons")
        )
        yield group, variants, compared, models


def summary_table(variants: list[dict], measures: dict[str, str], factor: float = 1.0) -> str:
    """What is printed of some variants: the measures ({field: label}), and costs.

    A variant without a measure, or without cost, has - there.
    """
    rows = []
    for name, one in zip(row_names(variants), variants, strict=True):
        values = [with_interval(one[key], 1, factor) if key in one else "-" for key in measures]
        costs = [f"{one['nfe']['mean']:.1f}", f"{one['seconds']:.3f}"] if one["gap_length"] else ["-", "-"]
        rows.append([name, *values, *costs])
    return aligned_table(["variant", *measures.values(), "NFE", "seconds"], rows)


def several_models(variants: list[dict]) -> bool:
    """Whether variants are of more than one model."""
    return len({one["model"] for one in variants} - {NO_MODEL}) > 1


def row_names(variants: list[dict]) -> list[str]:
    """The names of variants, with those of their models if there are several."""
    several, short = several_models(variants), short_names(one["model"] for one in variants)
    return [
        f"{one['variant']}, {short[one['model']]}" if several and one["model"] != NO_MODEL else one["variant"]
        for one in variants
    ]


def comparison_lines(compared: list[dict], measures: Mapping[str, Callable[[dict], str]]) -> list[str]:
    """A line on each of some comparisons: what it costs and, for each measure, its difference.

    measures: {label: text of the difference}.
    """
    lines, several = [], several_models(compared)
    for one in compared:
        fast = f" and {one['times_as_fast']:.2f} times as fast" if one["times_as_fast"] else ""
        costs = [f"{one['nfe']['difference']:+.1f} NFE{fast}"] if one["against"] == BASELINE else []
        differences = [f"{label} {text(one)}" for label, text in measures.items()]
        model = f", {one['model']}" if several else ""
        lines.append(f"{one['variant']} against {one['against']}{model}: " + "; ".join(costs + differences))
    return lines


def model_lines(models: list[dict], measures: Mapping[str, Callable[[dict], str]]) -> list[str]:
    """A line on each comparison of models under the first variant that they share. measures: as above."""
    return [
        f"{one['model']} against {one['against']}, {one['variant']}: "
        + "; ".join(f"{label} {text(one)}" for label, text in measures.items())
        for one in models
        if one["variant"] == models[0]["variant"]
    ]


def cost_differences(compared: dict) -> list[str]:
    """The cells of a comparison's costs: difference in NFE, and times as fast."""
    fast = compared["times_as_fast"]
    return [f"{compared['nfe']['difference']:+.1f}", f"{fast:.2f}" if fast else "-"]


def model_table(models: list[dict], measures: Mapping[str, Callable[[dict], str]], item: str) -> str:
    """Comparisons of models under the same variant; "" if there is one model. measures: as above. item: of what the
    pairs are."""
    if not models:
        return ""
    rows = [
        [
            one["variant"],
            one["model"],
            one["against"],
            *(text(one) for text in measures.values()),
            *cost_differences(one),
        ]
        for one in models
    ]
    return f"Differences between models under the same variant, paired by {item}.\n\n" + markdown_table(
        ["variant", "model", "against", *measures, "NFE", "times as fast"], rows
    )


def faster_samplers(compared: list[dict]) -> list[dict]:
    """The comparisons of speculative samplers with sequential decoding."""
    return [one for one in compared if one["variant"] in SPECULATIVE and one["against"] == BASELINE]
