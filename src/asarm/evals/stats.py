"""Means, intervals and paired tests of evaluation results."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

BASELINE = "sequential"
RESAMPLES = 2000

Group = dict[int, list[dict]]  # the lines of each text, by its index


def mean_se(values: ArrayLike) -> dict[str, float | int | None]:
    """Mean, its standard error (None for one value) and n."""
    values = np.asarray(values, dtype=float)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": float(values.mean()), "se": None if error is None else float(error), "n": len(values)}


def mean_sd(values: ArrayLike) -> dict[str, float | int]:
    """Mean and standard deviation (of the values themselves, not of their mean) of values [n], and n."""
    values = np.asarray(values, dtype=float)
    return {"mean": float(values.mean()), "sd": float(values.std()), "n": len(values)}


def mean_with_interval(values: Sequence[float]) -> dict:
    """Mean over texts, its 95 % bootstrap interval (texts are resampled) and n."""
    return {"mean": float(np.mean(values)), "interval_95": bootstrap_interval(values), "n": len(values)}


def paired(values: ArrayLike, baseline: ArrayLike) -> dict:
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


def equality(values: ArrayLike, baseline: ArrayLike, margin: float) -> dict:
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


def compare_shares(mine: Sequence[float], theirs: Sequence[float]) -> dict:
    """Paired comparison of values in [0, 1], one a text: the mean difference, its 95 % bootstrap interval, and p.

    test: McNemar's exact test where all values are 0 or 1, which counts the texts of which only one of the two was
    right (`only`: [mine, theirs]); with several samples of a text, a t-test of the differences of their means.
    """
    difference = (np.asarray(mine) - np.asarray(theirs)).tolist()
    kept = mean_with_interval(difference)
    kept["difference"] = kept.pop("mean")
    if not {*mine, *theirs} <= {0.0, 1.0}:
        return kept | {"test": "t-test", "p": paired(mine, theirs)["t_test_p"]}
    only = [
        sum(a > b for a, b in zip(mine, theirs, strict=True)),
        sum(a < b for a, b in zip(mine, theirs, strict=True)),
    ]
    p = float(stats.binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0
    return kept | {"test": "McNemar", "p": p, "only": only}


def bootstrap_interval(values: Sequence[float], resamples: int = RESAMPLES) -> list[float] | None:
    """95 % percentile interval of the mean of values [n], one a text; None for one text.

    Texts are resampled with all their trials, as the trials of a text are alike: a text's value is the mean over its
    trials, so that chance in both is in the interval.
    """
    if len(values) < 2:
        return None
    numbers, generator = np.asarray(values, dtype=float), np.random.default_rng(0)
    means = stats.bootstrap((numbers,), np.mean, n_resamples=resamples, method="percentile", batch=100, rng=generator)
    return [float(end) for end in means.confidence_interval]


def grouped(lines: list[dict], fields: Sequence[str]) -> dict[tuple, Group]:
    """{values of the fields: {index of the text: its lines}}, in the order of first appearance."""
    groups: dict[tuple, Group] = defaultdict(lambda: defaultdict(list))
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


def pairs_of_models(
    groups: dict[tuple[str, str, str], Group], field: str = "task"
) -> Iterator[tuple[dict[str, str], tuple[Group, Group]]]:
    """Each variant of every model beside the same variant of the first model that has it: names, and both groups.

    groups: lines by (task, model, variant). field: what the task is called in the names.
    """
    first: dict[tuple[str, str], str] = {}
    for (task, model, variant), group in groups.items():
        other = first.setdefault((task, variant), model)
        if other != model:
            names = {field: task, "model": model, "variant": variant, "against": other}
            yield names, (group, groups[task, other, variant])


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
