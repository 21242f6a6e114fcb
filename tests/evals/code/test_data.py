"""Problems and completions: files that are read, official files that are found, packages that are refused."""

import json

import pytest

from asarm.evals.code.data import SPLITS, official_file, problems_of_files, read_completions, read_problems
from asarm.utils.errors import InputError
from support.code_problems import HUMANEVAL, OFFICIAL, OWN, ROWS, SPAN_ROWS, needs_official, problems_of, write_rows


def test_problems_are_read_from_plain_and_compressed_files(tmp_path):
    plain, packed = write_rows(tmp_path / "a.jsonl", ROWS), write_rows(tmp_path / "a.jsonl.gz", ROWS, True)
    assert read_problems(plain) == read_problems(packed) == problems_of(ROWS)


def test_completions_that_are_no_unicode_stay_so(tmp_path):
    """They are no programs, and fail as they do in OpenAI's runner."""
    completion = "    b = '\ud800'\n"
    path = write_rows(tmp_path / "a.jsonl", [{"task_id": ROWS[0]["task_id"], "completion": completion}])
    assert read_completions(path, "single-line", problems_of(ROWS[:1])) == {ROWS[0]["task_id"]: [completion]}


def test_a_program_is_put_together_as_the_official_runner_does():
    problem = problems_of(ROWS)[0]
    expected = (
        problem.prompt + "    b = 3\n" + problem.suffix + "\n" + problem.test + "\n" + f"check({problem.entry_point})"
    )
    assert problem.program("    b = 3\n") == expected


def test_our_own_problems_are_ours_and_solved_by_their_solutions():
    problems = [problem for path in OWN for problem in read_problems(path)]
    assert 12 <= len(problems) <= 20
    for problem in problems:
        assert problem.task_id.split("/")[1] == "asarm"
        exec(problem.program(problem.canonical_solution), {})
    if OFFICIAL:
        official = {problem.entry_point for path in OFFICIAL for problem in read_problems(path)}
        assert not official & {problem.entry_point for problem in problems}


@needs_official
@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.name)
def test_official_files_are_found_by_the_names_of_their_splits(path):
    name = next(split.name for split in SPLITS.values() if path.name in split.files)
    assert official_file(name, HUMANEVAL) == path
    assert len(problems_of_files([path], [name])[name]) == {"single-line": 1033, "random-span-light": 164}[name]


def test_splits_choose_among_files(files, tmp_path):
    assert list(problems_of_files(files, [])) == ["single-line", "random-span"]
    assert problems_of_files(files, ["random-span"]) == {"random-span": problems_of(SPAN_ROWS)}
    mine = write_rows(tmp_path / "mine.jsonl", [row | {"task_id": f"mine/{index}"} for index, row in enumerate(ROWS)])
    assert len(problems_of_files([mine], ["multi-line"])["multi-line"]) == 4


def install(folder, direct_url, with_data=False):
    """A package called human-eval-infilling in a folder of packages."""
    info = folder / "human_eval_infilling-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: human-eval-infilling\nVersion: 1.0\n")
    if direct_url is not None:
        (info / "direct_url.json").write_text(json.dumps(direct_url))
    (folder / "human_eval_infilling").mkdir()
    (folder / "human_eval_infilling" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    if with_data:
        (folder / "data").mkdir()
        write_rows(folder / "data" / "HumanEval-SingleLineInfilling.jsonl.gz", ROWS, True)


def test_the_package_of_a_stranger_is_refused_by_name(tmp_path, monkeypatch):
    install(tmp_path, None, with_data=True)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"human-eval-infilling that is installed does not come.*stranger"):
        official_file("single-line", tmp_path / "data")


@pytest.mark.parametrize(
    "direct_url",
    [
        {"url": "https://github.com/openai/human-eval-infilling.git", "vcs_info": {"vcs": "git"}},
        {"url": "file:///home/me/human-eval-infilling", "dir_info": {"editable": True}},
    ],
)
def test_the_package_of_the_repository_is_read(tmp_path, monkeypatch, direct_url):
    install(tmp_path, direct_url, with_data=True)
    monkeypatch.syspath_prepend(tmp_path)
    path = official_file("single-line", tmp_path / "none")
    assert path == tmp_path / "data" / "HumanEval-SingleLineInfilling.jsonl.gz"
    with pytest.raises(InputError, match="came without its data"):
        official_file("multi-line", tmp_path / "none")


def test_another_repository_is_refused(tmp_path, monkeypatch):
    install(tmp_path, {"url": "https://github.com/someone/human-eval-infilling", "vcs_info": {"vcs": "git"}})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="does not come from OpenAI's repository"):
        official_file("single-line", tmp_path)
