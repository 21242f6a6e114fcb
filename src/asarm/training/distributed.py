"""Devices and processes of a training run, by accelerate."""

import importlib.util
import os
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from asarm.models.gpt2 import AnyOrderGPT2
from asarm.training.config import TrainingConfig
from asarm.utils.errors import InputError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def new_accelerator(config: TrainingConfig) -> Accelerator:
    """Devices, processes, precision and trackers. FSDP, switched on by `accelerate`'s config or environment, is its
    version 2; see `shard_by_block`."""
    trackers = [name for name in config.report_to if name != "none"]
    for name in trackers:
        if name not in ("tensorboard", "wandb", "trackio"):
            raise InputError(f"unknown tracker {name!r}: choose from tensorboard, wandb, trackio, none")
        if importlib.util.find_spec(name) is None:
            raise InputError(f"the tracker {name} is not installed: pip install {name}")
    fsdp = None
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        fsdp = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="no_wrap", cpu_ram_efficient_loading=False
        )
    accelerator = Accelerator(
        mixed_precision="bf16" if config.bf16 else None,
        cpu=not torch.accelerator.is_available(),
        fsdp_plugin=fsdp,
        log_with=trackers or None,
        project_dir=config.output_dir,
        # The others wait while the first process tokenises or validates.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    if fsdp is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate shards on accelerators only; torch does on CPUs, too, and so tests need no GPU.
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state.fsdp_plugin = fsdp
    return accelerator


def shard_by_block(accelerator: Accelerator, model) -> None:
    """Let FSDP gather a GPT-2's weights block by block. An XLNet's are gathered all at once: its tables of offsets are
    made outside of its blocks."""
    if isinstance(model, AnyOrderGPT2):
        accelerator.state.fsdp_plugin.auto_wrap_policy = transformer_auto_wrap_policy
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = ["Block"]
