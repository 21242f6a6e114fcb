"""The weights in a model's folder: safetensors, or else pickles that hold nothing but tensors; in one file or several.

`transformers` would read the same files. Here they are found and checked first, so that what is wrong with one of them
is said in a line that names it, and so that no pickle runs code.
"""

import json
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from asarm.utils.errors import InputError, first_line
from asarm.utils.files import sha256_of_tensors, sha256_of_text
from asarm.utils.hub_errors import as_input_error, config_errors

INDEX = ".index.json"  # ends the name of a file that says which of several files holds which tensor
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read, whole or by its index
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # of `asarm.models.adapter`
POINTER = b"version https://git-lfs"  # how a file begins that git-lfs left instead of a large one


def read_weights(
    model_class: type[PreTrainedModel], name: str | Path, folder: Path, dtype: torch.dtype, strict: bool = True
) -> Any:
    """A model of a class, in evaluation mode, with the config and weights in a folder, whatever dtype these have.

    name: what the user called the model, for the messages. strict: refuse tensors that the model does not have.

    Raises InputError when the config is not valid, or weights are missing, damaged, unsafe to read or unfit for it.
    """
    with config_errors(name):
        config = model_class.config_class.from_pretrained(folder)
    tensors: dict[str, torch.Tensor] = {}
    for file in weight_files(name, folder):
        tensors |= read_tensors(file)
    # Models of `transformers` fail in all kinds of ways when their config makes no sense.
    with as_input_error(lambda reason: f"cannot load {name}: {reason}", Exception):
        loaded: Any = model_class.from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=dtype,
            ignore_mismatched_sizes=True,  # they are reported below
            output_loading_info=True,
        )
    model, report = loaded
    mismatched = [f"{key} {tuple(found)}, not {tuple(wanted)}" for key, found, wanted in report["mismatched_keys"]]
    wrong = {
        "missing_keys": report["missing_keys"],
        "mismatched_keys": mismatched,
        "unexpected_keys": report["unexpected_keys"] if strict else [],
    }
    wrong = {kind: shortened(sorted(keys)) for kind, keys in wrong.items() if keys}
    if wrong:
        raise InputError(f"the weights of {name} do not fit its config: {wrong}")
    return model.eval()


def weights_sha256(name: str | Path, folder: Path) -> str:
    """SHA-256 of the tensors in a model's folder, or of those of its adapter: the same in whatever files they are.

    name: of the model, for messages. Raises InputError when they are missing, damaged or unsafe to read.
    """
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    lines: list[str] = []
    for file in [adapter_weights(name, folder)] if is_adapter else weight_files(name, folder):
        for key, tensor in read_tensors(file).items():
            lines.append(f"{key} {tensor.dtype} {list(tensor.shape)} {sha256_of_tensors([tensor])}")
    return sha256_of_text("\n".join(sorted(lines)))


def find_weights(folder: Path) -> Path | None:
    """The file of the weights in a folder, or the index of several files; None if there is neither."""
    names = (name + ending for name in WEIGHTS for ending in ("", INDEX))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def weight_files(name: str | Path, folder: Path) -> list[Path]:
    """The files that hold the weights in a folder. Raises InputError when there are none, or one of several is missing.

    name: of the model, for the message.
    """
    found = find_weights(folder)
    if found is None:
        raise InputError(f"cannot load {name}: there is neither {' nor '.join(WEIGHTS)} in {folder}")
    files = [folder / shard for shard in shard_names(found)] if found.name.endswith(INDEX) else [found]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(
            f"cannot load {name}: {found} names {', '.join(shortened(missing))}, not there: download the model again"
        )
    return files


def adapter_weights(name: str | Path, folder: Path) -> Path:
    """The file of the weights in an adapter's folder. Raises InputError when it is missing. name: for the message."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise InputError(f"cannot load {name}: there is no {ADAPTER_WEIGHTS} in {folder}")
    return folder / ADAPTER_WEIGHTS


def shard_names(index: Path) -> list[str]:
    """Names of the files that an index lists, sorted. Raises InputError when it is damaged or names files elsewhere."""
    refuse_pointer(index)
    damages = (OSError, ValueError, LookupError, TypeError, AttributeError)  # no JSON, or not the JSON of an index
    with as_input_error(lambda reason: f"{index} is damaged, download it again: {reason}", *damages):
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        elsewhere = [name for name in names if Path(name).name != name]
    if elsewhere or not names:
        raise InputError(f"{index} names {elsewhere[0] if names else 'no files'!r}: it must name files beside it")
    return names


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file by their names, on the CPU. Raises InputError when it is damaged or holds anything else."""
    refuse_pointer(file)
    if file.suffix == ".safetensors":
        with as_input_error(lambda reason: damaged(file, reason), OSError, SafetensorError):
            return load_file(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that other programs wrote
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # what is no pickle, or the first half of one, fails in all kinds of ways
        if unsafe := re.search(r"GLOBAL (\S+)", str(error)):
            raise InputError(more_than_tensors(file, f"it asks for {unsafe[1]}")) from error
        # What torch says of pickles that it cannot read is how to read them unsafely.
        reason = "no pickle of tensors" if isinstance(error, pickle.UnpicklingError) else first_line(error)
        raise InputError(damaged(file, reason)) from error
    if not isinstance(loaded, dict):
        raise InputError(more_than_tensors(file, f"it holds a {type(loaded).__name__}"))
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InputError(more_than_tensors(file, f"{name!r} in it is a {type(value).__name__}"))
    # Tensors of a pickle may be views of the same memory; parameters must not share any.
    return {name: value.detach().clone() for name, value in loaded.items()}


def refuse_pointer(file: Path) -> None:
    """Raise InputError if git-lfs has left a pointer instead of the file."""
    with file.open("rb") as opened:
        if opened.read(len(POINTER)) == POINTER:
            raise InputError(f"{file} is a pointer of git-lfs, not the file: `git lfs pull`, or download it again")


def damaged(file: Path, reason: str) -> str:
    """The message for weights that cannot be read."""
    return f"the weights in {file} are damaged, download them again: {reason}"


def more_than_tensors(file: Path, what: str) -> str:
    """The message for a pickle of anything but tensors by their names."""
    return f"{file} is refused, as a pickle may hold tensors by their names only: {what}; save it as safetensors"


def shortened(names: list) -> list:
    """The first four of some names, and how many more there are."""
    return [*names[:4], *([f"and {len(names) - 4} more"] if len(names) > 4 else [])]
