"""Report of the language evaluation: accuracies, perplexities, comparisons of models and tables, from its lines."""

import math

import numpy as np
from scipy import stats

from asarm.evals.language.config import LIKELIHOOD
from asarm.evals.stats import (
    Group,
    bootstrap_interval,
    compare_shares,
    grouped,
    item_means,
    mean_sd,
    paired,
    paired_means,
    pairs_of_models,
)
from asarm.evals.tables import aligned, counted, markdown_table, share_difference, too_few, with_interval

RESAMPLES = 9999
SHARES = {"correct": "accuracy", "correct_norm": "normalised accuracy"}  # fields of lines that are true or false


def share(hits: list[bool]) -> dict[str, float | int | list[float]]:
    """Share of hits, its 95 % Wilson interval and n."""
    low, high = stats.binomtest(sum(hits), len(hits)).proportion_ci(0.95, method="wilson")
    return {"mean": sum(hits) / len(hits), "interval_95": [float(low), float(high)], "n": len(hits)}


def mean(values: list[float]) -> dict[str, float | int | list[float] | None]:
    """Mean, its 95 % bootstrap interval (None for one value) and n."""
    return {"mean": float(np.mean(values)), "interval_95": bootstrap_interval(values, RESAMPLES), "n": len(values)}


def perplexity(log_prob: dict) -> dict:
    """exp(-mean log-likelihood), and the same of its interval's ends."""
    ends = log_prob["interval_95"]
    interval = None if ends is None else [math.exp(-end) for end in reversed(ends)]
    return {"mean": math.exp(-log_prob["mean"]), "interval_95": interval, "n": log_prob["n"]}


def sampled_accuracy(group: Group) -> dict:
    """Share of hits of sampled words, the mean over trials, with what it is in each trial and, of several, the standard
    deviation of these.

    The interval is Wilson's for one trial, else from a bootstrap over passages, each with all of its trials.
    """
    lines = [line for some in group.values() for line in some]
    trials = sorted({line["trial"] for line in lines})
    by_trial = [float(np.mean([line["correct"] for line in lines if line["trial"] == trial])) for trial in trials]
    several = len(trials) > 1
    found = mean(list(item_means(group, "correct").values())) if several else share([x["correct"] for x in lines])
    return found | {"by_trial": by_trial, "sd": float(np.std(by_trial, ddof=1)) if several else None}


def summarise_variant(group: Group) -> dict:
    """Metrics of one task under one variant of a model.

    accuracy: LAMBADA's sampled words that are the gold ones; under `likelihood`, gold words that greedy decoding gives
    (as the harness counts), or HellaSwag's questions whose best ending is right, accuracy_norm by characters.
    log_prob: nats of a gold word; perplexity: exp of its negative mean; probability: the mean probability.
    spread: mean and standard deviation of the gap's tokens, and of function evaluations.
    """
    lines = [line for some in group.values() for line in some]
    result: dict = {"cut": sum(some[0]["cut"] > 0 for some in group.values())}
    if "nfe" in lines[0]:
        result["accuracy"] = sampled_accuracy(group)
        result["nfe"] = mean(list(item_means(group, "nfe").values()))
        result["seconds"] = float(np.mean([line["seconds"] for line in lines]))
    else:
        result["accuracy"] = share([line["correct"] for line in lines])
    if "correct_norm" in lines[0]:
        result["accuracy_norm"] = share([line["correct_norm"] for line in lines])
    if "log_prob" in lines[0]:
        result["log_prob"] = mean([line["log_prob"] for line in lines])
        result["perplexity"] = perplexity(result["log_prob"])
        result["probability"] = mean([math.exp(line["log_prob"]) for line in lines])
    if "tokens" in lines[0]:
        result["tokens"] = float(np.mean([line["tokens"] for line in lines]))
        result["spread"] = {key: mean_sd([x[key] for x in lines]) for key in ("tokens", "nfe") if key in lines[0]}
    return result


def compare_models(group: Group, other: Group) -> dict:
    """One model against another under the same variant, paired by passage or question."""
    fields = next(iter(group.values()))[0]
    found = {key: compare_shares(*paired_means(group, other, key)) for key in SHARES if key in fields}
    if "log_prob" in fields:
        found["log_prob"] = paired(*paired_means(group, other, "log_prob"))
    return found


def summarise(lines: list[dict]) -> dict:
    """{task: {variant: metrics}}, in the order of first appearance.

    With several models, the keys of variants are `variant, model`, and model_comparisons has a comparison of each with
    the first.
    """
    groups = grouped(lines, ("task", "model", "variant"))
    several = len({model for _, model, _ in groups}) > 1
    metrics: dict = {}
    for (task, model, variant), group in groups.items():
        name = f"{variant}, {model}" if several else variant
        metrics.setdefault(task, {})[name] = {"model": model, "variant": variant} | summarise_variant(group)
    if several:
        metrics["model_comparisons"] = [names | compare_models(*pair) for names, pair in pairs_of_models(groups)]
    return metrics


def table(metrics: dict) -> str:
    """The metrics as Markdown, with 95 % intervals."""
    parts, compared = [], metrics.get("model_comparisons", [])
    for task, make, what in (("lambada", lambada_parts, "passage"), ("hellaswag", hellaswag_parts, "question")):
        if task in metrics:
            variants = list(metrics[task].values())
            parts += make(variants)
            some = [one for one in compared if one["task"] == task]
            if some and not too_few(variants[0]["accuracy"]["n"], what):
                parts.append(_model_table(some, what))
    return "\n".join(parts)


def summary(metrics: dict) -> str:
    """What is printed at the end: all of the table, which fits a screen."""
    return aligned(table(metrics))


def lambada_parts(variants: list[dict]) -> list[str]:
    """What is said of LAMBADA: the exact likelihood of each model, then what was sampled."""
    exact = [one for one in variants if one["variant"] == LIKELIHOOD]
    sampled = [one for one in variants if one["variant"] != LIKELIHOOD]
    count, model = exact[0]["accuracy"]["n"], ["model"] * (len(exact) > 1)
    lengths = ", ".join(f"{one['tokens']:.2f}" for one in exact)
    parts = [
        f"LAMBADA, last word of {counted(count, 'passages')} ({lengths} tokens a word), by its exact likelihood. "
        f"{_intervals(count, 'passages')}{_cut(exact, count)}\n",
        markdown_table(
            [*model, "accuracy (greedy), %", "log-likelihood, nats", "perplexity of the word", "mean probability, %"],
            [
                [
                    *(one[key] for key in model),
                    with_interval(one["accuracy"], 2, 100),
                    with_interval(one["log_prob"], 3),
                    with_interval(one["perplexity"], 1),
                    with_interval(one["probability"], 2, 100),
                ]
                for one in exact
            ],
        ),
    ]
    if sampled:
        trials = max(len(one["accuracy"]["by_trial"]) for one in sampled)
        spread = ["standard deviation of trials"] * (trials > 1)
        times = f", {trials} times (mean over trials, intervals by bootstrap over passages)" * (trials > 1)
        parts += [
            f"The same words sampled{times}; the gap has as many tokens as the gold word (oracle).\n",
            markdown_table(
                [*model, "sampler", "exact match, %", *spread, "NFE a word", "seconds a passage"],
                [
                    [
                        *(one[key] for key in model),
                        one["variant"],
                        with_interval(one["accuracy"], 2, 100),
                        *(_deviation(one["accuracy"]["sd"]) for _ in spread),
                        with_interval(one["nfe"], 2),
                        f"{one['seconds']:.3f}",
                    ]
                    for one in sampled
                ],
            ),
        ]
    return parts


def hellaswag_parts(variants: list[dict]) -> list[str]:
    """What is said of HellaSwag."""
    count, model = variants[0]["accuracy"]["n"], ["model"] * (len(variants) > 1)
    questions = counted(count, "questions")
    return [
        f"HellaSwag, {questions}: the ending with the highest joint log-likelihood given the context.",
        f"Normalised: divided by the ending's characters. {_intervals(count, 'questions')}{_cut(variants, count)}\n",
        markdown_table(
            [*model, "accuracy, %", "normalised accuracy, %"],
            [
                [
                    *(one[key] for key in model),
                    *(with_interval(one[key], 2, 100) for key in ("accuracy", "accuracy_norm")),
                ]
                for one in variants
            ],
        ),
    ]


def _model_table(compared: list[dict], what: str) -> str:
    """Comparisons of models in one task. what: of what the pairs are."""
    shares = {key: label for key, label in SHARES.items() if key in compared[0]}
    nats = any("log_prob" in one for one in compared)
    rows = [
        [
            *(one[key] for key in ("variant", "model", "against")),
            *(share_difference(one[key]) for key in shares),
            *([_nats(one.get("log_prob"))] * nats),
        ]
        for one in compared
    ]
    header = ["variant", "model", "against", *shares.values(), *["log-likelihood, nats"] * nats]
    about = f"Differences between models under the same variant, paired by {what}; of accuracies in points of %.\n\n"
    return about + markdown_table(header, rows)


def _nats(test: dict | None) -> str:
    """A difference of log-likelihoods and its interval."""
    if test is None:
        return "-"
    low, high = test["interval_95"]
    return f"{test['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _deviation(share: float | None) -> str:
    """A standard deviation of shares, in points of %."""
    return "-" if share is None else f"{100 * share:.2f}"


def _intervals(count: int, what: str) -> str:
    """What the brackets hold, or why there are none."""
    return too_few(count, what) or "In brackets 95 % intervals (accuracies: Wilson, else bootstrap)."


def _cut(variants: list[dict], count: int) -> str:
    """How many contexts were cut for each of the models."""
    cuts = [one["cut"] for one in variants]
    shown = " and ".join(f"{cut} of {count}" for cut in cuts)
    return f" {shown} contexts were cut on the left to what the model takes." if any(cuts) else ""
