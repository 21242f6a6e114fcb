"""A model where it is to run: on its device, in its number format."""

import torch

from asarm.codec import TextCodec
from asarm.errors import InputError
from asarm.models.backbone import AnyOrderModel
from asarm.models.load import load

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """The device of that name; auto is a GPU if there is one. InputError when there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of that name; auto is bfloat16 on a GPU that has it, else float32. InputError for others."""
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}: choose from {', '.join(DTYPES)}")
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    return DTYPES[name]


def load_ready(
    name: str, revision: str | None, white_space: str, device: torch.device, dtype: str
) -> tuple[AnyOrderModel, TextCodec]:
    """The model and codec of `asarm.models.load.load`, on a device, in the number format that `dtype` names."""
    model, codec = load(name, revision, pick_dtype(dtype, device), white_space)
    return model.to(device), codec
