"""Metrics of the stories evaluation: ROUGE, means, intervals and paired tests."""

from collections import defaultdict
from functools import cache

import numpy as np

from asarm.evals.infilling.metrics import spread, words_in
from asarm.evals.stats import (
    BASELINE,
    Group,
    bootstrap_interval,
    compare_costs,
    costs,
    equality,
    grouped,
    item_means,
    paired_means,
    pairs_of_models,
)

SCORES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
AVERAGED = ("rouge1", "rouge2", "rougeL")
MEASURES = SCORES | {"rougeAvg": "average"}


@cache
def _scorer():
    from rouge_score.rouge_scorer import RougeScorer  # slow to import
    from rouge_score.tokenizers import DefaultTokenizer

    return RougeScorer(list(SCORES), tokenizer=DefaultTokenizer(use_stemmer=False))


def rouge(gold: str, text: str) -> dict[str, float]:
    """F1 x 100 of words, of pairs of words, and of the longest common subsequence of the whole and line by line
    (rougeLsum); rougeAvg is the mean of the first three. In lower case, without stemming."""
    found = {name: 100 * score.fmeasure for name, score in _scorer().score(gold, text).items()}
    return found | {"rougeAvg": sum(found[name] for name in AVERAGED) / len(AVERAGED)}


def with_measures(line: dict) -> dict:
    """A line of a run with all that tables need: numbers of words, and scores that older runs did not write."""
    scores = {} if MEASURES.keys() <= line.keys() else rouge(line["gold"], line["text"])
    return line | scores | {"words": words_in(line["text"]), "gold_words": words_in(line["gold"])}


MARGIN = 0.5  # points of ROUGE that count as no difference


def measure(group: Group, key: str) -> dict:
    """Mean over stories and trials, its interval, the number of stories, and the mean of each trial."""
    values = list(item_means(group, key).values())
    trials = defaultdict(list)
    for line in (line for lines in group.values() for line in lines):
        trials[line["trial"]].append(line[key])
    return {
        "mean": float(np.mean(values)),
        "interval_95": bootstrap_interval(values),
        "n": len(values),
        "by_trial": [float(np.mean(trials[trial])) for trial in sorted(trials)],
    }


def summarise_variant(group: Group) -> dict:
    """One variant of one model on one task."""
    lines = [line for some in group.values() for line in some]
    return {
        **{key: lines[0][key] for key in ("task", "model", "variant", "sampler", "gap_length")},
        "stories": len(group),
        "trials": len({line["trial"] for line in lines}),
        **{key: measure(group, key) for key in MEASURES},
        **costs(group),
        "spread": spread(lines),
    }


def compare(group: Group, other: Group) -> dict:
    """One variant, or model, against another in the same task, paired by story (means over trials)."""
    measures = {key: equality(*paired_means(group, other, key), MARGIN) for key in MEASURES}
    return measures | compare_costs(group, other)


def comparisons(groups: dict[tuple[str, str, str], Group]) -> list[dict]:
    """Every variant against `sequential` of its model; every searched length against every other choice of length
    with the same sampler."""
    found = []
    for (task, model, variant), group in groups.items():
        first = next(iter(group.values()))[0]
        others = [BASELINE] if variant != BASELINE else []
        if first["gap_length"] == "search":
            others += [
                name
                for (its_task, its_model, name), its in groups.items()
                if (its_task, its_model) == (task, model)
                and (line := next(iter(its.values()))[0])["sampler"] == first["sampler"]
                and line["gap_length"] != "search"
                and name != BASELINE
            ]
        for other in others:
            if (task, model, other) in groups:
                names = {"task": task, "model": model, "variant": variant, "against": other}
                found.append(names | compare(group, groups[task, model, other]))
    return found


def summarise(lines: list[dict]) -> dict:
    """All variants, and all comparisons. lines: of `with_measures`."""
    groups = grouped(lines, ("task", "model", "variant"))
    return {
        "variants": [summarise_variant(group) for group in groups.values()],
        "comparisons": comparisons(groups),
        "model_comparisons": [names | compare(*pair) for names, pair in pairs_of_models(groups)],
    }
