"""`asarm judge`: finished decodings are scored by another model as if it had scored them from the start."""

import json
import math
import shutil
import sys

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from asarm.__main__ import main
from asarm.evals.decoding import rescore
from asarm.utils.config import OptionParser, options_of
from asarm.utils.jsonl import read_json_lines, write_json_lines
from support.results import lines_of


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_folder):
    """Two small causal models."""
    folders = [tmp_path_factory.mktemp("causal") / name for name in ("one", "other")]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
        tokenizer.bos_token = tokenizer.eos_token
        config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


def command(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["asarm", *map(str, arguments)])
    return main()


@pytest.fixture(scope="module")
def decoded(tmp_path_factory, tiny_folder, sample_text, models):
    """Folders of the same decodings, by the model that scored them."""
    folder = tmp_path_factory.mktemp("decoded")
    (folder / "text.txt").write_text(sample_text * 3, encoding="utf-8")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for model in models:
            found[model.name] = folder / f"by-{model.name}"
            options = ["--model", tiny_folder, "--text", folder / "text.txt", "--length", "32", "--num_texts", "5"]
            options += ["--samplers", "sequential", "fused", "--k_sweep", "2", "--k_sweep_texts", "2"]
            options += ["--batch_size", "2", "--add_start_token", "--entropy_of", "whole"]
            assert not command(patch, "decode", "tiny", *options, "--judge", model, "--output_dir", found[model.name])
    return found


@pytest.fixture
def results(decoded, tmp_path):
    return shutil.copytree(decoded["one"], tmp_path / "decoded")


def names_and_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_scores_are_those_of_a_run_that_had_the_model_from_the_start(results, decoded, models, monkeypatch, capsys):
    before = names_and_bytes(results)
    assert command(monkeypatch, "judge", results, "--judge", models[1], "--device", "cpu") == 0
    (folder,) = results.glob("judge-*")
    assert folder.name.endswith("-other")
    assert names_and_bytes(results) == before
    shown = capsys.readouterr().out
    assert f"perplexity and entropy under {models[1]}." in shown
    assert str(folder) in shown
    wanted = {(line["variant"], line["index"]): line for line in lines_of(decoded["other"])}
    costs = {(line["variant"], line["index"]): line for line in lines_of(results)}
    lines = lines_of(folder)
    assert len(lines) == len(wanted)
    for line in lines:
        key = line["variant"], line["index"]
        assert [line[name] for name in ("gen_nll", "gen_ppl", "entropy")] == pytest.approx(
            [wanted[key][name] for name in ("gen_nll", "gen_ppl", "entropy")]
        )
        assert [line[name] for name in ("seconds", "nfe", "text")] == [
            costs[key][name] for name in ("seconds", "nfe", "text")
        ]
    metrics, whole = (json.loads((path / "metrics.json").read_text()) for path in (folder, decoded["other"]))
    for name, one in metrics["variants"].items():
        assert one["perplexity"] == pytest.approx(whole["variants"][name]["perplexity"])
    assert {path.name for path in decoded["other"].iterdir()} == {path.name for path in folder.iterdir()}


def test_the_options_of_the_scoring_are_those_of_the_decoding_unless_given(results, models, monkeypatch, tmp_path):
    judge = ["judge", results, "--judge", models[0], "--device", "cpu"]
    other = ["--add_start_token", "false", "--output_dir", tmp_path / "other"]
    assert command(monkeypatch, *judge) == command(monkeypatch, *judge, *other) == 0
    (folder,) = results.glob("judge-*")
    nll = {path: [line["gen_nll"] for line in lines_of(path)] for path in (results, folder, tmp_path / "other")}
    assert sorted(nll[results]) == pytest.approx(sorted(nll[folder]))
    assert min(abs(a - b) for a, b in zip(nll[folder], nll[tmp_path / "other"], strict=True)) > 1e-6


@pytest.mark.parametrize(
    ("words", "value"), [([], None), (["--add_start_token"], True), (["--add_start_token", "false"], False)]
)
def test_a_flag_without_a_default_needs_no_value(words, value):
    parser = OptionParser(options_of(rescore.RescoringConfig))
    parser.add_argument("results")
    options, _ = parser.parse_args_into_dataclasses(["--judge", "gpt2", *words, "results"], look_for_args_file=False)
    assert options.add_start_token is value


def test_true_texts_are_scored_too(results, models, monkeypatch, capsys):
    lines = [line | {"true_text": f"The true text number {line['index']}."} for line in lines_of(results)]
    write_json_lines(results / "samples.jsonl", lines)
    assert command(monkeypatch, "judge", results, "--judge", models[1], "--device", "cpu") == 0
    (folder,) = results.glob("judge-*")
    found = {line["index"]: line["true_ppl"] for line in lines_of(folder)}
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["true_texts"]["perplexity"]["mean"] == pytest.approx(sum(found.values()) / 5)
    assert metrics["true_texts"]["entropy"]["n"] == 5
    assert "The 5 true texts: perplexity " in capsys.readouterr().out
    assert "The 5 true texts: perplexity " in (folder / "table.md").read_text()


def test_an_interrupted_run_goes_on(results, models, monkeypatch):
    judge = ("judge", results, "--judge", models[1], "--device", "cpu")
    assert command(monkeypatch, *judge) == 0
    (folder,) = results.glob("judge-*")
    whole = (folder / "samples.jsonl").read_bytes()
    (folder / "samples.jsonl").write_bytes(whole[: len(whole) // 2])
    kept = len(read_json_lines(folder / "samples.jsonl"))
    scored = []
    score = rescore.Rescoring.scores
    monkeypatch.setattr(rescore.Rescoring, "scores", lambda self, line: scored.append(line) or score(self, line))
    assert command(monkeypatch, *judge) == 0
    assert sorted((folder / "samples.jsonl").read_bytes().splitlines()) == sorted(whole.splitlines())
    assert len(lines_of(results)) - kept <= len(scored) < len(lines_of(results))
    write_json_lines(results / "samples.jsonl", [line | {"text": "another one"} for line in lines_of(results)])
    assert command(monkeypatch, *judge) == 2  # other texts now


@pytest.mark.parametrize(
    ("damage", "options", "message"),
    [
        ("", ["--judge", "self"], "self is the model that decoded: name a causal language model"),
        ("", [], "no model given: name a causal language model with --judge"),
        ("", ["--judge", "{results}/none"], "cannot load the judge"),
        ("all", ["--judge", "gpt2"], "is no results folder of asarm decode: it has no config.json"),
        ("samples.jsonl", ["--judge", "gpt2"], "is no results folder of asarm decode: it has no samples.jsonl"),
        ("metrics.json", ["--judge", "gpt2"], "is not finished: give the command that decodes there again first"),
        (
            "fields",
            ["--judge", "gpt2"],
            "have no model, length, variant, batch, nfe, targets, gen_nll, text",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(results, monkeypatch, capsys, damage, options, message):
    if damage == "all":
        shutil.rmtree(results)
    elif damage == "fields":
        write_json_lines(results / "samples.jsonl", [{"index": 1, "story": "x"}])
    elif damage:
        (results / damage).unlink()
    given = [option.format(results=results) for option in options]
    assert command(monkeypatch, "judge", results, *given) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1, error
    assert error[0].startswith("asarm judge: ")
    assert message in error[0]
    assert not list(results.glob("judge-*"))


def test_perplexity_is_that_of_the_negative_log_likelihood(results, models, monkeypatch):
    assert command(monkeypatch, "judge", results, "--judge", models[1], "--device", "cpu") == 0
    for line in lines_of(next(results.glob("judge-*"))):
        assert line["gen_ppl"] == pytest.approx(math.exp(line["gen_nll"]))
