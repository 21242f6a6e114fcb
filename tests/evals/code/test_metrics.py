"""Metrics of completions: pass@k, paired tests, and syntax that is checked without running anything."""

import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats

from asarm.evals.code import metrics, verdicts
from asarm.evals.code.data import official_file, read_problems
from asarm.evals.code.metrics import from_problem, pass_at_k, static_measures, suffix_rates
from asarm.evals.code.report import code_summary, code_table
from asarm.evals.code.sandbox.runner import check
from asarm.evals.stats import compare_shares, grouped
from support.code_problems import HUMANEVAL, ROWS, needs_official, problems_of


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    for samples in range(1, 7):
        for correct in range(samples + 1):
            for k in range(1, samples + 1):
                subsets = list(itertools.combinations([True] * correct + [False] * (samples - correct), k))
                assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def made_line(index, sample, variant="sequential", **values):
    return {
        "split": "single-line", "model": "m", "variant": variant, "sampler": variant, "gap_length": "oracle",
        "sample": sample, "index": index, "length": 5, "gold_length": 5, "drawn": 6, "nfe": 3, "seconds": 1.0, "cut": 0,
        "exact": False, "stripped": False, "syntax": True, "passed": False,
        "has_suffix": True, "words": 2, "gold_words": 4,
    } | values  # fmt: skip


def test_pass_rates_are_means_over_problems():
    lines = [made_line(i, s, passed=s < i) for i in range(10) for s in range(10)]
    (found,) = metrics.summarise(lines, (1, 10, 100))["variants"]
    assert found["pass@1"]["mean"] == pytest.approx(np.mean(range(10)) / 10)
    assert found["pass@10"]["mean"] == pytest.approx(0.9)
    assert "pass@100" not in found
    low, high = found["pass@1"]["interval_95"]
    assert 0.2 < low < 0.35
    assert 0.55 < high < 0.7
    lines[7].pop("passed")
    assert "pass@1" not in metrics.summarise(lines, (1,))["variants"][0]


@pytest.mark.parametrize("without", [0, 10])
def test_problems_without_a_suffix_are_left_out_of_the_second_pass_rate(without):
    """The first `without` of ten problems have no suffix; of the others one in two is solved, of these all are."""
    lines = [made_line(i, 0, passed=True, has_suffix=False) for i in range(without)]
    assert suffix_rates(grouped(lines, ())[()]) == {}
    lines += [made_line(without + i, 0, passed=i % 2 == 0) for i in range(30)]
    (found,) = metrics.summarise(lines, (1,))["variants"]
    assert found["pass@1"]["mean"] == pytest.approx((without + 15) / (without + 30))
    if not without:
        assert "suffix_pass@1" not in found
        return
    assert (found["suffix_pass@1"]["mean"], found["suffix_pass@1"]["n"]) == (0.5, 30)
    shown = {"judging": "judged", "variants": [found], "comparisons": [], "model_comparisons": []}
    assert "pass@1 of the 30 of 40 problems whose suffix is not empty" in code_table(shown)
    assert re.search(r"\| m \| sequential \| 50.0 \[[^]]*\] \| 37.5 \|", code_table(shown))  # 15 of 40
    assert "pass@1 of the 30 problems whose suffix is not empty: 50.0 sequential." in code_summary(shown)
    lines[-1].pop("passed")
    assert "suffix_pass@1" not in metrics.summarise(lines, (1,))["variants"][0]


@needs_official
def test_the_papers_script_loses_156_of_the_official_problems():
    """It takes `tokens[before:-after]`, which is empty where the suffix is."""
    problems = read_problems(official_file("single-line", HUMANEVAL))
    filled = [(["gap", *problem.suffix], len(problem.suffix)) for problem in problems]
    kept = [tokens for tokens, after in filled if tokens[0:-after]]
    rows = [from_problem(problem, "") for problem in problems]
    assert (len(problems), len(kept), sum(row["has_suffix"] for row in rows)) == (1033, 877, 877)


def test_lengths_and_evaluations_have_their_spread():
    lines = [made_line(i, 0, length=4 + 2 * (i % 2), words=i % 2) for i in range(20)]
    (found,) = metrics.summarise(lines, (1,))["variants"]
    assert found["spread"] == {
        "words": {"mean": 0.5, "sd": 0.5, "n": 20}, "gold_words": {"mean": 4.0, "sd": 0.0, "n": 20},
        "tokens": {"mean": 5.0, "sd": 1.0, "n": 20}, "gold_tokens": {"mean": 5.0, "sd": 0.0, "n": 20},
        "nfe": {"mean": 3.0, "sd": 0.0, "n": 20},
    }  # fmt: skip
    (found,) = metrics.summarise([line | {"length": None} for line in lines], (1,))["variants"]
    assert list(found["spread"]) == ["words", "gold_words"]


def test_models_are_compared_under_the_same_variant():
    lines = [
        made_line(i, 0, variant, model=model, exact=model == "b")
        for model in "abc"
        for variant in "xy"
        for i in range(20)
    ]
    lines += [made_line(i, 0, "empty", model="none") for i in range(20)]
    found = metrics.summarise(lines, (1,))["model_comparisons"]
    assert [(one["model"], one["variant"], one["against"]) for one in found] == [
        ("b", "x", "a"), ("b", "y", "a"), ("c", "x", "a"), ("c", "y", "a"),
    ]  # fmt: skip
    assert found[0]["split"] == "single-line"
    assert found[0]["exact"]["only"] == [20, 0]
    assert found[2]["exact"]["difference"] == 0
    shown = metrics.summarise(lines, (1,)) | {"judging": "judged"}
    assert "| x | b | a | +0.0 [+0.0, +0.0], p = 1 | +100.0 [+100.0, +100.0], p < 1e-4 |" in code_table(shown)
    assert "b against a, x: pass@1 +0.0 [+0.0, +0.0], p = 1; exact match +100.0" in code_summary(shown)
    assert "b against a, y" not in code_summary(shown)  # one variant is enough for a screen


def test_mcnemar_counts_what_only_one_got_right():
    mine, theirs = [1.0] * 8 + [0.0] * 2 + [1.0] * 5, [0.0] * 8 + [1.0] * 2 + [1.0] * 5
    found = compare_shares(mine, theirs)
    assert (found["test"], found["only"], found["difference"]) == ("McNemar", [8, 2], pytest.approx(0.4))
    tail = sum(math.comb(10, wins) for wins in range(3)) / 2**10
    assert found["p"] == pytest.approx(2 * tail)
    assert compare_shares([1.0, 0.0], [1.0, 0.0])["p"] == 1.0
    several = compare_shares([0.5, 1.0, 0.0, 0.5], [0.0, 0.5, 0.0, 0.5])
    assert several["test"] == "t-test"
    assert several["p"] == pytest.approx(stats.ttest_rel([0.5, 1.0, 0.0, 0.5], [0.0, 0.5, 0.0, 0.5]).pvalue)


def test_comparisons_are_paired_by_problem():
    lines = [made_line(i, 0, nfe=6, seconds=3.0, exact=i < 30) for i in range(60)]
    lines += [made_line(i, 0, "assd-self", exact=i < 45) for i in range(60)]
    lines += [made_line(i, 0, "empty", model="none", sampler="empty", nfe=0, drawn=0) for i in range(60)]
    found = {(x["variant"], x["against"]): x for x in metrics.summarise(lines, (1,))["comparisons"]}
    assert list(found) == [("sequential", "empty"), ("assd-self", "sequential"), ("assd-self", "empty")]
    one = found["assd-self", "sequential"]
    assert (one["exact"]["difference"], one["exact"]["only"]) == (0.25, [15, 0])
    assert one["exact"]["p"] == pytest.approx(2**-14)
    assert (one["nfe"]["difference"], one["times_as_fast"]) == (-3.0, 3.0)


def test_syntax_is_checked_without_running_anything(tmp_path):
    for source, good in (
        ("x = 1\n", True), (f"open({str(tmp_path / 'x')!r}, 'w')\n", True), ("x = \n", False), ("x = '\0'\n", False),
        ("(" * 5000, False), ("x = '\\d'\n", True), ("  x = 1\n", False),
    ):  # fmt: skip
        assert metrics.parses(source) == good, source[:20]
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_no_unicode_fails_like_other_code():
    program = problems_of(ROWS)[0].program("    b = '\ud800'\n")
    assert not static_measures(problems_of(ROWS)[0], "    b = '\ud800'\n")["syntax"]
    assert verdicts.sha256_of_text(program)
    assert not check(program).passed
