"""What the `paper` presets say of the paper's protocol."""

import pytest

from asarm.cli import code, decode, language, stories, train
from asarm.cli.presets import Protocol, follows_paper
from asarm.training.presets import PRESETS
from asarm.utils.config import flat


def test_settings_in_force_are_compared_with_the_papers():
    shown = Protocol({"dtype": "float32", "k": 5, "length": [512]}, ("a cache",)).describe(
        {"dtype": "bfloat16", "k": 5, "length": [512], "other": 1}
    )
    assert shown.splitlines()[1:] == [
        "- as the paper: k 5; length 512",
        "- not as the paper: dtype bfloat16 (the paper: float32)",
        "- in any case: a cache",
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], True), (["--k", "3"], True), (["paper"], True), (["paper-nlp"], True), (["tiny", "--k", "3"], False)],
)
def test_the_papers_presets_follow_the_paper(arguments, expected):
    assert follows_paper(arguments) == expected


@pytest.mark.parametrize("ablation", ["", *decode.ABLATIONS])
@pytest.mark.parametrize(
    ("options", "differing"),
    [
        ([], "batch_size 16 (the paper: 1)"),
        (["--batch_size", "1"], ""),
        (["--batch_size", "1", "--dtype", "bfloat16"], "dtype bfloat16 (the paper: float32)"),
        (["--batch_size", "1", "--draft_temperature", "0.7"], "draft_temperature 0.7 (the paper: none)"),
        (["--batch_size", "1", "--model", "x"], "models x (the paper: "),
    ],
)
def test_decode_says_what_differs(ablation, options, differing, monkeypatch, capsys):
    monkeypatch.setattr(decode, "DecodingEvaluation", lambda config: pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        decode.main([*([ablation] if ablation else []), "paper", *options])
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith("- not as the paper: ")]
    assert len(found) == bool(differing)
    assert not differing or differing in found[0]
    assert any("packing rows" in line for line in lines)


@pytest.mark.parametrize(
    ("command", "evaluation", "arguments"),
    [
        (stories, "StoriesEvaluation", []),
        (code, "CodeEvaluation", []),
        (language, "LanguageEvaluation", []),
    ],
)
def test_every_evaluation_says_what_it_follows(command, evaluation, arguments, monkeypatch, capsys):
    monkeypatch.setattr(command, evaluation, lambda config: pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        command.main(["paper", "--temperature", "0.5", *arguments])
    shown = capsys.readouterr().out
    assert "dtype float32" in shown.split("- not as the paper: ")[0]
    assert "temperature 0.5 (the paper: 1)" in shown.split("- not as the paper: ")[1]
    with pytest.raises(pytest.fail.Exception):
        command.main(["tiny"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("paper")])
def test_training_says_what_it_follows(preset):
    config = train.parse_arguments([preset, "--learning_rate", "2e-5"])
    shown = train.protocol_of(preset).describe(flat(config))
    assert "bf16 True (the paper: False)" in shown
    assert "learning_rate 2e-05 (the paper: 1e-05)" in shown
    assert f"mask_low {PRESETS[preset]['mask_low']:g}" in shown.split("- not as the paper: ")[0]


def test_other_training_has_no_protocol():
    assert train.protocol_of("tiny") is None
    assert train.protocol_of(None) is None
