"""Train an AS-ARM: `python -m asarm train [PRESET] [options]`.

A preset gives the defaults, and every option overrides it. `tiny`: a small model of Python's standard library, minutes
on two cores, offline. `paper-nlp`, `paper-nlp-infill`, `paper-code`, `paper-code-single-line`: the paper's recipes,
from XLNet-base on OpenWebText or StarCoder's Python; they want a GPU and the Hub. Without a preset `--train_files` (or
`--dataset`) and `--output_dir` are needed. The same command again goes on with a run that was interrupted.
"""

import logging

from transformers import HfArgumentParser

from asarm.data.config import DataConfig
from asarm.objective.loss import DraftLossConfig
from asarm.objective.masking import MaskingConfig
from asarm.training.config import ModelConfig, TrainingConfig
from asarm.training.presets import PRESETS
from asarm.utils.errors import InputError
from asarm.utils.logging_setup import quiet_libraries

SETTINGS = (TrainingConfig, DataConfig, ModelConfig, MaskingConfig, DraftLossConfig)
SOURCE = ("train_files", "extensions", "text_field", "dataset", "dataset_dir", "dataset_revision", "dataset_split")


def parse_arguments(arguments: list[str]) -> tuple:
    """The settings: the dataclasses' defaults, changed by the preset, if one is named, changed by the options."""
    named = bool(arguments) and not arguments[0].startswith("-")
    preset, options = (arguments[0], arguments[1:]) if named else (None, arguments)
    if named and preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}")
    parser = HfArgumentParser(
        SETTINGS, prog="asarm train", description=__doc__, usage="%(prog)s [PRESET] [options], or --help"
    )
    if named:
        values = {"output_dir": f"results/train-{preset}"} | PRESETS[preset]
        # Another source takes the place of all that the preset says of its own.
        if {"--train_files", "--dataset"} & {option.split("=")[0] for option in options}:
            values = {name: value for name, value in values.items() if name not in SOURCE}
        parser.set_defaults(**values)
    return parser.parse_args_into_dataclasses(options, look_for_args_file=False)


def main(arguments: list[str]) -> None:
    settings = parse_arguments(arguments)
    quiet_libraries()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    from asarm.training.trainer import Trainer

    trainer = Trainer(*settings)
    if trainer.config.dry_run:
        about = trainer.dry_run()
        if trainer.is_main:
            print(about)
        return
    for name, value in trainer.run().items():
        print(f"{name:20} {value:.4g}" if isinstance(value, float) else f"{name:20} {value}")
