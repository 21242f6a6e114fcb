"""Train an AS-ARM: `python -m asarm train [PRESET] [options]`.

A preset gives the defaults, and every option overrides it. `tiny`: a small model of Python's standard library, minutes
on two cores, offline. `paper-nlp`, `paper-nlp-infill`, `paper-code`, `paper-code-single-line`: the paper's recipes,
from XLNet-base on OpenWebText or StarCoder's Python; they need a GPU and the Hub. Without a preset `--train_files` (or
`--dataset`) and `--output_dir` are required. The same command resumes a run that was interrupted.
"""

import logging
from typing import Any, cast

from asarm.cli.presets import given_options, split_preset
from asarm.data.config import DataConfig
from asarm.objective.loss import LossConfig
from asarm.objective.masking import MaskingConfig
from asarm.training.config import ModelConfig, RunConfig, TrainingConfig
from asarm.training.presets import PRESETS
from asarm.utils.config import OptionParser
from asarm.utils.logging_setup import quiet_libraries

PARTS = (TrainingConfig, DataConfig, ModelConfig, MaskingConfig, LossConfig)
SOURCE = ("train_files", "extensions", "text_field", "dataset", "dataset_dir", "dataset_revision", "dataset_split")


def parse_arguments(arguments: list[str]) -> RunConfig:
    """The settings: the dataclasses' defaults, changed by the preset, if one is named, then by the options.

    Raises InputError for an unknown preset and for values that cannot be.
    """
    preset, options = split_preset(arguments, PRESETS)
    parser = OptionParser(
        cast(Any, PARTS), prog="asarm train", description=__doc__, usage="%(prog)s [PRESET] [options], or --help"
    )
    if preset:
        values = {"output_dir": f"results/train-{preset}"} | PRESETS[preset]
        # Another source replaces all that the preset says of its own.
        if {"--train_files", "--dataset"} & given_options(options):
            values = {name: value for name, value in values.items() if name not in SOURCE}
        parser.set_defaults(**values)
    return RunConfig(*parser.parse_args_into_dataclasses(options, look_for_args_file=False))


def main(arguments: list[str]) -> None:
    """Run the command with its command-line arguments."""
    config = parse_arguments(arguments)
    quiet_libraries()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    from asarm.training.trainer import Trainer  # slow to import, and not needed for --help

    trainer = Trainer(config)
    if config.training.dry_run:
        about = trainer.dry_run()
        if trainer.is_main:
            print(about)
        return
    for name, value in trainer.run().items():
        print(f"{name:20} {value:.4g}" if isinstance(value, float) else f"{name:20} {value}")
