"""Metrics of the decoding evaluation, from the lines of its samples.jsonl."""

import math

from asarm.evals.stats import BASELINE, equality, mean_se, paired

# Differences that count as none: 5 % of the perplexity (gen_nll is its logarithm), and 0.05 bits of entropy.
MARGINS = {"gen_nll": math.log(1.05), "entropy": 0.05}


def by_variant(samples: list[dict]) -> dict[str, dict[int, dict]]:
    """{variant: {text index: sample}}, in the order of first appearance."""
    groups: dict[str, dict[int, dict]] = {}
    for sample in samples:
        groups.setdefault(sample["variant"], {})[sample["index"]] = sample
    return groups


def batch_seconds(samples: dict[int, dict]) -> dict[int, float]:
    """Seconds a text of each batch. The texts of a batch share one measurement, so a batch is one observation."""
    return {sample["batch"]: sample["seconds"] for sample in samples.values()}


def summarise_variant(samples: dict[int, dict]) -> dict:
    """Means, standard errors and n of one variant, and its acceptance by index in the draft window."""
    rows = list(samples.values())
    width = max(len(row["proposed"]) for row in rows)
    proposed, accepted = (
        [sum(row[key][index] for row in rows if index < len(row[key])) for index in range(width)]
        for key in ("proposed", "accepted")
    )
    return {
        "sampler": rows[0]["sampler"],
        "k": rows[0]["k"],
        "nfe": mean_se([row["nfe"] for row in rows]),
        "seconds": mean_se(list(batch_seconds(samples).values())),
        "tokens_per_nfe": mean_se([row["targets"] / row["nfe"] for row in rows]),
        "perplexity": mean_se([row["gen_ppl"] for row in rows]),
        "entropy": mean_se([row["entropy"] for row in rows]),
        "most_nfe_per_target": max(row["nfe"] / row["targets"] for row in rows),
        "proposed": proposed,
        "accepted": accepted,
        "acceptance": [a / p if p else None for a, p in zip(accepted, proposed, strict=True)],
    }


def compare(samples: dict[int, dict], baseline: dict[int, dict]) -> dict:
    """One variant against the baseline, on the texts (for seconds: the batches) that both decoded."""

    def values(key: str) -> tuple[list[float], list[float]]:
        common = sorted(samples.keys() & baseline.keys())
        return [samples[index][key] for index in common], [baseline[index][key] for index in common]

    mine, theirs = batch_seconds(samples), batch_seconds(baseline)
    batches = sorted(mine.keys() & theirs.keys())
    times, base_times = [mine[batch] for batch in batches], [theirs[batch] for batch in batches]
    return {
        "nfe": paired(*values("nfe")),
        "seconds": paired(times, base_times) | {"speedup": sum(base_times) / sum(times)},
        **{key: equality(*values(key), margin=margin) for key, margin in MARGINS.items()},
    }


def k_sweep(samples: list[dict]) -> dict[str, list[dict]]:
    """NFE against k for each sampler that was run with several k, on the texts decoded with all of them."""
    groups: dict[str, dict[int, dict[int, int]]] = {}
    for sample in samples:
        groups.setdefault(sample["sampler"], {}).setdefault(sample["k"], {})[sample["index"]] = sample["nfe"]
    result = {}
    for name, curves in groups.items():
        common = set.intersection(*(set(curve) for curve in curves.values()))
        if len(curves) > 1 and common:
            result[name] = [{"k": k} | mean_se([curves[k][index] for index in common]) for k in sorted(curves)]
    return result


def summarise(samples: list[dict]) -> dict:
    """Metrics of a whole evaluation: every variant, every comparison with sequential decoding, the sweep over k."""
    groups = by_variant(samples)
    others = [name for name in groups if name != BASELINE] if BASELINE in groups else []
    return {
        "variants": {name: summarise_variant(group) for name, group in groups.items()},
        f"against_{BASELINE}": {name: compare(groups[name], groups[BASELINE]) for name in others},
        "k_sweep": k_sweep(samples),
    }
