"""Metrics of completions: pass@k, exact match and valid syntax, with intervals and paired tests, and costs.

They are made from the lines of a run, one a completion; nothing here loads a model.
"""

import ast
import math
import warnings
from collections.abc import Sequence

from asarm.evals.code.data import Problem
from asarm.evals.infilling.metrics import spread, words_in
from asarm.evals.stats import (
    BASELINE,
    Group,
    compare_costs,
    compare_shares,
    costs,
    grouped,
    item_means,
    mean_with_interval,
    paired_means,
    pairs_of_models,
)

# What is true or false of a completion, and its name in tables: what is compared, and what is known without a run.
MEASURES = {"passed": "pass@1", "exact": "exact match", "syntax": "valid syntax"}
STATIC_MEASURES = {"exact": "exact match", "stripped": "up to white space", "syntax": "valid syntax"}
TRIVIAL = ("frequent-line", "empty")
CEILING = "canonical"


def parses(source: str) -> bool:
    """Whether the parser takes it for Python. Nothing is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def static_measures(problem: Problem, completion: str) -> dict[str, bool]:
    """What is known of a completion without running it.

    exact: it is the canonical solution. stripped: it is, up to white space at its ends. syntax: the function parses.
    """
    return {
        "exact": completion == problem.canonical_solution,
        "stripped": completion.strip() == problem.canonical_solution.strip(),
        "syntax": parses(problem.source(completion)),
    }


def from_problem(problem: Problem, completion: str) -> dict:
    """What tables need of a problem and a completion besides the line of the run."""
    return {
        "has_suffix": bool(problem.suffix),
        "words": words_in(completion),
        "gold_words": words_in(problem.canonical_solution),
    }


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """An unbiased estimate of pass@k (Chen et al. 2021, arXiv 2107.03374): the probability that at least one of k
    samples is correct, drawn without replacement from `samples`, of which `correct` are. k: at most `samples`."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def pass_rates(group: Group, wanted: Sequence[int]) -> dict[str, dict]:
    """{"pass@k": mean with interval}, for each wanted k of which all problems have enough samples; {} if not all
    programs were run."""
    if any("passed" not in line for lines in group.values() for line in lines):
        return {}
    counts = [(len(lines), sum(line["passed"] for line in lines)) for lines in group.values()]
    fewest = min(samples for samples, _ in counts)
    return {
        f"pass@{k}": mean_with_interval([pass_at_k(samples, correct, k) for samples, correct in counts])
        for k in wanted
        if k <= fewest
    }


def suffix_rates(group: Group) -> dict[str, dict]:
    """{"suffix_pass@1": mean with interval} over the problems whose suffix is not empty; {} where that is all or none.

    The script of the paper loses the completions of the others: with `[before:-0]` it takes none of the tokens.
    """
    some = {index: lines for index, lines in group.items() if lines[0]["has_suffix"]}
    rates = pass_rates(some, (1,)) if 0 < len(some) < len(group) else {}
    return {f"suffix_{key}": rate for key, rate in rates.items()}


def pass_keys(variants: list[dict]) -> list[str]:
    """The keys pass@k of summaries of variants."""
    return list(dict.fromkeys(key for one in variants for key in one if key.startswith("pass@")))


def summarise_variant(group: Group, wanted: Sequence[int]) -> dict:
    """Metrics of one variant of one model on one split. wanted: the values of k of pass@k."""
    lines = [line for some in group.values() for line in some]
    return {
        **{key: lines[0][key] for key in ("split", "model", "variant", "sampler", "gap_length")},
        "problems": len(group),
        "samples": len({line["sample"] for line in lines}),
        **pass_rates(group, wanted),
        **suffix_rates(group),
        **{key: mean_with_interval(list(item_means(group, key).values())) for key in STATIC_MEASURES},
        "cut": sum(line["cut"] > 0 for line in lines),
        **costs(group),
        "spread": spread(lines),
    }


def compare(group: Group, other: Group) -> dict:
    """One variant against another on the same problems: their measures, cost and time."""
    were_run = all("passed" in line for some in (group, other) for lines in some.values() for line in lines)
    measures = [key for key in MEASURES if were_run or key != "passed"]
    shares = {key: compare_shares(*paired_means(group, other, key)) for key in measures}
    return shares | compare_costs(group, other)


def comparisons(groups: dict[tuple[str, str, str], Group]) -> list[dict]:
    """Every variant of a model against `sequential` of that model, and against the trivial baselines.

    groups: lines by (split, model, variant).
    """
    found = []
    for (split, model, variant), group in groups.items():
        if variant in (*TRIVIAL, CEILING):
            continue
        for (its_split, its_model, name), other in groups.items():
            same_model = its_model == model and name == BASELINE != variant
            if its_split == split and (same_model or name in TRIVIAL):
                names = {"split": split, "model": model, "variant": variant, "against": name}
                found.append(names | compare(group, other))
    return found


def summarise(lines: list[dict], wanted: Sequence[int]) -> dict:
    """Metrics of all variants, and all comparisons. wanted: the values of k of pass@k.

    lines: those of the run, each with `from_problem`, and with its verdict if it was run.
    """
    groups = grouped(lines, ("split", "model", "variant"))
    return {
        "variants": [summarise_variant(group, wanted) for group in groups.values()],
        "comparisons": comparisons(groups),
        "model_comparisons": [names | compare(*pair) for names, pair in pairs_of_models(groups, "split")],
    }
