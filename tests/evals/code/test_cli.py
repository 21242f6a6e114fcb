"""`asarm code` and `asarm code judge`: presets and options, bad input, and the shell wrapper."""

import gzip
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from asarm.__main__ import main
from asarm.cli.code import OFFICIAL_SETS, parse_arguments
from asarm.evals.code import verdicts
from asarm.utils.jsonl import read_json_lines, write_json_lines
from support.code_problems import ROWS, SPAN_ROWS, problem_row, write_rows
from support.paths import REPO
from support.wrappers import active, run


def test_options_override_the_preset():
    paper = parse_arguments([])
    assert paper.model_names() == ["therealgabeguo/ASARM@code"]
    assert (paper.splits, paper.sampling.k, paper.gap_length, paper.samples_per_task) == (
        ["single-line"],
        10,
        ["oracle"],
        1,
    )
    assert [v.name for v in paper.variants()] == ["sequential", "assd-self", "frequent-line", "empty", "canonical"]
    assert not paper.allow_code_execution
    assert paper.data_dir == str(OFFICIAL_SETS)
    tiny = parse_arguments(
        ["tiny", "--model", "a/b", "--allow-code-execution", "--splits", "single-line", "random-span"]
    )
    assert (tiny.model_names(), tiny.splits, tiny.allow_code_execution) == (
        ["a/b"],
        ["single-line", "random-span"],
        True,
    )
    assert parse_arguments(["paper", "--model", "a/b"]).model_names() == ["a/b"]
    assert parse_arguments(["tiny"]).model_names() == ["tiny-code"]
    assert parse_arguments(["paper", "--models", "a/b@c", "d"]).model_names() == ["a/b@c", "d"]


def bad_files(tmp_path):
    """Files that are not as they should be, by name."""
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-20])
    (tmp_path / "bytes.jsonl.gz").write_bytes(packed[:40] + b"XXXXXXXX" + packed[48:])
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(ROWS[2], ensure_ascii=False).encode("latin-1"))
    (tmp_path / "text.jsonl").write_text("def f():\n")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "nothing.jsonl").write_text("\n\n")
    write_rows(tmp_path / "twice.jsonl", [*ROWS, ROWS[1]])
    write_rows(tmp_path / "fields.jsonl", [ROWS[0], {key: ROWS[1][key] for key in ROWS[1] if key != "suffix"}])
    write_rows(tmp_path / "number.jsonl", [ROWS[0] | {"test": 1}])
    write_rows(tmp_path / "several.jsonl", [ROWS[0], SPAN_ROWS[0]])
    write_rows(tmp_path / "unknown.jsonl", [ROWS[0] | {"task_id": "mine/1"}])
    write_rows(tmp_path / "mask.jsonl", [problem_row(0, "def f(a):\n", "    return '<mask>'\n", "")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--problems", "{tmp}/none.jsonl"], "none.jsonl: No such file or directory"),
        (["--problems", "{tmp}"], "Is a directory"),
        (["--problems", "{tmp}/cut.jsonl.gz"], "cut.jsonl.gz: Compressed file ended"),
        (["--problems", "{tmp}/bytes.jsonl.gz"], "bytes.jsonl.gz: Error -3 while decompressing"),
        (["--problems", "{tmp}/latin.jsonl"], "latin.jsonl is not UTF-8 text: byte 0xe9 in line 1"),
        (["--problems", "{tmp}/text.jsonl"], "text.jsonl, line 1 is no JSON"),
        (["--problems", "{tmp}/list.jsonl"], "list.jsonl, item 1 is no JSON object"),
        (["--problems", "{tmp}/nothing.jsonl"], "nothing.jsonl is empty"),
        (["--problems", "{tmp}/twice.jsonl"], "has task_id SingleLineInfilling/made/1/L1 2 times"),
        (["--problems", "{tmp}/fields.jsonl"], "fields.jsonl, line 2 has no field suffix"),
        (["--problems", "{tmp}/number.jsonl"], "number.jsonl, line 1: the field test holds 1 (int), not text"),
        (["--problems", "{tmp}/several.jsonl"], "problems of several splits: random-span, single-line"),
        (["--problems", "{tmp}/unknown.jsonl"], "do not tell its split"),
        (["--problems", "{tmp}/mask.jsonl"], "problem SingleLineInfilling/made/0/L1 holds <mask>"),
        (["--problems", "{file}", "{file}"], "two files of problems of single-line"),
        (["--splits", "random-span"], "no problems of random-span: some lines.jsonl.gz holds those of single-line"),
        (["--splits", "double-line"], "unknown split 'double-line': choose from single-line, multi-line"),
        (["--gap_length", "fixed:128"], "a gap of 128 tokens, but the model takes at most 128"),
        (["--gap_length", "some"], "unknown gap_length 'some'"),
        (["--samplers", "magic"], "unknown sampler 'magic'"),
        (["--samples_per_task", "0"], "samples_per_task must be at least 1, not 0"),
        (["--workers", "0"], "workers must be at least 1, not 0"),
        (["--timeout", "0"], "timeout must lie in [0.1, 86400] seconds, not 0"),
        (["--timeout", "nan"], "timeout must lie in"),
        (["--timeout", "1e300"], "timeout must lie in"),
        (["--model", "tiny-none"], "no bundled model 'tiny-none'"),
        (["--causal", "{tmp}/none"], "cannot load the causal model"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, tiny_folder, files, options, message):
    bad_files(tmp_path)
    output = tmp_path / "output"
    usual = ["tiny", "--model", tiny_folder, "--problems", files[0], "--output_dir", str(output)]
    given = [option.format(tmp=tmp_path, file=files[0]) for option in options]
    monkeypatch.setattr(sys, "argv", ["asarm", "code", *usual, *given])
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert error[0].startswith("asarm code: ")
    assert message in error[0]
    assert not (output / "samples.jsonl").exists()


def test_a_file_of_completions_is_evaluated(files, tmp_path, monkeypatch, capsys):
    rows = [{"task_id": row["task_id"], "completion": row["canonical_solution"]} for row in ROWS]
    wrong = [row | {"completion": "    return 3\n"} for row in rows]
    mixed = [row for pair in zip(rows, wrong, strict=True) for row in pair]
    path = tmp_path / "my samples.jsonl"
    write_json_lines(path, mixed)
    command = ["asarm", "code", "judge", str(path), "--problems", files[0], "--timeout", "20"]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 2
    assert "allow it with --allow_code_execution" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*command, "--allow_code_execution"])
    assert main() == 0
    output = capsys.readouterr().out
    assert "single-line: 4 problems, 8 completions" in output
    assert "| 50.0 | 50.0 | 50.0 | 100.0 |" in output
    results = read_json_lines(tmp_path / "my samples.jsonl_results.jsonl")
    assert [(row["task_id"], row["completion"]) for row in results] == [tuple(row.values()) for row in mixed]
    assert [row["passed"] for row in results] == [True, False] * 4
    assert len(read_json_lines(tmp_path / "my samples.jsonl_verdicts.jsonl")) == 8
    monkeypatch.setattr(verdicts, "check_all", lambda *args: pytest.fail("run again"))
    assert main() == 0


SLOW = "    import time; time.sleep(1.5); b = a + 1\n"


@pytest.mark.parametrize("timeouts", [(0.7, 20), (20, 0.7, 20), (0.7, 0.6, 0.7)])
def test_a_verdict_is_that_under_the_present_time_limit(tmp_path, monkeypatch, capsys, timeouts):
    """A right completion that takes 1.5 s, and a wrong one that fails at once."""
    rows = [problem_row(number, "def f(a):\n", "    b = a + 1\n", "    return b\n") for number in range(2)]
    problems, path = write_rows(tmp_path / "problems.jsonl", rows), tmp_path / "samples.jsonl"
    texts = (SLOW, "    b = 7\n")
    write_json_lines(
        path, [{"task_id": row["task_id"], "completion": text} for row, text in zip(rows, texts, strict=True)]
    )
    command = ["asarm", "code", "judge", str(path), "--problems", problems]
    ran = []
    check_all = verdicts.check_all

    def counting(programs, *args):
        ran.append(len(programs))
        return check_all(programs, *args)

    monkeypatch.setattr(verdicts, "check_all", counting)
    for timeout in timeouts:
        monkeypatch.setattr(sys, "argv", [*command, "--timeout", str(timeout), "--allow_code_execution"])
        assert main() == 0
        results = [row["result"] for row in read_json_lines(tmp_path / "samples.jsonl_results.jsonl")]
        assert results == ["passed" if timeout > 1 else "timed out", "failed: AssertionError"]
    assert ran == ([2, 1] if timeouts == (0.7, 20) else [2])


def test_verdicts_that_do_not_tell_their_limit_are_made_again(tmp_path):
    digest, line = "00", {"program_sha256": "00", "passed": False, "result": "timed out"}
    write_json_lines(tmp_path / "verdicts.jsonl", [line])
    assert verdicts.read_verdicts(tmp_path / "verdicts.jsonl", 3.0) == {}
    first = line | {"timeout": 2.0, "seconds": 2.0}
    later = line | {"passed": True, "result": "passed", "timeout": 8.0, "seconds": 1.9}
    write_json_lines(tmp_path / "verdicts.jsonl", [line, first, later])
    found = {seconds: verdicts.read_verdicts(tmp_path / "verdicts.jsonl", seconds) for seconds in (1.0, 2.0, 3.0)}
    assert {seconds: some[digest].passed for seconds, some in found.items()} == {1.0: False, 2.0: False, 3.0: True}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (ROWS[:3], [], "has no completion of SingleLineInfilling/made/3/L1 (1 of 4 problems have none)"),
        ([*ROWS, ROWS[2]], [], "has 2 completions of SingleLineInfilling/made/2/L1, and 1 of most problems"),
        (SPAN_ROWS, [], "is not of single-line: RandomSpanInfilling/made/0/L1 is of random-span"),
        ([ROWS[0] | {"task_id": "SingleLineInfilling/HumanEval/0/L0"}], [], "is none of its problems"),
        ([{"task_id": ROWS[0]["task_id"]}], [], "line 1 has no field completion"),
        ([{"completion": "x"}], [], "line 1 has no field task_id"),
        (ROWS, ["--split", "double-line"], "unknown split 'double-line'"),
        (ROWS, ["--split", "multi-line"], "no problems of multi-line: some lines.jsonl.gz holds those of single-line"),
        (ROWS, ["--max_items", "-1"], "max_items must be at least 0"),
        (ROWS, ["--max_items", "2"], "SingleLineInfilling/made/2/L1 is none of its problems"),
        (ROWS, ["--workers", "0"], "workers must be at least 1"),
    ],
)
def test_bad_completions_are_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, files, rows, options, message):
    path = tmp_path / "samples.jsonl"
    write_json_lines(path, [{"completion": "x", **row} for row in rows] if len(rows) > 1 else rows)
    if rows and message == "is none of its problems":
        write_json_lines(path, [row | {"completion": "x"} for row in rows])
    monkeypatch.setattr(verdicts, "check_all", lambda *args: pytest.fail("run"))
    command = ["asarm", "code", "judge", "--allow_code_execution", str(path), "--problems", files[0], *options]
    monkeypatch.setattr(sys, "argv", command)
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert message in error[0]


@pytest.fixture
def wrapper(repo):
    name = "_run_code_infill_eval.sh"
    return Path(shutil.copy(REPO / name, repo / name))


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ([], "code paper --output_dir {results}/code-paper"),
        (["tiny", "--seed", "3"], "code tiny --output_dir {results}/code-tiny --seed 3"),
        (["--allow_code_execution"], "code paper --output_dir {results}/code-paper --allow_code_execution"),
        (["judge", "a.jsonl", "--split", "multi-line"], "code judge a.jsonl --split multi-line"),
    ],
)
def test_wrapper_names_command_preset_and_folder(wrapper, bare, tmp_path, words, command):
    result = run(wrapper, *words, env=bare, cwd=tmp_path)
    assert result.stdout == f"ran: -m asarm {command.format(results=wrapper.parent / 'results')}\n", result.stderr


def test_wrapper_runs_from_any_folder(wrapper, tmp_path, tiny_folder):
    options = [
        "--model",
        tiny_folder,
        "--samples_per_task",
        1,
        "--max_items",
        2,
        "--samplers",
        "assd-self",
        "canonical",
    ]
    result = run(wrapper, "tiny", *options, "--gap_length", "oracle", env=active(), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("pass@k is not measured: ")
    assert re.search(r"\| canonical +\| +100.0 \| +100.0 \|", result.stdout)
    assert "problems are too few for intervals and tests." in result.stdout
    table = (wrapper.parent / "results/code-tiny/table.md").read_text(encoding="utf-8")
    assert "| none | canonical | 100.0 | 100.0 | 100.0 |" in table
    assert (wrapper.parent / "results/code-tiny/samples.html").exists()


def test_missing_problems_are_one_line(wrapper, tmp_path):
    result = run(wrapper, "paper", env=active(), cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "put HumanEval-SingleLineInfilling.jsonl.gz from the folder data of" in result.stderr
