"""Presets on the command line: a preset gives the defaults, and every option overrides it; and what the `paper` ones
follow of the paper's protocol."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import Any, TypeVar

from asarm.evals.config import EvalConfig, ModelsConfig
from asarm.evals.resumable import Evaluation
from asarm.sampling.transforms import Transforms
from asarm.utils.config import OptionParser, flat, from_options, options_of
from asarm.utils.errors import InputError
from asarm.utils.logging_setup import quiet_libraries

BUNDLED_SETS = Path(__file__).resolve().parents[1] / "eval_datasets"
# Where official evaluation sets are looked for: in the repository, or in the folder where an installed copy is run.
_REPOSITORY = Path(__file__).resolve().parents[3] / "eval_datasets"
OFFICIAL_SETS = _REPOSITORY if _REPOSITORY.is_dir() else Path("eval_datasets")

# How the paper's scripts decode, and how they fill gaps in stories and code.
PAPER_SAMPLING: dict[str, Any] = {
    "samplers": ["assd-self"],
    "coupling": "residual",
    "k": 10,
    "temperature": 1.0,
    "draft_temperature": None,
    "tolerance": 0.0,
}
UNTRANSFORMED = asdict(Transforms())  # as in all of the paper's scripts: named where they differ
PAPER_INFILLING: dict[str, Any] = {
    **PAPER_SAMPLING,
    "gap_length": ["oracle"],
    "causal": "",
    "dtype": "float32",
    "batch_size": 1,
}

Config = TypeVar("Config", bound=EvalConfig)


@dataclass(frozen=True)
class Protocol:
    """What the paper's scripts do.

    settings: options with the paper's values. others: further ones, which are named where they differ only. notes: what
    differs and is no option. derived: what is compared beside the options, from the settings in force.
    """

    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda in_force: {}

    def describe(self, in_force: Mapping[str, Any]) -> str:
        """Which of the settings in force are the paper's, and which are not: for people, in a few lines."""
        found = {**in_force, **self.derived(in_force)}
        same = [name for name, value in self.settings.items() if found[name] == value]
        untransformed = {
            name: value for name, value in UNTRANSFORMED.items() if name in found and name not in self.settings
        }
        parts = [
            ("as the paper", [_shown(name, found[name]) for name in same]),
            ("not as the paper", [
                f"{_shown(name, found[name])} (the paper: {_value(name, value)})"
                for name, value in {**self.settings, **self.others, **untransformed}.items()
                if found[name] != value
            ]),
            ("in any case", list(self.notes)),
        ]  # fmt: skip
        lines = [_wrapped(f"- {title}: {'; '.join(points)}") for title, points in parts if points]
        return "\n".join(["Protocol of arXiv 2504.20456 (docs/protocol.md):", *lines]) + "\n"


def _wrapped(line: str) -> str:
    """As wide as the terminal, or 100 characters where there is none."""
    width = get_terminal_size((100, 24)).columns
    return fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _shown(name: str, value: Any) -> str:
    return f"{name} {_value(name, value)}"


def _value(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value("", one) for one in value) or "none"
    if value in ("", None):
        return "none"
    if name == "max_items" and value == 0:
        return "all"
    return f"{value:g}" if isinstance(value, float) else str(value)


def white_space_as(name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """White space for `Protocol.derived`: `auto` is taken for the paper's way of reading it, which is `name`."""
    return lambda in_force: {"white_space": in_force["white_space"].replace("auto", name)}


def follows_paper(arguments: list[str]) -> bool:
    """Whether the preset that the arguments name, or the default one, is the paper's."""
    return not arguments or arguments[0].startswith(("-", "paper"))


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
    """Run an evaluation, print its summary, and say where the results are.

    results: what they are. protocol: what the paper does, if the preset is the paper's; what is followed of it is
    printed first.
    """
    quiet_libraries()
    if protocol:
        print(protocol.describe(flat(config) | {"models": _models(config)}), flush=True)
    running = evaluation(config)
    print(running.summary(running.complete()))
    print(f"{results}: {running.output}")


def _models(config: EvalConfig) -> list[str]:
    if isinstance(config, ModelsConfig):
        return config.model_names()
    return ["@".join(filter(None, (config.loading.model, config.loading.revision)))]
