"""The README's commands and examples, and the links of all pages."""

import re
import shlex
from pathlib import Path

import pytest
from huggingface_hub import constants

from asarm.__main__ import main

ROOT = Path(__file__).parent.parent
SANDBOX = [ROOT / "src/asarm/evals/code/sandbox"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(beginning: str) -> list[str]:
    lines = "\n".join(blocks("bash")).splitlines()
    return [line for line in lines if line.startswith(beginning)]


def test_the_python_example_runs(capsys):
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"The old man.+ and smiled\. \| NFE \d+ of 9\n", printed, re.DOTALL), printed
    assert re.search(r"log p\(gaps \| rest\) = -\d+", printed)


@pytest.mark.parametrize("command", commands("python -m asarm infill"))
def test_the_infill_example_runs(command, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the model is SmolLM2 only where that is there already
    monkeypatch.setattr("sys.argv", ["asarm", *shlex.split(command)[3:]])
    assert main() == 0
    assert "Once upon a time" in capsys.readouterr().out


def test_there_is_an_infill_example():
    assert commands("python -m asarm infill")


@pytest.mark.parametrize("command", commands("bash "))
def test_wrappers_exist(command):
    assert (ROOT / command.split()[1]).is_file()


PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_exist(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target


def test_files_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = [name for name in re.findall(r"`([\w./]+)`", text) if name.endswith((".py", "/"))]
    assert len(named) > 30
    folders = [ROOT, ROOT / "src" / "asarm"]
    others = ("checkpoint-NNNNNN/", "model/", "report.py", "src/asarm/", "docs/", "benchmarks/", "tests/", "cli/")
    for name in named:
        assert name in others or any((folder / name).exists() for folder in [*folders, *SANDBOX]), name
