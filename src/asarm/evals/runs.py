"""What every evaluation does: claim a folder, find out what is left to do, write line after line, go on after a stop.

An evaluation is a list of units. A unit is run and written at once, as one or more lines of `samples.jsonl`; a line
says by some of its fields which unit it belongs to. Results must be a function of the settings, not of what was run
before in the same process.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from asarm.config import SamplerConfig, option
from asarm.errors import InputError
from asarm.files import read_json_lines, write_json, write_json_lines
from asarm.models.compiled import CHOICES
from asarm.models.ready import DTYPES
from asarm.progress import update_seconds
from asarm.provenance import provenance

SAMPLERS = {
    "sequential": {"sampler": "sequential"},
    "assd-self": {"sampler": "assd", "draft": "self"},
    "assd-ngram": {"sampler": "assd", "draft": "ngram"},
    "fused": {"sampler": "fused"},
    "fused-blind": {"sampler": "fused", "draft": "blind"},
    "fused-adaptive": {"sampler": "fused", "coupling": "block", "adaptive": True},
    "parallel": {"sampler": "parallel"},
}


@dataclass
class EvalConfig(SamplerConfig):
    """What every evaluation of a model is told; SamplerConfig's fields hold for all of its variants."""

    # Set for each variant, and no options here.
    sampler: str = field(default="assd", init=False)
    draft: str = field(default="self", init=False)
    adaptive: bool = field(default=False, init=False)

    model: str = option("therealgabeguo/ASARM", "a bundled model, a folder or a Hub repository")
    revision: str | None = option(None, "branch, tag or commit of a Hub repository")
    white_space: str = option("auto", "auto, plain, or tokens: as the released code models read code")
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    dtype: str = option("auto", "auto (bfloat16 on GPUs that have it, else float32), float32 or bfloat16")
    compile: str = option("auto", "auto (on GPUs), on or off: decoding steps by torch.compile and CUDA graphs")
    seed: int = option(0, "seeds all that is drawn")
    output_dir: str = option("", "folder for the results; a run that was interrupted there goes on")

    def __post_init__(self):
        super().__post_init__()
        self.check_choices("dtype", [self.dtype], DTYPES)
        self.check_choices("compile", [self.compile], CHOICES)
        self.check_at_least(seed=0)
        if not self.output_dir:
            raise InputError("no output_dir given")

    def check_at_least(self, **least: int) -> None:
        """InputError when a field is below its least value."""
        for name, value in least.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} must be at least {value}, not {getattr(self, name)}")

    def check_choices(self, name: str, given: Iterable[str], choices: Iterable[str]) -> None:
        """InputError when what is given is none of the choices. name: that of one choice."""
        for one in given:
            if one not in choices:
                raise InputError(f"unknown {name} {one!r}: choose from {', '.join(filter(None, choices))}")

    def sampler_config(self, name: str, **changes) -> SamplerConfig:
        """The settings of one of SAMPLERS, with changes."""
        shared = {f.name: getattr(self, f.name) for f in fields(SamplerConfig) if f.init}
        return SamplerConfig(**(shared | SAMPLERS[name] | changes))


class Unit(Protocol):
    """What is run and written at once. key: tells it from all others, and is found in its lines. size: its lines.
    name: shown beside the progress bar."""

    key: tuple
    size: int
    name: str


def sampling_seed(*numbers: int) -> int:
    """A seed made of the run's seed and the numbers of what is decoded, whatever the variant and the batch."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """SHA-256 of tensors' contents, in hexadecimal."""
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()


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
