"""From the lines of `samples.jsonl` to means, paired tests and tables. Nothing here knows of models."""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy import stats

BASELINE = "sequential"
# Differences that count as none: 5 % of the perplexity (gen_nll is its logarithm), and 0.05 bits of entropy.
MARGINS = {"gen_nll": math.log(1.05), "entropy": 0.05}
RESAMPLES = 2000

Group = dict[int, list[dict]]  # the lines of each text, by its index


def mean_se(values) -> dict[str, float | int | None]:
    """Mean, its standard error (None for one value) and n."""
    values = np.asarray(values, dtype=float)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "se": None if error is None else float(error), "n": len(values)}


def paired(values, baseline) -> dict:
    """Paired comparison of values - baseline [n] each: mean difference, its 95 % interval, t-test and Wilcoxon p.

    With fewer than 2 pairs there is no test, and the fields are None.
    """
    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    result = {"difference": float(difference.mean()), "n": len(difference)}
    if len(difference) < 2:
        return result | {"interval_95": None, "t_test_p": None, "wilcoxon_p": None}
    if np.ptp(difference) == 0:  # a constant shift leaves no variance to test against
        p = 1.0 if difference[0] == 0 else 0.0
        rank_p = 1.0 if difference[0] == 0 else float(stats.wilcoxon(difference).pvalue)
        return result | {"interval_95": [float(difference[0])] * 2, "t_test_p": p, "wilcoxon_p": rank_p}
    test = stats.ttest_1samp(difference, 0.0)
    interval = [float(end) for end in test.confidence_interval(0.95)]
    wilcoxon = stats.wilcoxon(difference)
    return result | {"interval_95": interval, "t_test_p": float(test.pvalue), "wilcoxon_p": float(wilcoxon.pvalue)}


def equality(values, baseline, margin: float) -> dict:
    """Are paired values the same as the baseline up to a margin? Two one-sided t-tests (TOST), and a statement.

    verdict: "same" if both one-sided tests reject a difference beyond the margin at 0.05; otherwise "different" if
    the 95 % interval leaves out 0; otherwise "undecided", which asks for more texts. ks_p: two-sample
    Kolmogorov-Smirnov test of the two distributions, which does not use the pairing.
    """
    result = paired(values, baseline) | {"margin": margin}
    if result["n"] < 2:
        return result | {"tost_p": None, "ks_p": None, "verdict": "undecided"}
    difference = np.asarray(values, dtype=float) - np.asarray(baseline, dtype=float)
    if np.ptp(difference) == 0:
        tost_p = 0.0 if abs(difference[0]) < margin else 1.0
    else:
        above = stats.ttest_1samp(difference, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(difference, margin, alternative="less").pvalue
        tost_p = float(max(above, below))
    low, high = result["interval_95"]
    verdict = "same" if tost_p < 0.05 else "undecided" if low <= 0 <= high else "different"
    ks = stats.ks_2samp(values, baseline, method="asymp")
    return result | {"tost_p": tost_p, "ks_p": float(ks.pvalue), "verdict": verdict}


def bootstrap_interval(values: Sequence[float], resamples: int = RESAMPLES) -> list[float] | None:
    """95 % percentile interval of the mean of values [n], one a text; None for one text.

    Texts are drawn anew with all their trials, for the trials of a text are alike: a text's value is the mean over its
    trials, so that chance in both is in the interval.
    """
    if len(values) < 2:
        return None
    values, generator = np.asarray(values, dtype=float), np.random.default_rng(0)
    means = stats.bootstrap((values,), np.mean, n_resamples=resamples, method="percentile", batch=100, rng=generator)
    return [float(end) for end in means.confidence_interval]


def grouped(lines: list[dict], fields: Sequence[str]) -> dict[tuple, Group]:
    """{values of the fields: {index of the text: its lines}}, in the order of first appearance."""
    groups = defaultdict(lambda: defaultdict(list))
    for line in lines:
        groups[tuple(line[field] for field in fields)][line["index"]].append(line)
    return groups


def item_means(group: Group, key: str) -> dict[int, float]:
    """{index of a text: mean of a field over its trials}."""
    return {index: float(np.mean([line[key] for line in group[index]])) for index in sorted(group)}


def paired_means(group: Group, other: Group, key: str) -> tuple[list[float], list[float]]:
    """Means of a field over the trials of each text that both groups have, in the order of the texts."""
    common = sorted(group.keys() & other.keys())
    mine, theirs = item_means(group, key), item_means(other, key)
    return [mine[index] for index in common], [theirs[index] for index in common]


def compare_costs(group: Group, other: Group) -> dict:
    """Function evaluations and time of one group against those of another, paired by text."""
    mine, theirs = (sum(some) for some in paired_means(group, other, "seconds"))
    return {
        "nfe": paired(*paired_means(group, other, "nfe")),
        "times_as_fast": theirs / mine if min(mine, theirs) > 0 else None,
    }


def length_error(lines: list[dict]) -> dict | None:
    """How far the gaps' lengths are from the right texts': mean absolute error and bias, in tokens."""
    errors = [line["length"] - line["gold_length"] for line in lines if line["length"] is not None]
    if not errors:
        return None
    return {"absolute": mean_se(np.abs(errors)), "bias": mean_se(errors)}


def costs(group: Group) -> dict:
    """What filling the gaps of a group cost, and how far their lengths were off."""
    lines = [line for some in group.values() for line in some]
    rates = [line["drawn"] / line["nfe"] for line in lines if line["nfe"]]
    return {
        "nfe": mean_se(list(item_means(group, "nfe").values())),
        "tokens_per_nfe": mean_se(rates) if rates else None,
        "seconds": mean_se(list(item_means(group, "seconds").values()))["mean"],
        "most_nfe_per_token": max((line["nfe"] / line["drawn"] for line in lines if line["drawn"]), default=None),
        "length_error": length_error(lines),
    }


def by_variant(samples: list[dict]) -> dict[str, dict[int, dict]]:
    """{variant: {text index: sample}}, in the order of first appearance."""
    groups = {}
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

    def values(key: str):
        common = sorted(samples.keys() & baseline.keys())
        return [samples[index][key] for index in common], [baseline[index][key] for index in common]

    times, base_times = batch_seconds(samples), batch_seconds(baseline)
    batches = sorted(times.keys() & base_times.keys())
    times, base_times = [times[batch] for batch in batches], [base_times[batch] for batch in batches]
    return {
        "nfe": paired(*values("nfe")),
        "seconds": paired(times, base_times) | {"speedup": sum(base_times) / sum(times)},
        **{key: equality(*values(key), margin) for key, margin in MARGINS.items()},
    }


def k_sweep(samples: list[dict]) -> dict[str, list[dict]]:
    """NFE against k for each sampler that was run with several k, on the texts decoded with all of them."""
    groups = {}
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


def plus_minus(value: dict, digits: int) -> str:
    """Mean ± standard error, as `mean_se` gives them."""
    error = "" if value["se"] is None else f" ± {value['se']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{error}"


def with_interval(value: dict, digits: int, factor: float = 1.0) -> str:
    """`mean [low, high]`."""
    ends = value["interval_95"]
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


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def table(metrics: dict) -> str:
    """The metrics as Markdown. Mean ± standard error over texts; seconds over batches."""
    # The runs of the sweep over k, which go by names of their own, have a table of their own.
    variants = {name: one for name, one in metrics["variants"].items() if name == one["sampler"]}
    comparisons = {name: one for name, one in metrics[f"against_{BASELINE}"].items() if name in variants}
    parts = [
        markdown_table(
            ["variant", "texts", "NFE", "tokens per NFE", "seconds a text", "generative perplexity", "entropy, bits"],
            [
                [
                    name,
                    str(one["nfe"]["n"]),
                    plus_minus(one["nfe"], 1),
                    plus_minus(one["tokens_per_nfe"], 3),
                    plus_minus(one["seconds"], 3),
                    plus_minus(one["perplexity"], 1),
                    plus_minus(one["entropy"], 3),
                ]
                for name, one in variants.items()
            ],
        )
    ]
    if comparisons:
        margins = ", ".join(f"{name} ± {margin:.3f}" for name, margin in MARGINS.items())
        parts += [
            f"Against {BASELINE}, paired by text (time: by batch): t-test p, 95 % intervals, and whether the two are "
            f"the same up to a margin (two one-sided tests at 0.05; margins: {margins}).\n",
            markdown_table(
                ["variant", "NFE", "times as fast", "log perplexity", "entropy"],
                [
                    [
                        name,
                        f"{one['nfe']['difference']:+.1f}, {p_text(one['nfe']['t_test_p'])}",
                        f"{one['seconds']['speedup']:.2f}, {p_text(one['seconds']['t_test_p'])}",
                        stated(one["gen_nll"], 3),
                        stated(one["entropy"], 3),
                    ]
                    for name, one in comparisons.items()
                ],
            ),
        ]
    drafting = {name: one["acceptance"] for name, one in variants.items() if one["acceptance"]}
    if drafting:
        width = max(map(len, drafting.values()))
        parts += [
            "Share of judged drafts that were accepted, by index in the window.\n",
            markdown_table(
                ["variant", *map(str, range(1, width + 1))],
                [
                    [
                        name,
                        *("-" if share is None else f"{share:.3f}" for share in shares),
                        *[""] * (width - len(shares)),
                    ]
                    for name, shares in drafting.items()
                ],
            ),
        ]
    sweep = metrics["k_sweep"]
    if sweep:
        curves = list(sweep.values())
        parts += [
            f"NFE a text by k, on {curves[0][0]['n']} of the texts.\n",
            markdown_table(
                ["variant", *(f"k = {point['k']}" for point in curves[0])],
                [[name, *(plus_minus(point, 1) for point in points)] for name, points in sweep.items()],
            ),
        ]
    return "\n".join(parts)
