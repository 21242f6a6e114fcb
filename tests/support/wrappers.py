"""The shell wrappers in a copy of the repository, on machines with and without an environment."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import REPO

WRAPPER = "_run_speculative_decoding.sh"


STAND_IN = """#!/usr/bin/env bash
# python3 without any packages. `-m venv` puts a copy of it into the environment that it makes.
echo "$(basename "$(dirname "$(dirname "$0")")") $*" >> "$LOG"
case "$*" in
    *has_packages.py*) exit 1 ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install "*) sleep 0.3; exit "${PIP_EXIT:-0}" ;;
    "-m asarm "*) printf 'ran: %s\\n' "$*" ;;
esac
"""


@pytest.fixture
def repo(tmp_path):
    """A copy of what a wrapper needs of the repository."""
    copy = tmp_path / "my repo"
    copy.mkdir()
    for name in (WRAPPER, "pyproject.toml", "requirements.txt", "eval_datasets", "src"):
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture
def bare(tmp_path):
    """Environment variables of a machine on which nothing is installed."""
    programs = tmp_path / "machine" / "bin"
    programs.mkdir(parents=True)
    (programs / "python3").write_text(STAND_IN)
    (programs / "python3").chmod(0o755)
    keep = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "CONDA_PREFIX")}
    keep = {name: value for name, value in keep.items() if not name.startswith("SLURM_")}
    return keep | {"PATH": f"{programs}:/usr/bin:/bin", "LOG": str(tmp_path / "log")}


def active():
    """Environment variables in which the environment of these tests is active."""
    cleaned = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return cleaned | {"VIRTUAL_ENV": sys.prefix, "HF_HUB_OFFLINE": "1"}


def run(script, *arguments, env, cwd):
    command = ["bash", str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)


def installations(env):
    log = Path(env["LOG"])
    return [line for line in log.read_text().splitlines() if " -m pip install " in line] if log.exists() else []
