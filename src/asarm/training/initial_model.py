"""The model that a run starts with, or goes on with: new, of `init_from`, or of a checkpoint; with its adapters."""

from pathlib import Path

import torch

from asarm.data.training_data import train_codec
from asarm.models.adapter import (
    active_adapter_config,
    add_adapter,
    check_base,
    freeze_in_bfloat16,
    load_adapter,
    new_adapter_config,
    read_adapter_config,
)
from asarm.models.backbone import AnyOrderModel
from asarm.models.conversion.from_gpt2 import start_from
from asarm.models.conversion.vocabulary import add_gap_end_row, add_gap_end_token
from asarm.models.load import adapted, load, load_tokenizer, model_folder, read_config
from asarm.tokenization.codec import TextCodec
from asarm.training.config import RunConfig, TrainingConfig
from asarm.utils.errors import InputError
from asarm.utils.weights import ADAPTER_CONFIG, weights_sha256


def initial_model(config: RunConfig, resumed: Path | None) -> tuple[AnyOrderModel, TextCodec]:
    """Model and codec at the start: those of the checkpoint `resumed`, those of `init_from`, or new ones.

    A checkpoint of adapters goes with the model of `init_from`. Raises InputError if they cannot be loaded, or do not
    suit the data.
    """
    training, block_size = config.training, config.data.block_size
    model: AnyOrderModel
    adapter = adapter_folder(training)
    if resumed and not training.lora_rank:
        model, codec = load(resumed / "model")
    elif adapter:
        name = training.init_from
        model, codec = adapted(name, adapter, read_config(name, adapter)), TextCodec(load_tokenizer(name))
    elif training.init_from:
        model, codec = start_from(training.init_from, training.init_revision or None, training.white_space)
    else:
        codec = train_codec(config.data, config.model.vocab_size, training.white_space)
        model = config.model.build(codec)
    if block_size > model.config.n_positions:
        raise InputError(f"block_size={block_size} is over the model's {model.config.n_positions} positions")
    if codec.eos_token_id is None:
        raise InputError(f"the tokenizer of {training.init_from} has no eos token to end documents with")
    if config.masking.mask_gaps and config.masking.gap_spare and codec.gap_end_token_id is None:
        add_gap_end_row(model, add_gap_end_token(codec.tokenizer))
    if training.lora_rank:
        if not adapter:
            adapt(model, training)
        prepare_adapter(model, training, resumed)
    return model, codec


def adapter_folder(training: TrainingConfig) -> Path | None:
    """The folder of the adapter that training goes on with: `init_from`, if it is one of the rank to be trained.

    With another rank there are new adapters, of the model that the old one makes of its base.
    """
    if not (training.lora_rank and training.init_from):
        return None
    folder = model_folder(training.init_from, training.init_revision or None)
    is_adapter = (folder / ADAPTER_CONFIG).is_file() and read_adapter_config(folder).r == training.lora_rank
    return folder if is_adapter else None


def adapt(model: AnyOrderModel, training: TrainingConfig) -> None:
    """Freeze a model and give it new adapters. Raises InputError for backbones that take none."""
    base, revision = training.init_from, training.init_revision or None
    digest = weights_sha256(base, model_folder(base, revision))
    torch.manual_seed(training.seed)  # loading may have drawn random numbers, or not
    add_adapter(model, new_adapter_config(training.lora_rank, base, revision, digest))


def prepare_adapter(model: AnyOrderModel, training: TrainingConfig, resumed: Path | None) -> None:
    """Fill a model's adapters from the checkpoint `resumed`, if there is one, and make it ready for training.

    Raises InputError for a checkpoint of another model's adapters.
    """
    if resumed:
        digest = active_adapter_config(model).base_sha256
        check_base(read_adapter_config(resumed / "model"), digest, resumed)
        load_adapter(model, resumed / "model", resumed)
    if training.bf16:
        freeze_in_bfloat16(model)
