"""Devices and processes of a training run, with accelerate: DDP, FSDP, and what is gathered from the shards."""

import importlib.util
import os
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, InitProcessGroupKwargs, get_int_from_env
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from asarm.models.backbone import AnyOrderModel
from asarm.models.gpt2 import AnyOrderGPT2
from asarm.models.llama import AnyOrderLlama
from asarm.models.ops import attend_to_any_shape
from asarm.objective.loss import LossConfig, training_loss
from asarm.objective.masking import MaskingPattern
from asarm.training.config import TrainingConfig
from asarm.training.optimizer import new_optimizer
from asarm.utils.errors import InputError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class TrainingLoss(torch.nn.Module):
    """Model and objective as one module, so that wrappers (DDP, FSDP) see the whole computation as one forward pass."""

    def __init__(self, model: AnyOrderModel, config: LossConfig, gaps: MaskingPattern):
        super().__init__()
        self.model, self.loss_config, self.gaps = model, config, gaps

    def forward(
        self, tokens: torch.Tensor, rate: float, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Joint and draft loss (scalars) of tokens [B, N]; the second is None where nothing is drafted."""
        losses = training_loss(self.model, tokens, rate, self.loss_config, generator, self.gaps)
        return losses.joint, losses.draft


def new_accelerator(config: TrainingConfig) -> Accelerator:
    """Devices, processes, precision and trackers. FSDP, switched on by `accelerate`'s config or environment, is its
    version 2. Raises InputError for a tracker that is unknown or not installed, and for FSDP's settings."""
    trackers = [name for name in config.report_to if name != "none"]
    for name in trackers:
        if name not in ("tensorboard", "wandb", "trackio"):
            raise InputError(f"unknown tracker {name!r}: choose from tensorboard, wandb, trackio, none")
        if importlib.util.find_spec(name) is None:
            raise InputError(f"the tracker {name} is not installed: pip install {name}")
    fsdp = fsdp_plugin()
    attend_to_any_shape()
    accelerator = Accelerator(
        mixed_precision="bf16" if config.bf16 else None,
        cpu=not torch.accelerator.is_available(),
        fsdp_plugin=fsdp,
        log_with=trackers or None,
        project_dir=config.output_dir,
        # The other processes wait while the first one tokenises or validates.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
    )
    if fsdp is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # accelerate shards on accelerators only; torch does on CPUs, too, and so tests need no GPU.
        accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        accelerator.state.fsdp_plugin = fsdp
    return accelerator


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """How FSDP shards the weights, if it is switched on. Raises InputError for settings that are not supported."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise InputError("accelerate was told to use FSDP 1, and training uses FSDP 2: give it fsdp_version: 2")
    if os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false").lower() == "true":
        raise InputError("use --gradient_checkpointing instead of accelerate's fsdp_activation_checkpointing")
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="no_wrap",  # see `wrap`
        cpu_ram_efficient_loading=False,
        # Weights and gradients stay in float32, as autocast has them without FSDP. By default the losses were bfloat16.
        mixed_precision_policy=MixedPrecisionPolicy(),
    )


def is_first_process() -> bool:
    """Whether this is the first process of a run, as its launcher says, before the processes are connected."""
    return get_int_from_env(["RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK"], 0) == 0


def process_count() -> int:
    """Processes of a run, as its launcher says, before they are connected."""
    return get_int_from_env(["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"], 1)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether FSDP shards the weights."""
    return accelerator.distributed_type == DistributedType.FSDP


def wrap(
    accelerator: Accelerator, loss: TrainingLoss, config: TrainingConfig
) -> tuple[torch.nn.Module, AcceleratedOptimizer]:
    """The loss and a new optimiser for it, wrapped for the processes.

    FSDP gathers the weights of a GPT-2 or a Llama block by block. An XLNet's are gathered all at once: its tables of
    offsets are made outside of its blocks.
    """
    if is_sharded(accelerator):
        if config.optimizer == "muon":
            raise InputError("optimizer muon needs whole matrices, and FSDP shards them: use adamw")
        if config.lora_rank:
            raise InputError(
                "lora_rank leaves little to be sharded, and is not for FSDP: start the processes without it"
            )
        if isinstance(loss.model, AnyOrderGPT2 | AnyOrderLlama):
            accelerator.state.fsdp_plugin.auto_wrap_policy = transformer_auto_wrap_policy
            accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = ["Block"]
    return accelerator.prepare(loss, new_optimizer(loss, config))


def start_trackers(accelerator: Accelerator, config: TrainingConfig, settings: dict) -> None:
    """Begin a run of the trackers, if there are any."""
    if accelerator.log_with:
        simple = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
        name = {"name": config.tracker_run or Path(config.output_dir).resolve().name}
        accelerator.init_trackers(config.tracker_project, simple, init_kwargs={"wandb": name, "trackio": name})


def unwrapped_model(accelerator: Accelerator, loss: torch.nn.Module) -> AnyOrderModel:
    """The model inside a wrapped `TrainingLoss`. Its weights are sharded if those of the loss are."""
    return accelerator.unwrap_model(loss, keep_torch_compile=False).model


def gathered_weights(accelerator: Accelerator, loss: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The whole weights of a sharded model (in the first process, on the CPU; {} in others), None if it is not sharded.
    All processes must call this."""
    if not is_sharded(accelerator):
        return None
    weights = cast(dict[str, torch.Tensor], get_model_state_dict(loss, options=WHOLE))
    return {name.removeprefix("model."): value for name, value in weights.items()}


def whole_model(accelerator: Accelerator, loss: torch.nn.Module) -> AnyOrderModel | None:
    """The model without wrappers. A sharded one is copied in the first process, and None in others, which must also
    call this."""
    weights, model = gathered_weights(accelerator, loss), unwrapped_model(accelerator, loss)
    if weights is None:
        return model
    if not accelerator.is_main_process:
        return None
    copy = type(model)(model.config).to(accelerator.device)
    copy.load_state_dict(weights, strict=False)
    return copy


def optimizer_state(loss: torch.nn.Module, optimizer: AcceleratedOptimizer) -> dict:
    """The optimiser's state, by parameter names, gathered from all shards."""
    return get_optimizer_state_dict(loss, optimizer.optimizer, options=WHOLE)


def load_optimizer_state(loss: torch.nn.Module, optimizer: AcceleratedOptimizer, state: dict) -> None:
    """The inverse of `optimizer_state`."""
    set_optimizer_state_dict(loss, optimizer.optimizer, state, options=WHOLE)
