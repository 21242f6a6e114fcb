"""From the lines of a run on code to pass@k, shares, intervals and paired tests. Nothing here knows of models."""

import ast
import math
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import stats

from asarm.evals.code.data import Problem
from asarm.evals.stats import Group, bootstrap_interval, compare_costs, costs, grouped, item_means, paired, paired_means

# What is true or false of a completion.
MEASURES = {"passed": "pass@1", "exact": "exact match", "syntax": "valid syntax"}
BASELINE = "sequential"
TRIVIAL = ("frequent-line", "empty")
CEILING = "canonical"


def parses(source: str) -> bool:
    """Is it Python, as far as the parser can tell? Nothing is run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def facts(problem: Problem, completion: str) -> dict[str, bool]:
    """What can be said of a completion without running it. exact: it is the canonical solution; stripped: it is up to
    white space at its ends. syntax: the whole function parses."""
    return {
        "exact": completion == problem.canonical_solution,
        "stripped": completion.strip() == problem.canonical_solution.strip(),
        "syntax": parses(problem.source(completion)),
    }


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of k samples is correct, drawn without replacement from `samples`, of which
    `correct` are (Chen et al. 2021): unbiased. k: at most `samples`."""
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def share(values: Sequence[float]) -> dict:
    """Mean over problems, its 95 % bootstrap interval (problems drawn anew) and n."""
    return {"mean": float(np.mean(values)), "interval_95": bootstrap_interval(values), "n": len(values)}


def pass_rates(group: Group, wanted: Sequence[int]) -> dict[str, dict]:
    """{"pass@k": share}, for each k that all problems have samples enough for; {} if nothing was judged."""
    if any("passed" not in line for lines in group.values() for line in lines):
        return {}
    counts = [(len(lines), sum(line["passed"] for line in lines)) for lines in group.values()]
    fewest = min(samples for samples, _ in counts)
    return {
        f"pass@{k}": share([pass_at_k(samples, correct, k) for samples, correct in counts])
        for k in wanted
        if k <= fewest
    }


def rates_of(variants: list[dict]) -> list[str]:
    """The pass@k that any of some summaries has."""
    return list(dict.fromkeys(key for one in variants for key in one if key.startswith("pass@")))


def summarise_variant(group: Group, wanted: Sequence[int]) -> dict:
    """One variant of one model on one split."""
    lines = [line for some in group.values() for line in some]
    return {
        **{key: lines[0][key] for key in ("split", "model", "variant", "sampler", "gap_length")},
        "problems": len(group),
        "samples": len({line["sample"] for line in lines}),
        **pass_rates(group, wanted),
        **{key: share(list(item_means(group, key).values())) for key in ("exact", "stripped", "syntax")},
        "cut": sum(line["cut"] > 0 for line in lines),
        **costs(group),
    }


def compare_shares(mine: Sequence[float], theirs: Sequence[float]) -> dict:
    """Paired comparison of values in [0, 1], one a problem: the mean difference, its 95 % bootstrap
    interval, and p.

    test: McNemar's exact test where all values are 0 or 1, which looks at the problems that only one of the two got
    right (`only`: [mine, theirs]); with several samples of a problem, a t-test of the differences of their means.
    """
    difference = (np.asarray(mine) - np.asarray(theirs)).tolist()
    kept = share(difference)
    kept["difference"] = kept.pop("mean")
    if not {*mine, *theirs} <= {0.0, 1.0}:
        return kept | {"test": "t-test", "p": paired(mine, theirs)["t_test_p"]}
    only = [
        sum(a > b for a, b in zip(mine, theirs, strict=True)),
        sum(a < b for a, b in zip(mine, theirs, strict=True)),
    ]
    p = float(stats.binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0
    return kept | {"test": "McNemar", "p": p, "only": only}


def compare(group: Group, other: Group) -> dict:
    """One variant against another on the same problems: what is true of their completions, cost and time."""
    judged = all("passed" in line for some in (group, other) for lines in some.values() for line in lines)
    measures = [key for key in MEASURES if judged or key != "passed"]
    shares = {key: compare_shares(*paired_means(group, other, key)) for key in measures}
    return shares | compare_costs(group, other)


def comparisons(groups: dict[tuple[str, str, str], Group]) -> list[dict]:
    """Every variant of a model against `sequential` of that model, and against the baselines that need no model."""
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
    """All variants, and all comparisons. wanted: the k of pass@k."""
    groups = grouped(lines, ("split", "model", "variant"))
    variants = [summarise_variant(group, wanted) for group in groups.values()]
    return {"variants": variants, "comparisons": comparisons(groups)}
