"""`asarm infill --file`: many texts, and an output that an interrupted run goes on with."""

import json

import pytest

from asarm.cli import infill
from asarm.filling.files import texts_of
from asarm.filling.infiller import Infiller
from asarm.utils.errors import InputError

TEXTS = ["Once upon a ___3 there", "the ___2 in a ___2", "___4 slept", "It is ___3", "a ___2 b"]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)), "utf-8")
    return path


@pytest.fixture
def run(tiny_folder, capsys):
    def run(*arguments):
        infill.main([*map(str, arguments), "--model", tiny_folder])
        return capsys.readouterr()

    return run


def test_rows_lines_and_whole_files(tmp_path, file):
    plain = tmp_path / "texts.txt"
    plain.write_text("\n".join(TEXTS[:2]) + "\n\n", "utf-8")
    assert [text for _, text in texts_of(str(file))] == TEXTS
    assert texts_of(str(plain), lines=True) == [(f"{plain}, line {n}", TEXTS[n - 1]) for n in (1, 2)]
    assert texts_of(str(plain)) == [(str(plain), "\n".join(TEXTS[:2]) + "\n")]


def test_texts_of_a_file_are_those_of_their_seeds(run, file):
    printed = run("--file", file, "--seed", 7, "--batch_size", 2).out.splitlines()
    assert printed == [run(text, "--seed", 7 + index).out.rstrip("\n") for index, text in enumerate(TEXTS)]


def test_an_interrupted_run_goes_on(run, file, tmp_path, monkeypatch):
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    options = ["--file", file, "--samples", 2, "--batch_size", 2]
    run(*options, "--output", whole)
    lines = [json.loads(line) for line in whole.read_text("utf-8").splitlines()]
    assert [(line["index"], line["text"]) for line in lines] == list(enumerate(TEXTS))
    assert {len(line["fillings"]) for line in lines} == {2}
    fill, calls = Infiller.fill, []

    def interrupted(self, batches, *arguments, **keywords):
        calls.append(len(batches))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return fill(self, batches, *arguments, **keywords)

    monkeypatch.setattr(Infiller, "fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*options, "--output", output)
    assert len(output.read_text("utf-8").splitlines()) == 2
    with output.open("a", encoding="utf-8") as opened:
        opened.write('{"index": 2, "te')  # half a line
    run(*options, "--output", output)
    assert calls == [2, 2, 2, 1]
    found = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    for line in [*found, *lines]:
        for one in line["fillings"]:
            del one["seconds"]
            one["log_prob"] = round(one["log_prob"], 3)
    assert found == lines
    run(*options, "--output", output)  # nothing is left to do
    assert len(calls) == 4


def test_an_output_of_other_settings_is_refused(run, file, tmp_path):
    output = tmp_path / "out.jsonl"
    run("--file", file, "--output", output)
    for change in (["--seed", 1], ["--top_k", 3], ["--samples", 2]):
        with pytest.raises(InputError, match="has results of other settings or texts"):
            run("--file", file, "--output", output, *change)
    run("--file", file, "--output", output, "--batch_size", 3)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["a ___", "no gap"], ["--lines"], "line 2: no ___ in the text"),
        (["a ___"], ["--lines", "--html", "page.html", "--output", "x"], "html is for one text"),
        ([""], ["--lines"], "is empty"),
    ],
)
def test_texts_that_cannot_be(run, tmp_path, lines, options, message):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(lines), "utf-8")
    with pytest.raises(InputError, match=message):
        run("--file", path, *options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a ___", "--lines"], "lines belongs to --file"),
        (["a ___", "--output", "x"], "output is for the texts of --file"),
        (["a ___", "--best_of", "2", "--samples", "3"], "best_of must be at least num_return_sequences"),
        (["a ___", "--temperature", "0", "--num_return_sequences", "3"], "temperature 0 gives one text, not 3"),
        (["a ___", "--serve"], "serve takes its texts from the page"),
        (["--serve", "--port", "0"], "port must lie in"),
        (["a ___", "--allowed", "zz+"], "no token matches"),
    ],
)
def test_options_that_contradict_each_other(run, arguments, message):
    with pytest.raises(InputError, match=message):
        run(*arguments)
