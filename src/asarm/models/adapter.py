"""Low-rank adapters (LoRA, arXiv 2106.09685) of the `llama` backbone, by `peft`: to add, save, read and merge them.

Beside each linear layer of the blocks come two narrow matrices, whose product is added to the layer's. They are
trained, as are the vectors that the causal model lacks, and the rows of the vocabulary for its `gap_end` token; its own
weights are frozen. The folder of an adapter is that of
a model, with config and tokenizer, but instead of weights it has, in `peft`'s format,

    adapter_config.json         rank and layers; name, revision and SHA-256 of the weights that were frozen, the base
    adapter_model.safetensors   the matrices; the vectors, the rows and, if there is one, the draft head

Loading adds the products to the base's weights: a merged model is one like any other.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn

from asarm.models.backbone import AnyOrderModel
from asarm.models.llama import AnyOrderLlama
from asarm.utils.errors import InputError
from asarm.utils.files import write_json
from asarm.utils.hub_errors import as_input_error
from asarm.utils.weights import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_weights,
    read_tensors,
    refuse_pointer,
    shortened,
)

LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
ACTIVE = "default"  # peft's name of the adapter in a model
PREFIX = "base_model.model."  # peft's, of all names in a file
HEAD = "draft_head."


@dataclass
class AdapterConfig(LoraConfig):
    """What `peft` wants to know. base_sha256: of the base (see `weights_sha256`), "" if nothing is known of it."""

    base_sha256: str = ""


def new_adapter_config(rank: int, base: str, revision: str | None, base_sha256: str) -> AdapterConfig:
    """The config of a new adapter. base, revision: as in `model_folder`; a folder is written as an absolute path."""
    name = str(Path(base).resolve()) if Path(base).exists() else base
    return AdapterConfig(
        r=rank, lora_alpha=2 * rank, target_modules=LAYERS, base_model_name_or_path=name, revision=revision,
        base_sha256=base_sha256,
    )  # fmt: skip


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The config in the folder of an adapter. Raises InputError when it is damaged, or of another kind of adapter."""
    file = folder / ADAPTER_CONFIG
    refuse_pointer(file)
    damages = (OSError, ValueError, TypeError, LookupError, AttributeError)
    with as_input_error(lambda why: f"{file} is damaged, or not of an adapter of this package: {why}", *damages):
        values = json.loads(file.read_text(encoding="utf-8"))
        kind, base_sha256 = values["peft_type"], values.pop("base_sha256")
        if kind != "LORA" or not isinstance(values["base_model_name_or_path"], str):
            raise ValueError(f"peft_type {kind!r}, base_model_name_or_path {values['base_model_name_or_path']!r}")
        known = LoraConfig.from_peft_type(**values)  # warns of settings that are newer than the library
        settings = {field.name: getattr(known, field.name) for field in fields(known) if field.init}
        return AdapterConfig(**settings | {"inference_mode": False, "base_sha256": base_sha256})


def check_base(config: AdapterConfig, found: str, name: str | Path) -> None:
    """Raise InputError unless the base has the weights that the adapter `name` was trained with. found: SHA-256."""
    if found != config.base_sha256:
        raise InputError(
            f"{config.base_model_name_or_path} is not the model that {name} was trained with (SHA-256 of its weights "
            f"{found[:12]}..., not {str(config.base_sha256)[:12]}...)"
        )


class PartlyTrained(nn.Module):
    """A frozen matrix [V, E] of a vocabulary, as an embedding or an output layer, one of whose rows is trained."""

    def __init__(self, frozen: torch.Tensor, index: int):
        super().__init__()
        self.frozen, self.index = cast(nn.Parameter, frozen), index
        self.row = nn.Parameter(frozen.detach()[index : index + 1].float())

    @property
    def weight(self) -> torch.Tensor:
        """The whole matrix."""
        return torch.cat((self.frozen[: self.index], self.row.to(self.frozen.dtype), self.frozen[self.index + 1 :]))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens [...]: [..., E]."""
        found = F.embedding(tokens, self.frozen)
        return torch.where((tokens == self.index)[..., None], self.row.to(found.dtype), found)


def train_row(model: AnyOrderLlama, index: int) -> None:
    """Make one row of a frozen model's embedding trainable, and of its output layer, which may be the same."""
    embedding, output = model.model.embed_tokens.weight, model.lm_head.weight
    model.set_submodule("model.embed_tokens", PartlyTrained(embedding, index))
    is_tied = output is embedding
    model.set_submodule("lm_head", model.model.embed_tokens if is_tied else PartlyTrained(output, index))


@torch.no_grad()
def merge_row(model: AnyOrderModel, path: str, layer: PartlyTrained) -> None:
    """Write the trained row of a layer at a path into the matrix, and put back a layer of `torch`."""
    layer.frozen[layer.index] = layer.row[0]
    count, width = layer.frozen.shape
    new = nn.Linear(width, count, bias=False) if path == "lm_head" else nn.Embedding(count, width)
    new.weight = layer.frozen
    model.set_submodule(path, new)


def add_adapter(model: AnyOrderModel, config: AdapterConfig) -> None:
    """Freeze a model but for new adapters, which at first change nothing, the vectors of its queries, and what it reads
    and writes at the end of a gap.

    Raises InputError for backbones other than `llama`.
    """
    if not isinstance(model, AnyOrderLlama):
        raise InputError(
            f"low-rank adapters (lora_rank) are for the llama backbone, and {config.base_model_name_or_path} is "
            f"{model.config.model_type}"
        )
    inject_adapter_in_model(config, model)
    for vector in (model.model.query_vector, model.model.no_left):
        vector.requires_grad_(True)
    if model.config.gap_end_token_id is not None:
        train_row(model, model.config.gap_end_token_id)


def freeze_in_bfloat16(model: nn.Module) -> None:
    """Turn the frozen matrices of a model to bfloat16, for autocast, which would else do it at each step."""
    kept = set(map(id, adapter_parameters(model).values()))
    for parameter in model.parameters():
        if id(parameter) not in kept and parameter.ndim >= 2:
            parameter.data = parameter.data.to(torch.bfloat16)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a model with adapters does not have from its base, by the names in an adapter's file: all that is trained,
    and the draft head, which is trained by itself."""
    return {
        PREFIX + name.replace(f".{ACTIVE}.", "."): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or name.startswith(HEAD)
    }


def active_adapter_config(model: AnyOrderModel) -> AdapterConfig:
    """The config of a model's adapters."""
    config: Any = model.peft_config
    return config[ACTIVE]


def save_adapter(model: AnyOrderModel, folder: Path, dtype: torch.dtype) -> None:
    """Write config and adapter of a model with adapters into a folder, which is made. dtype: of the tensors written."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    values = active_adapter_config(model).to_dict() | {"inference_mode": True}
    write_json(folder / ADAPTER_CONFIG, {key: sorted(v) if isinstance(v, set) else v for key, v in values.items()})
    write_tensors(adapter_parameters(model), folder, dtype)


def write_tensors(tensors: Mapping[str, torch.Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Write the tensors of an adapter into its folder."""
    written = {name: tensor.detach().to("cpu", dtype) for name, tensor in tensors.items()}
    save_file(written, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def save_with_draft_head(adapter: Path, model: AnyOrderModel, folder: Path) -> None:
    """Write an adapter into another folder, which is made, with the draft head of a model that it was merged into.

    adapter: its folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    shutil.copy(adapter / ADAPTER_CONFIG, folder)
    tensors = {key: value for key, value in read_tensors(adapter / ADAPTER_WEIGHTS).items() if PREFIX + HEAD not in key}
    head = {PREFIX + name: value for name, value in model.state_dict().items() if name.startswith(HEAD)}
    write_tensors(tensors | head, folder, torch.float16)


@torch.no_grad()
def load_adapter(model: AnyOrderModel, folder: Path, name: str | Path) -> None:
    """Fill a model's adapters from a folder. name: of the adapter. Raises InputError for what is damaged or unfit."""
    found, wanted = read_tensors(adapter_weights(name, folder)), adapter_parameters(model)
    both = found.keys() & wanted.keys()
    wrong = {
        "missing": wanted.keys() - both,
        "unexpected": found.keys() - both,
        "of another shape": {key for key in both if found[key].shape != wanted[key].shape},
        "not finite": {key for key in both if not found[key].isfinite().all()},
    }
    if any(wrong.values()):
        problems = "; ".join(f"{kind}: {', '.join(shortened(sorted(keys)))}" for kind, keys in wrong.items() if keys)
        raise InputError(f"the weights of {name} do not fit its base, or are damaged: {problems}")
    for key, parameter in wanted.items():
        parameter.copy_(found[key])


def merge_adapter(model: AnyOrderModel) -> None:
    """Add what a model's adapters have learned to the weights beside them, and take the adapters out."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            model.set_submodule(path, layer.get_base_layer())
    for path, layer in list(model.named_modules(remove_duplicate=False)):
        if isinstance(layer, PartlyTrained):
            merge_row(model, path, layer)
    del model.peft_config
    model.requires_grad_(True)
