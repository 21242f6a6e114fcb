"""Evaluations by several processes: their commands, and what must be equal whatever the number of processes."""

import json
import re
import socket
import sys
from pathlib import Path

import pytest

from asarm.__main__ import main
from asarm.evals.stories.data import COLUMNS
from asarm.utils.jsonl import write_json_lines
from support.code_problems import ROWS, write_rows
from support.results import lines_of

SENTENCES = ["The bear was old.", "It was night.", "He asked the owl.", "The owl said no.", "No end.", "He slept."]
RANKED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def commands(folder: Path, model: str, text: str) -> dict[str, list[str]]:
    """Small evaluations of a model, by name, without --output_dir. folder: for their data."""
    (folder / "text.txt").write_text(text * 3, encoding="utf-8")
    stories = [dict(zip(COLUMNS, [f"s{n}", *SENTENCES, "2"], strict=True)) for n in range(5)]
    write_json_lines(folder / "stories.jsonl", stories)
    problems = write_rows(folder / "problems.jsonl", ROWS)
    data = {name: str(folder / f"{name}.{kind}") for name, kind in (("text", "txt"), ("stories", "jsonl"))}
    texts = f"--text {data['text']} --length 16 32 --num_texts 5 --k_sweep 2 --k_sweep_texts 2 --batch_1_texts 1"
    gaps = f"bag --stories {data['stories']} --tasks 1/5 --trials 2 --gap_length oracle search --proposals 2"
    programs = f"frequent-line --problems {problems} --samples_per_task 2 --gap_length oracle --allow_code_execution"
    shared = f"tiny --model {model} --device cpu --batch_size 2 --samplers fused"
    return {
        "decode": f"decode {shared} {texts}".split(),
        "stories": f"stories {shared} {gaps}".split(),
        "code": f"code {shared} {programs}".split(),
        "language": f"language {shared} --max_items 5".replace("fused", "greedy").split(),
    }


def free_port() -> int:
    """A port at which processes can meet."""
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return end.getsockname()[1]


def asarm(patch: pytest.MonkeyPatch, *arguments: str | Path, rank: int = 0, count: int = 1) -> int:
    """The exit code of a command, as one of `count` processes."""
    for name, value in zip(RANKED, (rank, count, rank), strict=True):
        patch.setenv(name, str(value))
    patch.setattr(sys, "argv", ["asarm", *map(str, arguments)])
    try:
        return main()
    finally:
        for name in RANKED:
            patch.delenv(name)


def results_of(folder: Path) -> dict[str, object]:
    """What a run left: names of all files, lines and metrics, without times."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        "lines": [json.dumps(line | {"seconds": 0}) for line in lines_of(folder)],
        "metrics": untimed(metrics),
    }


def untimed(value: object) -> object:
    """A value of a JSON file without times, which keys tell of, and without provenance."""
    if isinstance(value, dict):
        return {key: untimed(one) for key, one in value.items() if not re.search("second|speed|fast|provenance", key)}
    return [untimed(one) for one in value] if isinstance(value, list) else value
