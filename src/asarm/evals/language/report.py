"""Report of the language evaluation: accuracies, perplexities, intervals and a table, from its lines."""

import math

import numpy as np
from scipy import stats

from asarm.evals.language.config import LIKELIHOOD
from asarm.evals.stats import bootstrap_interval
from asarm.evals.tables import markdown_table, too_few, with_interval

RESAMPLES = 9999


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


def summarise_variant(lines: list[dict]) -> dict:
    """Metrics of one task under one variant.

    accuracy: LAMBADA's sampled words that are the gold ones; under `likelihood`, gold words that greedy decoding gives
    (as the harness counts), or HellaSwag's questions whose best ending is right, accuracy_norm by characters.
    log_prob: nats of a gold word; perplexity: exp of its negative mean; probability: the mean probability.
    """
    result = {"accuracy": share([line["correct"] for line in lines]), "cut": sum(line["cut"] > 0 for line in lines)}
    if "correct_norm" in lines[0]:
        result["accuracy_norm"] = share([line["correct_norm"] for line in lines])
    if "log_prob" in lines[0]:
        result["log_prob"] = mean([line["log_prob"] for line in lines])
        result["perplexity"] = perplexity(result["log_prob"])
        result["probability"] = mean([math.exp(line["log_prob"]) for line in lines])
    if "nfe" in lines[0]:
        result["nfe"] = mean([line["nfe"] for line in lines])
        result["seconds"] = float(np.mean([line["seconds"] for line in lines]))
    if "tokens" in lines[0]:
        result["tokens"] = float(np.mean([line["tokens"] for line in lines]))
    return result


def summarise(lines: list[dict]) -> dict:
    """{task: {variant: metrics}}, in the order of first appearance."""
    groups: dict[str, dict[str, list[dict]]] = {}
    for line in lines:
        groups.setdefault(line["task"], {}).setdefault(line["variant"], []).append(line)
    return {
        task: {variant: summarise_variant(some) for variant, some in variants.items()}
        for task, variants in groups.items()
    }


def table(metrics: dict) -> str:
    """The metrics as Markdown, with 95 % intervals."""
    parts = []
    if "lambada" in metrics:
        parts += lambada_parts(metrics["lambada"])
    if "hellaswag" in metrics:
        parts += hellaswag_parts(metrics["hellaswag"][LIKELIHOOD])
    return "\n".join(parts)


def summary(metrics: dict) -> str:
    """What is printed at the end: all of the table, which fits a screen."""
    return table(metrics)


def lambada_parts(variants: dict[str, dict]) -> list[str]:
    exact = variants[LIKELIHOOD]
    sampled = {name: one for name, one in variants.items() if name != LIKELIHOOD}
    count = exact["accuracy"]["n"]
    parts = [
        f"LAMBADA, last word of {count} passages ({exact['tokens']:.2f} tokens a word), by its exact likelihood. "
        f"{_intervals(count, 'passages')}{_cut(exact['cut'], count)}\n",
        markdown_table(
            ["accuracy (greedy), %", "log-likelihood, nats", "perplexity of the word", "mean probability, %"],
            [
                [
                    with_interval(exact["accuracy"], 2, 100),
                    with_interval(exact["log_prob"], 3),
                    with_interval(exact["perplexity"], 1),
                    with_interval(exact["probability"], 2, 100),
                ]
            ],
        ),
    ]
    if sampled:
        parts += [
            "The same words sampled; the gap has as many tokens as the gold word (oracle).\n",
            markdown_table(
                ["sampler", "exact match, %", "NFE a word", "seconds a passage"],
                [
                    [
                        name,
                        with_interval(one["accuracy"], 2, 100),
                        with_interval(one["nfe"], 2),
                        f"{one['seconds']:.3f}",
                    ]
                    for name, one in sampled.items()
                ],
            ),
        ]
    return parts


def hellaswag_parts(one: dict) -> list[str]:
    count = one["accuracy"]["n"]
    return [
        f"HellaSwag, {count} questions: the ending with the highest joint log-likelihood given the context.",
        f"Normalised: divided by the ending's characters. {_intervals(count, 'questions')}{_cut(one['cut'], count)}\n",
        markdown_table(
            ["accuracy, %", "normalised accuracy, %"],
            [[with_interval(one["accuracy"], 2, 100), with_interval(one["accuracy_norm"], 2, 100)]],
        ),
    ]


def _intervals(count: int, what: str) -> str:
    """What the brackets hold, or why there are none."""
    return too_few(count, what) or "In brackets 95 % intervals (accuracies: Wilson, else bootstrap)."


def _cut(cut: int, count: int) -> str:
    return f" {cut} of {count} contexts were cut on the left to what the model takes." if cut else ""
