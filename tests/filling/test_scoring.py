"""`asarm score`: log-likelihoods of what fills gaps."""

import json

import pytest
import torch

import asarm
from asarm.cli import score
from asarm.filling.scoring import candidate_parts, filled_batch, parts_of, scores_of
from asarm.sampling.config import SamplerConfig
from asarm.utils.errors import InputError


@pytest.mark.parametrize(
    ("given", "filled", "parts"),
    [
        ("a ___ b ___3.", "a cat sat b on c.", [" cat sat", " on c"]),
        ("___ b", "a cat b", ["a cat"]),
        ("a ___", "a", [""]),
        ("a ___", "a b c", [" b c"]),
        (r"\___ ___ x", "___ y x", [" y"]),
        ("a ___ and ___ z", "a b and c and d z", [" b", " c and d"]),
    ],
)
def test_parts_of_a_filled_text(given, filled, parts):
    assert parts_of(given, filled) == parts


@pytest.mark.parametrize(
    ("given", "filled", "message"),
    [
        ("a b", "a b", "no ___ in"),
        ("a ___ b", "c d b", "does not begin and end as"),
        ("a ___ x ___ b", "a c b", "has no ' x'"),
        ("ab ___ ba", "aba", "does not begin and end|too short"),
    ],
)
def test_another_text_is_refused(given, filled, message):
    with pytest.raises(InputError, match=message):
        parts_of(given, filled)


def test_scores_are_those_of_log_prob(infiller):
    """Of what the model itself wrote, also under transforms, and in batches."""
    text, config = "Once ___4 lived in a ___2 by the sea.", SamplerConfig(temperature=0.7, top_p=0.9)
    batches, expected = [], []
    for one in asarm.infill(text, infiller, num_return_sequences=5, allowed="[ a-z]+"):
        filled = infiller.parse(text)._replace(tokens=torch.tensor([one.tokens]))
        expected.append(float(asarm.log_prob(infiller.model, *filled, transforms=config).sum()))
        batches.append(filled)
    found = list(scores_of(infiller, batches, config, batch_size=2))
    assert [one.log_prob for one in found] == pytest.approx(expected, abs=1e-3)
    assert [one.tokens for one in found] == [6] * 5


def test_a_gap_of_unknown_length_has_its_end_scored(ending):
    batch = filled_batch(ending.codec, "a ___ b", [" old bear"], capacity=12)
    (one,) = scores_of(ending, [batch], SamplerConfig(), 1)
    (closed,) = scores_of(ending, [filled_batch(ending.codec, "a ___ b", [" old bear"])], SamplerConfig(), 1)
    assert one.tokens == closed.tokens == len(ending.codec.encode(" old bear"))
    assert one.log_prob != closed.log_prob
    with pytest.raises(InputError, match="4 tokens, more than the gap's 1"):
        filled_batch(ending.codec, "a ___ b", [" old bear"], capacity=1)


def test_the_command_ranks_candidates(tiny_folder, capsys):
    arguments = ["Once upon a ___ there lived", "time", "castle", "bear", "--model", tiny_folder]
    score.main([*arguments, "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["log_prob"] for line in lines] == sorted((line["log_prob"] for line in lines), reverse=True)
    assert {line["text"] for line in lines} == {f"Once upon a {word} there lived" for word in arguments[1:4]}
    score.main(arguments)
    assert capsys.readouterr().out.count("perplexity") == 3


def test_the_command_reads_two_files(tiny_folder, tmp_path, capsys):
    (tmp_path / "given.txt").write_text("Once ___ lived\n___ slept\n", "utf-8")
    (tmp_path / "filled.jsonl").write_text('{"text": "Once a bear lived"}\n{"text": "he slept"}\n', "utf-8")
    files = ["--given", str(tmp_path / "given.txt"), "--filled", str(tmp_path / "filled.jsonl")]
    score.main([*files, "--model", tiny_folder, "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["Once a bear lived", "he slept"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a text with gaps and candidates"),
        (["a ___"], "give a text with gaps and candidates"),
        (["a ___ b ___", "c"], "has 1 parts, separated by ___, for 2 gaps"),
        (["a ___", "x", "--given", "f", "--filled", "g"], "give a text with gaps and candidates"),
        (["--given", "f"], "given and filled belong together"),
        (["a ___", "", "b"], "has nothing in it"),
        (["a ___", "<mask>"], "stands in no text"),
        (["a ___", "b", "--open_gaps"], "has no token that ends a gap"),
        (["a ___", "b" * 400], "the model takes at most 128"),
        (["a ___", "b", "--top_p", "0"], "top_p must lie above 0"),
    ],
    ids=str,
)
def test_bad_input(tiny_folder, infiller, arguments, message):
    arguments = [one.replace("<mask>", infiller.codec.mask_token) for one in arguments]
    with pytest.raises(InputError, match=message):
        score.main([*arguments, "--model", tiny_folder])


def test_parts_of_candidates():
    assert candidate_parts("a ___ b ___", "x ___ y z") == [" x", " y z"]
    assert candidate_parts("a___b", " x") == [" x"]
