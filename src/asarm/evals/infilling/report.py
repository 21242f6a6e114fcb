"""Parts of the tables that stories and code share."""

from asarm.evals.tables import markdown_table, plus_minus


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
