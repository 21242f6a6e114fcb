"""Settings of which model is loaded, and how it runs."""

from dataclasses import dataclass

import torch

from asarm.models.backbone import AnyOrderModel
from asarm.models.compiled import CHOICES
from asarm.models.load import DTYPES, load_on_device, pick_device
from asarm.tokenization.codec import TextCodec
from asarm.utils.config import check_choices, option


@dataclass
class LoadingOptions:
    """Which model is loaded, and how it runs."""

    model: str = option("therealgabeguo/ASARM", "a bundled model, a folder or a Hub repository")
    revision: str | None = option(None, "branch, tag or commit of a Hub repository")
    white_space: str = option("auto", "auto, plain, or tokens: as the released code models read code")
    device: str = option("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    dtype: str = option("auto", "auto (bfloat16 where that is fast, else float32), float32 or bfloat16")
    compile: str = option(
        "auto", "decoding steps: auto (as CUDA graphs, on GPUs), on (by torch.compile as well, in a minute) or off"
    )

    def __post_init__(self) -> None:
        check_choices("dtype", [self.dtype], DTYPES)
        check_choices("compile", [self.compile], CHOICES)

    def pick_device(self) -> torch.device:
        """The device that is meant. Raises InputError if there is no such device."""
        return pick_device(self.device)

    def load(self, model: str | None = None, revision: str | None = None) -> tuple[AnyOrderModel, TextCodec]:
        """The model and its codec, on the device, not compiled. model, revision: another one, loaded the same way."""
        name, version = (self.model, self.revision) if model is None else (model, revision)
        return load_on_device(name, version, self.white_space, self.pick_device(), self.dtype)
