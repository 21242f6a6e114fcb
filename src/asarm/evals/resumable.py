"""`Evaluation`: what all evaluations implement, so that an interrupted run resumes where it stopped.

An evaluation is a list of units. A unit is run, timed and written as a whole, as one or more lines of `samples.jsonl`;
some fields of a line say which unit it belongs to. Results must be a function of the settings, not of what was
run before in the same process: then they do not depend on how many processes share the units, either.
"""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from asarm.evals.config import EvalConfig, Variant
from asarm.evals.result_files import Key, Plan, ResultFiles
from asarm.utils.cluster.processes import shows_progress, this_shard, use_own_gpu
from asarm.utils.config import flat
from asarm.utils.errors import InputError
from asarm.utils.files import write_json, write_text
from asarm.utils.folder_lock import locked
from asarm.utils.jsonl import read_json_lines
from asarm.utils.progress import update_seconds
from asarm.utils.provenance import device_name, provenance

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
MOST_NAMED = 5  # settings that differ, in a message


@dataclass
class Unit(Generic[Item]):
    """Items that are decoded together under one variant.

    key: the fields of its lines that tell it from all other units. name: shown beside the progress bar. system: what
    decodes, where an evaluation compares several.
    """

    key: dict[str, Any]
    variant: Variant
    items: Sequence[Item]
    name: str
    system: Any = None

    @property
    def values(self) -> Key:
        """Those of its key."""
        return tuple(self.key.values())


class Evaluation(ABC, Generic[Item]):
    """One evaluation in a folder. Models are loaded when `settings` or `units` asks for them; a report needs none."""

    command: ClassVar[str]  # that runs it
    word = "item"  # what a line is about
    may_change: ClassVar[tuple[str, ...]] = ()  # settings of older folders that a resumed run may change

    def __init__(self, config: Any):
        """config: a dataclass with an output_dir."""
        self.output = Path(config.output_dir)
        self.options: dict[str, Any] = flat(config)

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What the results depend on: a folder holds results of one setting only."""

    @abstractmethod
    def units(self) -> list[Unit[Item]]:
        """All units, in the order in which they are run."""

    @abstractmethod
    def run(self, unit: Unit[Item]) -> list[dict]:
        """Run one unit: a line for each of its items."""

    @abstractmethod
    def report(self) -> dict:
        """Write metrics, tables and plots, made from the result files only. Returns the metrics."""

    @abstractmethod
    def summary(self, metrics: dict) -> str:
        """What is printed at the end; it fits a screen."""

    def describe(self, todo: int, total: int) -> str:
        """A line for the log. todo, total: numbers of lines."""
        return f"{todo} of {total} {self.word}s to do"

    def warm_up(self, todo: Sequence[Unit[Item]]) -> None:
        """Decode a little with each variant, so that no timing pays for first calls."""

    def finish_shard(self, lines: list[dict]) -> None:
        """What one of several processes does when its units are done, with their lines."""

    def left(self, results: ResultFiles) -> str:
        """What several processes have still to do before they are merged, in words; "" for nothing."""
        missing, total = len(results.missing()), len(results.plan.units)
        return f"{missing} of {total} units" if missing else ""

    def complete(self) -> dict:
        """Run the units that are still to do, of those that are this process's, and report when all of them are done.

        Returns the metrics; {} if other processes are still at work, the last of which reports. Raises InputError when
        the folder holds results of other settings, or a process of another run is writing to it.
        """
        use_own_gpu()
        shard, settings, units = this_shard(), self.settings(), self.units()
        fields = tuple(units[0].key) if units else ()
        results = ResultFiles(self.output, Plan(fields, {unit.values: len(unit.items) for unit in units}), shard)
        own = shard.of(units)
        with locked(self.output, shard=shard):
            with locked(self.output / "config.json", beside=True, wait=True):
                claim(self.output, settings, self.may_change)
                done = results.begin({"command": self.command, "options": self.options})
            todo = [unit for unit in own if unit.values not in done]
            part = f"{shard}: " if shard.count > 1 else ""
            about = self.describe(*(sum(len(unit.items) for unit in some) for some in (todo, own)))
            logger.info("%s%s", part, about if own else f"nothing to do, as there are only {len(units)} units")
            self.warm_up(todo)
            run_units(results, todo, self.run, self.word)
            if shard.count > 1:
                lines = results.done()
                self.finish_shard([line for unit in own for line in lines[unit.values]])
            if left := self.left(results):
                logger.info("%sdone; %s are still to come from others, the last of which merges", part, left)
                return {}
            return self.merged_report(results, again=shard.index == 0 and len(done) == len(units))

    def merged_report(self, results: ResultFiles, again: bool = False) -> dict:
        """Merge the files of several processes and report. Of some that end at once, one does it; the others get {}.

        again: report also if there is nothing to merge.
        """
        with locked(results.path, beside=True, wait=True):
            if not (again or results.shard.count == 1 or results.manifest.exists()):
                return {}
            self.merge(results)
            metrics = self.report()
            results.manifest.unlink(missing_ok=True)
            return metrics

    def merge(self, results: ResultFiles) -> None:
        """Make the result files those of one process."""
        results.merge()

    def lines(self) -> list[dict]:
        """The lines of `samples.jsonl`."""
        return read_json_lines(self.output / "samples.jsonl")

    def write_results(self, metrics: dict, **texts: str) -> dict:
        """Write metrics.json, with the run's settings and provenance, and text files. Returns what metrics.json holds.

        texts: contents by name, with an underscore for the dot (`table_md`).
        """
        metrics = metrics | json.loads((self.output / "config.json").read_text(encoding="utf-8"))
        write_json(self.output / "metrics.json", metrics)
        for name, text in texts.items():
            write_text(self.output / name.replace("_", "."), text)
        return metrics


def sampling_seed(*numbers: int) -> int:
    """A seed made of the run's seed and the numbers of what is decoded, whatever the variant and the batch."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """The items in batches of `size`; the last one may be smaller."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def take_turns(variants: list[Variant], batch: int) -> list[Variant]:
    """The variants in the order of batch number `batch`: each batch begins with another one, so that a machine that
    slows down slows all of them."""
    turn = batch % max(1, len(variants))
    return variants[turn:] + variants[:turn]


def run_settings(config: EvalConfig, *left_out: str) -> dict[str, Any]:
    """What the results of a run depend on, as far as its options and the machine go. left_out: options that they do not
    depend on."""
    unwanted = ("output_dir", "sampler", "draft", *left_out)
    kept = {name: value for name, value in flat(config).items() if name not in unwanted}
    return kept | {"hardware": device_name(kept.get("device"))}


def claim(output: Path, settings: dict[str, Any], may_change: Sequence[str] = ()) -> None:
    """Make `output` the folder of a run with these settings, or raise InputError if it is another's.

    may_change: settings that are not compared.
    """
    path = output / "config.json"
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, {"settings": settings, "provenance": provenance(settings.get("device"))})
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not of this evaluation: choose another output_dir") from error
    compared = [name for name in settings | before if name not in may_change]
    changed = [name for name in compared if settings.get(name) != before.get(name)]
    if changed:
        shown = ", ".join(f"{name} {before.get(name)!r}, now {settings.get(name)!r}" for name in changed[:MOST_NAMED])
        shown += f", and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        raise InputError(f"{output} holds results of other settings ({shown}): choose another output_dir")


def run_units(results: ResultFiles, todo: Sequence[Unit], run: Callable[[Unit], list[dict]], word: str) -> None:
    """Run units and append their lines to this process's file. The bar is of the whole run.

    word: what a line is about.
    """
    if not todo:
        return
    with (
        results.own.open("a", encoding="utf-8") as file,
        tqdm(
            total=sum(results.plan.units.values()),
            initial=results.count(),
            unit=word,
            mininterval=update_seconds(),
            disable=not shows_progress(),
        ) as bar,
    ):
        for unit in todo:
            bar.set_description(unit.name, refresh=False)
            lines = run(unit)
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            bar.update(results.count() - bar.n)
