"""`--help` of every command and wrapper, on wide and narrow terminals."""

import os
import subprocess
import sys

import pytest

from asarm.__main__ import COMMANDS, main
from support.paths import REPO

WRAPPERS = {
    "_run_training.sh": [["tiny"], ["small"], ["paper-nlp"], []],
    "_run_speculative_decoding.sh": [["tiny"], [], ["ablate-k", "tiny"]],
    "_run_nlp_infill_eval.sh": [["tiny"], ["language", "tiny"]],
    "_run_code_infill_eval.sh": [["tiny"], ["judge"]],
}


@pytest.mark.parametrize("columns", ["60", "200"])
@pytest.mark.parametrize("command", [[name] for name in COMMANDS if name != "harness"] + [["code", "judge"]])
def test_help_of_every_command(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.argv", ["asarm", *command, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: asarm " + command[0])
    assert "%%" not in shown


def test_help_lists_the_commands(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["asarm", "--help"])
    assert main() == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_help_shows_percent_signs_as_they_are(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["asarm", "train", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "95 % of them masked" in capsys.readouterr().out


def test_help_of_flags_that_are_on_by_default(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.argv", ["asarm", "decode", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "the opposite of --shuffle" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["decode", "tiny"], ["train", "tiny"], ["code", "judge", "x"], ["judge", "x"]])
def test_unknown_options_are_one_line(command, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["asarm", *command, "--no_such_option", "3"])
    assert main() == 2
    assert capsys.readouterr().err == f"asarm {command[0]}: unknown: --no_such_option 3; --help lists the options\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrapper", "arguments"), [(name, arguments) for name, every in WRAPPERS.items() for arguments in every]
)
def test_help_of_every_wrapper(wrapper, arguments):
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "COLUMNS": "60", "HF_HUB_OFFLINE": "1"}
    command = ["bash", str(REPO / wrapper), *arguments, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: asarm ")
