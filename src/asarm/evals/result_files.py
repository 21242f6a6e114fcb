"""The result files of a run: `samples.jsonl` with all lines and, while several processes work, one for each of them.

Process 3 appends to `samples-3.jsonl`. Every unit of the run belongs to one process by its number, and is done if one
of the files has all its lines; so the next start, with whatever number of processes, does what is missing and nothing
twice. Who finds no unit missing merges: `samples.jsonl` then has all lines in the order of the units, as if one process
had run. `shards.json` says until then what is to be merged, so that `asarm merge` needs no model.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asarm.utils.cluster.processes import WHOLE, Shard
from asarm.utils.errors import InputError
from asarm.utils.files import write_json
from asarm.utils.jsonl import read_json_lines, write_json_lines

MANIFEST = "shards.json"
Key = tuple  # values of the fields of a line that say which unit it is of


@dataclass
class Plan:
    """What a run consists of. fields: those that tell units apart. units: {their values: number of lines}, in order."""

    fields: tuple[str, ...]
    units: dict[Key, int]

    def key(self, line: dict) -> Key:
        """Which unit a line is of."""
        return tuple(line[name] for name in self.fields)


def file_of(path: Path, shard: Shard) -> Path:
    """The file that a process appends to where a run of one process appends to `path`."""
    return path if shard.count == 1 else path.with_name(f"{path.stem}-{shard.index}{path.suffix}")


def files_of_shards(path: Path) -> list[Path]:
    """Those beside `path` that processes have appended to, by their numbers."""
    prefix = f"{path.stem}-"
    found = {file.stem.removeprefix(prefix): file for file in path.parent.glob(f"{prefix}*{path.suffix}")}
    return [found[number] for number in sorted(filter(str.isdecimal, found), key=int)]


def all_files(path: Path) -> list[Path]:
    """`path` and those of `files_of_shards`, which come first: while they are merged, each line is in one that is read
    in this order."""
    return [*files_of_shards(path), path]


def merge_lines(path: Path, lines: Iterable[dict] | None = None) -> None:
    """Make `path` the only file, with `lines` in it; by default with those of all files."""
    shards = files_of_shards(path)
    if lines is None:
        lines = [line for file in [path, *shards] for line in read_json_lines(file)]
    write_json_lines(path, list(lines))
    for file in shards:
        file.unlink(missing_ok=True)


class ResultFiles:
    """Those of a run in a folder, as one of its processes sees them."""

    def __init__(self, folder: Path, plan: Plan, shard: Shard = WHOLE):
        self.folder, self.plan, self.shard = folder, plan, shard
        self.path, self.manifest = folder / "samples.jsonl", folder / MANIFEST
        self.own = file_of(self.path, shard)
        self.counted: dict[Path, tuple[int, int]] = {}

    def begin(self, about: dict[str, Any]) -> set[Key]:
        """Remove lines of torn units from this process's file, and note what will have to be merged. Returns the units
        that are done. about: what `asarm merge` needs to know besides."""
        if self.shard.count == 1 or self.own.exists():
            write_json_lines(self.own, [line for lines in self._whole(self.own).values() for line in lines])
        done = set(self.done())
        if self.shard.count > 1 and (files_of_shards(self.path) or len(done) < len(self.plan.units)):
            units = [[*key, count] for key, count in self.plan.units.items()]
            about = about | {"processes": self.shard.count, "fields": self.plan.fields, "units": units}
            write_json(self.manifest, about)
        return done

    def done(self) -> dict[Key, list[dict]]:
        """The lines of every unit that is done, in the order of the units."""
        found: dict[Key, list[dict]] = {}
        for file in all_files(self.path):
            found = self._whole(file) | found
        return {key: found[key] for key in self.plan.units if key in found}

    def missing(self) -> list[Key]:
        """The units that are not done."""
        done = self.done()
        return [key for key in self.plan.units if key not in done]

    def merge(self) -> None:
        """Put all lines into `samples.jsonl`, in the order of the units, if several processes have written."""
        if files_of_shards(self.path):
            merge_lines(self.path, [line for lines in self.done().values() for line in lines])

    def count(self) -> int:
        """How many lines there are in all files; only what was added since the last call is read."""
        for file in all_files(self.path):
            size, lines = self.counted.get(file, (0, 0))
            try:
                with file.open("rb") as opened:
                    opened.seek(size)
                    new = opened.read()
            except FileNotFoundError:
                continue
            self.counted[file] = size + len(new), lines + new.count(b"\n")
        return sum(lines for _, lines in self.counted.values())

    def _whole(self, file: Path) -> dict[Key, list[dict]]:
        """The lines of every unit of which a file has all."""
        found: dict[Key, list[dict]] = {}
        for line in read_json_lines(file):
            found.setdefault(self.plan.key(line), []).append(line)
        return {key: lines for key, lines in found.items() if len(lines) == self.plan.units.get(key)}


def read_manifest(folder: Path) -> tuple[dict[str, Any], Plan]:
    """What there is to merge in a folder. Raises InputError if that is nothing."""
    path = folder / MANIFEST
    if not path.exists():
        state = "merged already" if (folder / "metrics.json").exists() else "no results folder of several processes"
        raise InputError(f"nothing to merge in {folder}: it is {state}, as it has no {MANIFEST}")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return about, Plan(tuple(about["fields"]), {tuple(unit[:-1]): unit[-1] for unit in about["units"]})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}): give the command that made the results again") from error


def check_all_done(results: ResultFiles, processes: int) -> None:
    """Raise InputError if units of a run of some processes are missing, and say whose they are."""
    missing, total = set(results.missing()), len(results.plan.units)
    if missing:
        owners = sorted({number % processes for number, key in enumerate(results.plan.units) if key in missing})
        named = f"shard{'s' * (len(owners) > 1)} {', '.join(map(str, owners))} of {processes}"
        raise InputError(
            f"{results.folder} is not finished: {len(missing)} of {total} units are missing, those of {named}: give "
            "the command again, with any number of processes"
        )
