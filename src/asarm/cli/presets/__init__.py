"""Presets on the command line: a preset gives the defaults, and every option overrides it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from asarm.cli.presets.protocol import Protocol
from asarm.evals.config import EvalConfig, ModelsConfig
from asarm.evals.resumable import Evaluation
from asarm.utils.cluster.preemption import requeued_when_stopped
from asarm.utils.cluster.processes import shows_progress
from asarm.utils.config import OptionParser, flat, from_options, options_of
from asarm.utils.errors import InputError
from asarm.utils.logging_setup import quiet_libraries

BUNDLED_SETS = Path(__file__).resolve().parents[2] / "eval_datasets"
# Where official evaluation sets are looked for: in the repository, or in the folder where an installed copy is run.
_REPOSITORY = Path(__file__).resolve().parents[4] / "eval_datasets"
OFFICIAL_SETS = _REPOSITORY if _REPOSITORY.is_dir() else Path("eval_datasets")

# How `small` decodes. On a CPU a call of SmolLM2 takes long, and speculation pays for texts that are decoded alone;
# more drafts of a model of this strength are seldom accepted.
ONE_BY_ONE: dict[str, Any] = {"batch_size": 1, "k": 3, "coupling": "block", "alternatives": 2}

Config = TypeVar("Config", bound=EvalConfig)


def split_preset(
    arguments: list[str], presets: Mapping[str, Mapping[str, Any]], default: str | None = None
) -> tuple[str | None, list[str]]:
    """The preset that the first argument names (`default`, if it is an option), and the options.

    Raises InputError for an unknown preset.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    preset, options = (arguments[0], arguments[1:]) if named else (default, arguments)
    if preset is not None and preset not in presets:
        raise InputError(f"unknown preset {preset!r}: choose from {', '.join(presets)}")
    return preset, options


def given_options(options: list[str]) -> set[str]:
    """The names of the options on a command line, such as --train_files, which may be written --train-files."""
    return {option.split("=")[0].replace("-", "_").replace("__", "--", 1) for option in options if option[:2] == "--"}


def parse_with_preset(
    config_class: type[Config],
    command: str,
    description: str,
    presets: Mapping[str, Mapping[str, Any]],
    arguments: list[str],
) -> Config:
    """The settings: the dataclass's defaults, changed by the preset (`paper`, if none is named), by the options.

    The preset's revision belongs to the preset's model: another --model does not get it; and --models replaces the
    preset's model. Raises InputError for an unknown preset, and for both --model and --models.
    """
    preset, options = split_preset(arguments, presets, "paper")
    parser = OptionParser(
        options_of(config_class),
        prog=f"asarm {command}",
        description=description,
        usage="%(prog)s [tiny|small|paper] [options], or --help",
    )
    parser.set_defaults(output_dir=f"results/{command.replace(' ', '-')}-{preset}", **presets[preset or "paper"])
    (found,) = parser.parse_args_into_dataclasses(options, look_for_args_file=False)
    values: dict[str, Any] = dict(vars(found))
    given = given_options(options)
    if {"--model", "--models"} <= given:
        raise InputError("both --model and --models are given: name all models in --models")
    if {"--model", "--models"} & given and "--revision" not in given:
        values["revision"] = None
    if "--models" in given:
        values["model"] = ""
    return from_options(config_class, **values)


def run(
    config: EvalConfig,
    evaluation: Callable[[Any], Evaluation],
    results: str,
    protocol: Protocol | None = None,
) -> None:
    """Run an evaluation, print its summary, and say where the results are; of several processes, the last one does.

    results: what they are. protocol: what the paper does, if the preset is the paper's; what is followed of it is
    printed first.
    """
    quiet_libraries()
    if protocol and shows_progress():
        print(protocol.describe(flat(config) | {"models": _models(config)}), flush=True)
    complete(evaluation(config), results)


def complete(running: Evaluation, results: str) -> None:
    """Complete an evaluation and `show` it. If Slurm stops it before its end, it goes back into the queue."""
    with requeued_when_stopped():
        metrics = running.complete()
    show(running, metrics, results)


def show(running: Evaluation, metrics: dict, results: str) -> None:
    """Print an evaluation's summary, if there are metrics, and where the results are. results: what they are."""
    if metrics:
        print(running.summary(metrics))
        print(f"{results}: {running.output}")


def _models(config: EvalConfig) -> list[str]:
    if isinstance(config, ModelsConfig):
        return config.model_names()
    return ["@".join(filter(None, (config.loading.model, config.loading.revision)))]
