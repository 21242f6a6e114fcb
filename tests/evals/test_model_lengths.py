"""`--gap_length model` in the evaluations that fill gaps: the model ends them, within a capacity."""

import pytest

from asarm.evals.code.config import CodeConfig
from asarm.evals.code.run import CodeEvaluation
from asarm.evals.stories.config import StoriesConfig
from asarm.evals.stories.data import COLUMNS
from asarm.evals.stories.run import StoriesEvaluation
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from asarm.utils.jsonl import write_json_lines
from support.code_problems import ROWS, write_rows
from support.results import lines_of

SENTENCES = ["The bear was old.", "It was night.", "He asked the owl.", "The owl said no.", "No end.", "He slept."]


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory):
    """{name: (evaluation, configuration class, its own settings)}."""
    folder = tmp_path_factory.mktemp("data")
    write_json_lines(
        folder / "stories.jsonl", [dict(zip(COLUMNS, [f"s{n}", *SENTENCES, "2"], strict=True)) for n in range(4)]
    )
    problems = write_rows(folder / "problems.jsonl", ROWS[:3])
    return {
        "stories": (StoriesEvaluation, StoriesConfig, {"stories": str(folder / "stories.jsonl"), "trials": 3}),
        "code": (CodeEvaluation, CodeConfig, {"problems": [problems], "samples_per_task": 3}),
    }


def evaluation_of(evaluations, name, model, folder, **changes):
    kind, config, own = evaluations[name]
    shared = {
        "models": [model],
        "samplers": ["sequential", "fused"],
        "gap_length": ["oracle", "model"],
        "device": "cpu",
    }
    return kind(from_options(config, output_dir=str(folder), **shared, **own, **changes))


@pytest.mark.parametrize(("name", "longest"), [("stories", {"1/5": 9, "3/5": 27}), ("code", {"single-line": 9})])
def test_the_model_ends_gaps(evaluations, ending_folder, tmp_path, name, longest):
    """Lines have the length of the text, and of tokens drawn one more where the text has ended before the capacity."""
    running = evaluation_of(evaluations, name, ending_folder, tmp_path, gap_capacity=9)
    metrics = running.complete()
    lines = [line for line in lines_of(tmp_path) if line["gap_length"] == "model"]
    assert {line["variant"] for line in lines} == {"sequential model"}
    for line in lines:
        most = longest[line[running.group_field]]
        assert line["drawn"] == line["nfe"] == min(line["length"] + 1, most)
        text = line.get("text", line.get("completion"))
        assert "<gap_end>" not in text
        if line["length"] == 0:
            assert text == ""
    assert len({line["length"] for line in lines}) > 2
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.count("sequential model") >= 3 * len(longest)  # scores, spread, and errors of lengths
    assert "sequential model" in running.summary(metrics)


@pytest.mark.parametrize("name", ["stories", "code"])
def test_other_models_cannot(evaluations, tiny_folder, tmp_path, name):
    with pytest.raises(InputError, match="has no token that ends a gap: leave out gap_length model") as caught:
        evaluation_of(evaluations, name, tiny_folder, tmp_path).units()
    assert tiny_folder in str(caught.value)


def test_the_capacity_and_its_mark_fit_into_the_model(evaluations, ending_folder, tmp_path):
    """Context is cut so that gap and mark fit; stories, which are never cut, are refused."""
    evaluation_of(evaluations, "code", ending_folder, tmp_path / "code", gap_capacity=500, max_items=1).complete()
    longest = max(line["length"] for line in lines_of(tmp_path / "code"))
    assert longest <= 126
    with pytest.raises(InputError, match="but the model takes at most 128"):
        evaluation_of(evaluations, "stories", ending_folder, tmp_path / "stories", gap_capacity=120).units()
