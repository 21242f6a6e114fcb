"""What every evaluation does: claim a folder, find out what is left to do, write line after line, go on after a stop.

An evaluation is a list of units. A unit is run and written at once, as one or more lines of `samples.jsonl`; a line
says by some of its fields which unit it belongs to. Results must be a function of the settings, not of what was run
before in the same process.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from asarm.evals.config import EvalConfig
from asarm.utils.errors import InputError
from asarm.utils.files import write_json
from asarm.utils.jsonl import read_json_lines, write_json_lines
from asarm.utils.progress import update_seconds
from asarm.utils.provenance import provenance


class Unit(Protocol):
    """What is run and written at once. key: tells it from all others, and is found in its lines. size: its lines.
    name: shown beside the progress bar."""

    key: tuple
    size: int
    name: str


def sampling_seed(*numbers: int) -> int:
    """A seed made of the run's seed and the numbers of what is decoded, whatever the variant and the batch."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def run_settings(config: EvalConfig, *left_out: str) -> dict:
    """What the results of a run depend on, as far as its options and the machine go. left_out: options that they do not
    depend on."""
    unwanted = ("output_dir", "sampler", "draft", *left_out)
    kept = {name: value for name, value in asdict(config).items() if name not in unwanted}
    return kept | {"hardware": provenance()["device"]}


def claim(output: Path, settings: dict) -> None:
    """Make `output` the folder of a run with these settings, or raise InputError if it is another's."""
    path = output / "config.json"
    settings = json.loads(json.dumps(settings))
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["settings"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not of this evaluation: choose another output_dir") from error
        changed = [name for name in settings | before if settings.get(name) != before.get(name)]
        if changed:
            shown = ", ".join(f"{name} {before.get(name)!r}, now {settings.get(name)!r}" for name in changed)
            raise InputError(f"{output} holds results of other settings ({shown}): choose another output_dir")
    else:
        write_json(path, {"settings": settings, "provenance": provenance()})


def unfinished(path: Path, units: Sequence[Unit], fields: Sequence[str]) -> list[Unit]:
    """The units whose lines are not all in `path`. Torn lines and lines of torn units are removed from it.

    fields: those of a line that make the key of its unit.
    """
    lines = read_json_lines(path)
    keys = [tuple(line[field] for field in fields) for line in lines]
    found = {}
    for key in keys:
        found[key] = found.get(key, 0) + 1
    done = {unit.key for unit in units if found.get(unit.key) == unit.size}
    write_json_lines(path, [line for key, line in zip(keys, lines, strict=True) if key in done])
    return [unit for unit in units if unit.key not in done]


def run_units(
    path: Path, units: Sequence[Unit], todo: Sequence[Unit], run: Callable[[Unit], list[dict]], word: str
) -> None:
    """Run those of the units that are still to do and append their lines to `path`. word: what a line is about."""
    total, left = (sum(unit.size for unit in some) for some in (units, todo))
    with (
        path.open("a", encoding="utf-8") as file,
        tqdm(total=total, initial=total - left, unit=word, mininterval=update_seconds()) as bar,
    ):
        for unit in todo:
            bar.set_description(unit.name, refresh=False)
            lines = run(unit)
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            bar.update(len(lines))
