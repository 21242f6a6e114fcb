"""Loading any backbone from a folder or the Hub."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from asarm.errors import InputError
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config

BACKBONES = {AnyOrderGPT2Config.model_type: AnyOrderGPT2}


def load_model(name: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32):
    """An AS-ARM in evaluation mode, from a folder or a Hub repository; safetensors only, missing tensors are an error.

    Raises InputError when there is no such model, its weights are missing or damaged, or it is of another kind.
    """
    try:
        config = AutoConfig.from_pretrained(name, revision=revision)
        if config.model_type not in BACKBONES:
            raise InputError(f"{name} is a {config.model_type} model; known are {', '.join(BACKBONES)}")
        model, report = BACKBONES[config.model_type].from_pretrained(
            name, revision=revision, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except SafetensorError as error:
        raise InputError(f"the weights of {name} are damaged: {error}") from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot load {name}: {str(error).strip().splitlines()[0]}") from error
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report[kind]}
    if wrong:
        raise InputError(f"the weights of {name} do not fit its config: {wrong}")
    return model.eval()
