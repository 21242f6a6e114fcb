"""Evaluations on the command line: a preset gives the defaults, and every option overrides it."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from transformers import HfArgumentParser

from asarm.evals.config import EvalConfig
from asarm.utils.errors import InputError
from asarm.utils.logging_setup import quiet_libraries

BUNDLED_SETS = Path(__file__).resolve().parents[1] / "eval_datasets"
# Where official evaluation sets are looked for: in the repository, or beside where an installed copy is run.
_REPOSITORY = Path(__file__).resolve().parents[3] / "eval_datasets"
OFFICIAL_SETS = _REPOSITORY if _REPOSITORY.is_dir() else Path("eval_datasets")


Config = TypeVar("Config", bound=EvalConfig)


def parse_with_preset(
    config_class: type[Config], command: str, description: str, presets: dict[str, dict], arguments: list[str]
) -> Config:
    """The settings: the dataclass's defaults, changed by the preset (`paper`, if none is named), by the options.

    A revision belongs to the model that it stands beside: another --model goes without the preset's. InputError for
    an unknown preset.
    """
    named = bool(arguments) and not arguments[0].startswith("-")
    preset, options = (arguments[0], arguments[1:]) if named else ("paper", arguments)
    if preset not in presets:
        raise InputError(f"unknown preset {preset!r}: choose from {', '.join(presets)}")
    parser = HfArgumentParser(
        config_class,
        prog=f"asarm {command}",
        description=description,
        usage="%(prog)s [tiny|paper] [options], or --help",
    )
    parser.set_defaults(output_dir=f"results/{command}-{preset}", **presets[preset])
    config = parser.parse_args_into_dataclasses(options, look_for_args_file=False)[0]
    given = {option.split("=")[0] for option in options}
    if "--model" in given and "--revision" not in given:
        config.revision = None
    return config


def run(config: Config, evaluate: Callable[[Config], object], results: str) -> None:
    """Evaluate, print the table, and say where the results are. results: what they are."""
    quiet_libraries()
    evaluate(config)
    output = Path(config.output_dir)
    print((output / "table.md").read_text(encoding="utf-8"))
    print(f"{results}: {output}")
