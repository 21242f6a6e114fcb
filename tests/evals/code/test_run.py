"""Whole runs: every problem and variant, completions in the official format, resuming, and when programs are run."""

import itertools
import json
import shutil

import numpy as np
import pytest
import torch

from asarm.evals.code import verdicts
from asarm.evals.code.baselines import BASELINES
from asarm.evals.code.config import CodeConfig
from asarm.evals.code.data import read_completions
from asarm.evals.code.metrics import static_measures
from asarm.evals.code.run import evaluate
from asarm.evals.infilling import systems
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from asarm.utils.jsonl import read_json_lines, write_json_lines
from support.code_problems import OWN, ROWS, SAMPLES, SPAN_ROWS, fake_verdicts, problem_row, problems_of, write_rows
from support.results import interrupted_copy, lines_of, without_times


def test_every_problem_is_completed_by_every_variant(finished, tiny_folder):
    lines = lines_of(finished)
    drawn = ["sequential", "assd-self", "assd-ngram", "parallel-1", "parallel-4", "prefix-only"]
    drawn += ["assd-self search", "assd-self fixed:7"]
    wanted = {
        (model, split, variant, sample, index)
        for model, variants, samples in ((tiny_folder, drawn, SAMPLES), (systems.NO_MODEL, BASELINES, 1))
        for split, rows in (("single-line", ROWS), ("random-span", SPAN_ROWS))
        for variant, sample, index in itertools.product(variants, range(samples), range(len(rows)))
    }
    found = [(line["model"], line["split"], line["variant"], line["sample"], line["index"]) for line in lines]
    assert len(found) == len(wanted)
    assert set(found) == wanted
    for line in lines:
        problem = problems_of(ROWS if line["split"] == "single-line" else SPAN_ROWS)[line["index"]]
        assert line["task_id"] == problem.task_id
        assert {key: line[key] for key in ("exact", "stripped", "syntax")} == static_measures(
            problem, line["completion"]
        )
        assert (line["cut"] > 0) == (line["task_id"] == ROWS[3]["task_id"] and line["model"] == tiny_folder)
        if line["variant"] in BASELINES:
            assert line["completion"] == BASELINES[line["variant"]](problem)
            assert (line["nfe"], line["length"]) == (0, None)
            continue
        if line["gap_length"] == "search":
            scored = {int(length): score for length, score in line["scores"].items()}
            assert scored[line["length"]] == max(scored.values())
        elif line["gap_length"] == "oracle":
            assert line["length"] == line["gold_length"] >= line["nfe"]
        else:
            assert line["length"] == 7


def test_completions_are_in_the_official_format(finished, tiny_folder):
    files = sorted((finished / "completions").rglob("*.jsonl"))
    assert len(files) == 2 * (8 + 3)
    for path in files:
        split = path.parts[-3]
        rows = ROWS if split == "single-line" else SPAN_ROWS
        samples = 1 if path.stem in BASELINES else SAMPLES
        # What OpenAI's write_jsonl writes: json.dumps and a newline, in the order of the problems.
        lines = path.read_bytes().splitlines(keepends=True)
        assert [json.loads(line)["task_id"] for line in lines] == [r["task_id"] for r in rows for _ in range(samples)]
        for line in lines:
            row = json.loads(line)
            assert list(row) == ["task_id", "completion"]
            assert line == (json.dumps(row) + "\n").encode()
        found = read_completions(path, split, problems_of(rows))
        if path.stem == "canonical":
            assert found == {row["task_id"]: [row["canonical_solution"]] for row in rows}
    assert {path.stem for path in files} >= {"assd-self-search", "assd-self-fixed-7"}


def test_pass_rates_come_from_the_verdicts(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    found = {(one["split"], one["variant"]): one for one in metrics["variants"]}
    for split, n in (("single-line", 4), ("random-span", 2)):
        assert found[split, "canonical"]["pass@1"] == {"mean": 1.0, "interval_95": [1.0, 1.0], "n": n}
        assert found[split, "empty"]["pass@1"]["mean"] == 0
        assert "pass@10" not in found[split, "sequential"]
    for (split, variant), one in found.items():
        lines = [line for line in lines_of(finished) if (line["split"], line["variant"]) == (split, variant)]
        for key in ("exact", "stripped", "syntax", "nfe"):
            assert one[key]["mean"] == pytest.approx(np.mean([line[key] for line in lines]))
        assert one["cut"] == sum(line["cut"] > 0 for line in lines)
    against = {(one["split"], one["variant"], one["against"]) for one in metrics["comparisons"]}
    assert {("single-line", "assd-self", other) for other in ("sequential", "frequent-line", "empty")} < against
    assert not any(variant in BASELINES for _, variant, _ in against)
    assert metrics["provenance"]["torch"] == torch.__version__
    table = (finished / "table.md").read_text()
    assert table.startswith("generated code runs in a sandbox")
    assert table.count("| model | variant | pass@1 | exact match |") == 2
    assert "Cut at their far ends, as the model takes no more tokens: 2 of sequential" in table
    assert (finished / "code.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kept", [0.0, 0.4, 0.8])
def test_resuming_after_an_interruption_repeats_the_run(finished, settings, tmp_path, monkeypatch, kept):
    folder = tmp_path / "run"
    whole = interrupted_copy(finished, folder, kept, "verdicts.jsonl")
    known = (folder / "verdicts.jsonl").read_bytes().count(b"\n")
    ran = []

    def counting(programs, *args):
        ran.extend(programs)
        yield from fake_verdicts(programs, *args)

    monkeypatch.setattr(verdicts, "check_all", counting)
    # How many programs run at a time may change; and they may be run or not.
    evaluate(from_options(CodeConfig, output_dir=str(folder), allow_code_execution=True, workers=1, **settings))
    assert without_times(lines_of(folder)) == without_times(lines_of(finished))
    assert not kept or (folder / "samples.jsonl").read_bytes()[:200] == whole[:200]
    before, after = (verdicts.read_verdicts(path / "verdicts.jsonl", 3.0) for path in (finished, folder))
    assert before == after
    assert len(ran) == len(set(ran)) == len(after) - known


def test_a_finished_run_is_neither_filled_nor_tested_again(finished, settings, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    monkeypatch.setattr(systems, "fill", lambda *args: pytest.fail("filled again"))
    monkeypatch.setattr(verdicts, "check_all", lambda *args: pytest.fail("run again"))
    evaluate(from_options(CodeConfig, output_dir=str(folder), allow_code_execution=True, **settings))
    assert (folder / "samples.jsonl").read_bytes() == (finished / "samples.jsonl").read_bytes()


def test_nothing_is_run_unless_it_is_allowed(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "check_all", lambda *args: pytest.fail("run without being allowed to"))
    monkeypatch.setattr("asarm.evals.code.run.describe_isolation", lambda: pytest.fail("run without being allowed to"))
    change = {"samplers": ["sequential", "empty", "canonical"], "gap_length": ["oracle"], "samples_per_task": 1}
    metrics = evaluate(from_options(CodeConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    assert not any(key.startswith("pass@") for one in metrics["variants"] for key in one)
    assert metrics["variants"][0]["syntax"]["n"] == 4
    table = (tmp_path / "run" / "table.md").read_text()
    assert table.splitlines()[0] == (
        "pass@k is not measured: the programs that were completed are run with --allow_code_execution only."
    )
    monkeypatch.setattr(verdicts, "check_all", fake_verdicts)
    monkeypatch.setattr("asarm.evals.code.run.describe_isolation", lambda: "guarded")
    change["allow_code_execution"] = True
    metrics = evaluate(from_options(CodeConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    assert all("pass@1" in one for one in metrics["variants"])


def test_results_do_not_depend_on_batches_samples_or_the_number_of_problems(finished, settings, tmp_path):
    change = {"batch_size": 3, "max_items": 2, "samples_per_task": 1, "samplers": ["assd-self", "prefix-only"]}
    evaluate(from_options(CodeConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    some = lines_of(tmp_path / "run")
    same = {(line["split"], line["variant"], line["sample"], line["index"]) for line in some}
    whole = [x for x in lines_of(finished) if (x["split"], x["variant"], x["sample"], x["index"]) in same]
    assert len(some) == 4 * 4
    assert without_times(some, "batch", "scores") == without_times(whole, "batch", "scores")


def test_results_of_other_settings_are_not_mixed_in(finished, settings, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with pytest.raises(InputError, match=r"k 3, now 5.*choose another output_dir"):
        evaluate(from_options(CodeConfig, output_dir=str(folder), **(settings | {"k": 5})))


def test_the_time_limit_may_change(finished, settings, tmp_path, monkeypatch):
    """Also in a folder whose config.json still has it."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    saved = json.loads((folder / "config.json").read_text())
    saved["settings"]["timeout"] = 3.0
    (folder / "config.json").write_text(json.dumps(saved))
    monkeypatch.setattr(verdicts, "check_all", lambda *args: pytest.fail("run again"))

    def rates(timeout, allowed=True):  # programs took 0.1 s
        change = {"timeout": timeout, "allow_code_execution": allowed}
        metrics = evaluate(from_options(CodeConfig, output_dir=str(folder), **(settings | change)))
        assert metrics["timeout"] == timeout
        return {one["pass@1"]["mean"] for one in metrics["variants"] if one["variant"] == "canonical"}

    assert rates(5.0) == {1.0}
    write_json_lines(
        folder / "verdicts.jsonl", [line | {"seconds": 0.3} for line in read_json_lines(folder / "verdicts.jsonl")]
    )
    assert rates(0.2) == {0.0}
    assert rates(0.3, allowed=False) == {1.0}
    assert (folder / "table.md").read_text().startswith("the programs that were completed were run before")


def test_baselines_alone_need_no_model(settings, tmp_path):
    change = {"models": ["tiny-none"], "samplers": ["empty"], "gap_length": ["oracle", "search"]}
    metrics = evaluate(from_options(CodeConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    assert [one["variant"] for one in metrics["variants"]] == ["empty", "empty"]


def test_a_causal_model_is_compared_with_others(settings, tmp_path, causal_folder):
    change = {"causal": causal_folder, "samplers": ["assd-self"], "gap_length": ["oracle"], "samples_per_task": 1}
    metrics = evaluate(from_options(CodeConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    assert [(one["model"], one["variant"]) for one in metrics["variants"]][2:] == [(causal_folder, "causal")] * 2
    assert {path.stem for path in (tmp_path / "run" / "completions").rglob("*.jsonl")} == {"assd-self", "causal"}


def test_a_solution_may_be_empty(settings, tmp_path, monkeypatch, causal_folder):
    """Spans of OpenAI's random-span split are: nothing is decoded, in whatever batch, and the program is run."""
    empty = [
        problem_row(number, "def f(a):\n    ret", "", "urn a + 1\n" * number, "RandomSpanInfilling")
        for number in (1, 2, 3)
    ]
    right = {problem.program("") for problem in problems_of(empty)}
    passed, failed = verdicts.Verdict(True, "passed"), verdicts.Verdict(False, "failed")
    monkeypatch.setattr(
        verdicts,
        "check_all",
        lambda programs, *_: ((index, passed if one in right else failed, 0.1) for index, one in enumerate(programs)),
    )
    change = {
        "problems": [write_rows(tmp_path / "spans.jsonl", [SPAN_ROWS[0], *empty])], "causal": causal_folder,
        "samplers": ["sequential", "assd-ngram", "parallel", "prefix-only", *BASELINES], "parallel_steps": [4],
        "gap_length": ["oracle", "median", "search", "fixed:7"], "samples_per_task": 1, "allow_code_execution": True,
    }  # fmt: skip
    metrics = evaluate(from_options(CodeConfig, output_dir=str(tmp_path / "run"), **(settings | change)))
    for line in lines_of(tmp_path / "run"):
        if line["index"] and line["gap_length"] == "oracle" and line["model"] != systems.NO_MODEL:
            assert (line["completion"], line["length"], line["nfe"], line["drawn"]) == ("", 0, 0, 0)
            assert line["exact"]
        if line["index"] and line["gap_length"] in ("search", "fixed:7"):
            assert line["length"] >= 1
            assert line["gold_length"] == 0
        if line["gap_length"] == "median":
            assert (line["completion"], line["length"]) == ("", 0)
    rates = {one["variant"]: one["pass@1"]["mean"] for one in metrics["variants"]}
    assert rates["canonical"] == rates["empty"] == rates["sequential"] == 0.75
    alone = {"problems": [write_rows(tmp_path / "span.jsonl", SPAN_ROWS[:1])], "gap_length": ["oracle"]}
    evaluate(from_options(CodeConfig, output_dir=str(tmp_path / "alone"), **(settings | change | alone)))
    first = [line for line in lines_of(tmp_path / "run") if line["index"] == 0 and line["gap_length"] in ("oracle", "")]
    same = ("batch", "passed", "result")
    assert without_times(first, *same) == without_times(lines_of(tmp_path / "alone"), *same)


def test_our_own_problems_run_in_the_sandbox(tmp_path):
    config = {"problems": list(map(str, OWN)), "model": "unused", "samplers": ["empty", "canonical"], "timeout": 20.0}
    metrics = evaluate(from_options(CodeConfig, output_dir=str(tmp_path / "run"), allow_code_execution=True, **config))
    rates = {(one["split"], one["variant"]): one["pass@1"]["mean"] for one in metrics["variants"]}
    assert rates == {
        (split, variant): float(variant == "canonical")
        for split in ("single-line", "random-span")
        for variant in ("empty", "canonical")
    }
    results = {line["result"] for line in read_json_lines(tmp_path / "run" / "verdicts.jsonl")}
    assert "passed" in results
    assert any(result.startswith("failed: ") for result in results)
