"""What the `paper` presets say of the paper's protocol."""

import pytest

from asarm.cli import code, decode, language, stories, train
from asarm.cli.presets.protocol import UNTRANSFORMED, Protocol, follows_paper
from asarm.training.presets import PRESETS
from asarm.utils.config import flat

NEUTRAL = {  # options of evaluations that change neither what the paper's rows are nor how they are made, or add rows
    "model", "revision", "sampler", "draft", "alternatives", "adaptive", "steps", "seed", "output_dir", "device",
    "compile", "k_sweep", "k_sweep_texts", "tolerance_sweep", "batch_1_texts", "parallel_steps", "length_sampler",
    "proposals", "gap_capacity",
    "white_space", "max_items", "data_dir", "workers", "timeout", "allow_code_execution",
}  # fmt: skip


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """A terminal as wide as the lines."""
    monkeypatch.setenv("COLUMNS", "400")


def unwrapped(shown):
    return shown.replace("\n  ", " ")


def test_lines_are_as_wide_as_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = Protocol({f"setting_{n}": n for n in range(20)}).describe({f"setting_{n}": n for n in range(20)})
    assert all(len(line) <= 40 for line in lines.splitlines()[1:])
    assert unwrapped(lines).splitlines()[1] == "- as the paper: " + "; ".join(f"setting_{n} {n}" for n in range(20))


def test_others_are_named_where_they_differ_and_all_items_are_all():
    protocol = Protocol({"max_items": 0}, (), {"a": 1, "b": 2}, lambda in_force: {"b": in_force["c"]})
    assert protocol.describe({"max_items": 0, "a": 1, "b": 7, "c": 2}).splitlines()[1:] == [
        "- as the paper: max_items all"
    ]
    assert protocol.describe({"max_items": 3, "a": 0, "b": 2, "c": 3}).splitlines()[1:] == [
        "- not as the paper: max_items 3 (the paper: all); a 0 (the paper: 1); b 3 (the paper: 2)"
    ]


@pytest.mark.parametrize("command", [decode, stories, language, code])
def test_no_option_of_an_evaluation_is_forgotten(command):
    protocol = Protocol(decode.PAPER) if command is decode else command.PROTOCOL
    options = set(flat(command.parse_arguments(["paper"])))
    assert options - NEUTRAL <= {*protocol.settings, *protocol.others, *UNTRANSFORMED}


def test_transforms_are_named_where_they_differ():
    shown = language.PROTOCOL.describe(flat(language.parse_arguments(["paper", "--top_p", "0.9"])))
    assert "top_p 0.9 (the paper: 1)" in unwrapped(shown)
    assert "top_k" not in shown


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
    lines = unwrapped(capsys.readouterr().out).splitlines()
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
    shown = unwrapped(capsys.readouterr().out)
    assert "dtype float32" in shown.split("- not as the paper: ")[0]
    assert "temperature 0.5 (the paper: 1)" in shown.split("- not as the paper: ")[1]
    with pytest.raises(pytest.fail.Exception):
        command.main(["tiny"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("paper")])
def test_training_says_what_it_follows(preset):
    config = train.parse_arguments([preset, "--learning_rate", "2e-5"])
    shown = unwrapped(train.protocol_of(preset).describe(flat(config)))
    assert "bf16 True (the paper: False)" in shown
    assert "learning_rate 2e-05 (the paper: 1e-05)" in shown
    assert f"mask_low {PRESETS[preset]['mask_low']:g}" in shown.split("- not as the paper: ")[0]


@pytest.mark.parametrize(
    ("options", "processes", "differing"),
    [
        ([], 1, ""),
        (["--objective", "parallel"], 1, "objective parallel (the paper: joint)"),
        (["--order", "random"], 1, "order random (the paper: ascending)"),
        (["--optimizer", "muon"], 1, "optimizer muon (the paper: adamw)"),
        (["--unpacked"], 1, "unpacked True (the paper: False)"),
        (["--train_files", "x.txt"], 1, "train_files x.txt (the paper: none)"),
        (["--gradient_accumulation_steps", "1"], 4, ""),
        (["--gradient_accumulation_steps", "1"], 1, "sequences a step 8 (the paper: 32)"),
    ],
)
def test_training_says_what_differs(options, processes, differing):
    config = train.parse_arguments(["paper-nlp", "--bf16", "False", *options])
    shown = unwrapped(train.protocol_of("paper-nlp", processes).describe(flat(config)))
    assert ("- not as the paper: " in shown) == bool(differing)
    assert differing in shown


def test_other_training_has_no_protocol():
    assert train.protocol_of("tiny") is None
    assert train.protocol_of(None) is None
