"""Metrics of the decoding evaluation, from the lines of its samples.jsonl.

Names of variants are unique over models and lengths: where a run has several of either, they come first in the name.
"""

import math
from collections.abc import Sequence
from itertools import zip_longest

from asarm.evals.decoding.config import BATCH_1
from asarm.evals.stats import BASELINE, equality, mean_se, paired
from asarm.evals.tables import short_names

# Differences that count as none: 5 % of the perplexity (gen_nll is its logarithm), and 0.05 bits of entropy.
MARGINS = {"gen_nll": math.log(1.05), "entropy": 0.05}
SWEPT = ("k", "tolerance")

Samples = dict[int, dict]  # the lines of one variant, by the index of the text


def by_variant(samples: list[dict]) -> dict[str, Samples]:
    """{variant: {text index: sample}}, in the order of first appearance. The samples are of one model and length."""
    groups: dict[str, Samples] = {}
    for sample in samples:
        groups.setdefault(sample["variant"], {})[sample["index"]] = sample
    return groups


def by_model_and_length(samples: list[dict]) -> dict[tuple[str, int], list[dict]]:
    """{(model, length): samples}, in the order of first appearance."""
    groups: dict[tuple[str, int], list[dict]] = {}
    for sample in samples:
        groups.setdefault((sample["model"], sample["length"]), []).append(sample)
    return groups


def prefixes(groups: Sequence[tuple[str, int]]) -> dict[tuple[str, int], str]:
    """What comes before the names of variants of each (model, length): nothing, if a run has only one of them."""
    models, lengths = short_names(model for model, _ in groups), {length for _, length in groups}
    return {
        (model, length): (f"{models[model]} " if len(models) > 1 else "") + (f"N={length} " if len(lengths) > 1 else "")
        for model, length in groups
    }


def batch_seconds(samples: Samples) -> dict[int, float]:
    """Seconds a text of each batch. The texts of a batch share one measurement, so a batch is one observation."""
    return {sample["batch"]: sample["seconds"] for sample in samples.values()}


def summarise_variant(samples: Samples) -> dict:
    """Means, standard errors and n of one variant, its acceptance by index in the draft window, and how long windows
    were on the average."""
    rows = list(samples.values())
    proposed, accepted, windows = (summed([row[key] for row in rows]) for key in ("proposed", "accepted", "windows"))
    return {
        **{key: rows[0][key] for key in ("model", "length", "variant", "sampler", "k", "tolerance", "batch_size")},
        **costs_and_quality(rows, list(batch_seconds(samples).values())),
        "most_nfe_per_target": max(row["nfe"] / row["targets"] for row in rows),
        "proposed": proposed,
        "accepted": accepted,
        "mean_window": sum(size * count for size, count in enumerate(windows)) / sum(windows),
        "acceptance": [a / p if p else None for a, p in zip(accepted, proposed, strict=True)],
    }


def summed(counts: Sequence[Sequence[int]]) -> list[int]:
    """Counts of several texts, as one; those of some may end earlier."""
    return [sum(column) for column in zip_longest(*counts, fillvalue=0)]


def costs_and_quality(rows: Sequence[dict], seconds: Sequence[float]) -> dict:
    """What tables and plots show of some texts. seconds: those a text of their batches."""
    return {
        "nfe": mean_se([row["nfe"] for row in rows]),
        "nfe_per_target": mean_se([row["nfe"] / row["targets"] for row in rows]),
        "seconds": mean_se(seconds),
        "tokens_per_nfe": mean_se([row["targets"] / row["nfe"] for row in rows]),
        "perplexity": mean_se([row["gen_ppl"] for row in rows]),
        "entropy": mean_se([row["entropy"] for row in rows]),
    }


def compare(samples: Samples, baseline: Samples) -> dict:
    """One variant against the baseline, on the texts (for seconds: the batches) that both decoded."""

    def values(key: str) -> tuple[list[float], list[float]]:
        common = sorted(samples.keys() & baseline.keys())
        return [samples[index][key] for index in common], [baseline[index][key] for index in common]

    return {
        "nfe": paired(*values("nfe")),
        "seconds": compare_seconds(samples, baseline),
        **{key: equality(*values(key), margin=margin) for key, margin in MARGINS.items()},
    }


def compare_seconds(samples: Samples, baseline: Samples) -> dict:
    """Seconds a text of one variant against the baseline's, paired by batch."""
    mine, theirs = batch_seconds(samples), batch_seconds(baseline)
    batches = sorted(mine.keys() & theirs.keys())
    times, base_times = [mine[batch] for batch in batches], [theirs[batch] for batch in batches]
    return paired(times, base_times) | {"speedup": sum(base_times) / sum(times)}


def sweep(samples: list[dict], swept: str) -> dict[str, list[dict]]:
    """Costs and quality against k or the tolerance for each sampler that was run with several, on the texts decoded
    with all of them; seconds on the batches that have all of their texts there.

    The samples are of one model and length. The fields mean, se and n of a point are those of NFE.
    """
    other = SWEPT[1 - SWEPT.index(swept)]
    shared = {one["sampler"]: one[other] for one in samples if one["variant"] == one["sampler"]}
    groups: dict[str, dict[float, Samples]] = {}
    for one in samples:
        if not one["variant"].endswith(BATCH_1) and one[other] == shared.get(one["sampler"]):
            groups.setdefault(one["sampler"], {}).setdefault(one[swept], {})[one["index"]] = one
    result = {}
    for name, curves in groups.items():
        common = set.intersection(*(set(curve) for curve in curves.values()))
        if len(curves) > 1 and common:
            whole = set.intersection(*(_whole_batches(curve, common) for curve in curves.values()))
            result[name] = [{swept: value, **_point(curves[value], sorted(common), whole)} for value in sorted(curves)]
    return result


def _whole_batches(samples: Samples, texts: set[int]) -> set[int]:
    """The batches all of whose texts are among some texts."""
    every = {one["batch"] for one in samples.values()}
    return every - {one["batch"] for index, one in samples.items() if index not in texts}


def _point(samples: Samples, texts: list[int], batches: set[int]) -> dict:
    seconds = [value for batch, value in batch_seconds(samples).items() if batch in batches]
    measures = costs_and_quality([samples[index] for index in texts], seconds or [math.nan])
    return measures["nfe"] | measures | ({} if seconds else {"seconds": None})


def summarise(samples: list[dict]) -> dict:
    """Metrics of a whole evaluation: every variant, every comparison with sequential decoding, the sweeps.

    Variants are compared with the baseline of the same model and length.
    """
    groups = by_model_and_length(samples)
    result: dict[str, dict] = {"variants": {}, f"against_{BASELINE}": {}, **{f"{swept}_sweep": {} for swept in SWEPT}}
    for group, prefix in prefixes(list(groups)).items():
        variants = by_variant(groups[group])
        for name, rows in variants.items():
            if name.endswith(BATCH_1):
                continue
            found = result["variants"][prefix + name] = summarise_variant(rows)
            alone = variants.get(name + BATCH_1)
            if alone:
                found["seconds_batch_1"] = mean_se(list(batch_seconds(alone).values()))
            if name != BASELINE and BASELINE in variants:
                against = result[f"against_{BASELINE}"][prefix + name] = compare(rows, variants[BASELINE])
                if alone and BASELINE + BATCH_1 in variants:
                    against["seconds_batch_1"] = compare_seconds(alone, variants[BASELINE + BATCH_1])
        for swept in SWEPT:
            result[f"{swept}_sweep"] |= {prefix + name: points for name, points in sweep(groups[group], swept).items()}
    return result
