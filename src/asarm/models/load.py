"""Load any backbone and its tokenizer by the name of a bundled model, a folder or a repository on the Hub."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from asarm.models.backbone import AnyOrderModel
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.xlnet import AnyOrderXLNet, AnyOrderXLNetConfig
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.hub_errors import as_input_error, download_errors

XLNET = AnyOrderXLNetConfig.model_type
BACKBONES: dict[str, type[AnyOrderModel]] = {AnyOrderGPT2Config.model_type: AnyOrderGPT2, XLNET: AnyOrderXLNet}
XLNET_TOKENIZER = "xlnet/xlnet-base-cased"  # released XLNet weights come without a tokenizer: all of them use this one
XLNET_CODE_BRANCH = re.compile(r"code(-.*)?")
BUNDLED_FOLDER, BUNDLED_PREFIX = Path(__file__).parent.parent / "bundled", "tiny-"
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
# What is downloaded of a repository: no pickle, and nothing in subfolders.
TOKENIZER_FILES = ["tokenizer.json", "spiece.model"]
SMALL_FILES = [
    "config.json", *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
]  # fmt: skip
WEIGHT_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]


def load_on_device(
    name: str, revision: str | None, white_space: str, device: torch.device, dtype: str
) -> tuple[AnyOrderModel, TextCodec]:
    """The model and codec of `load`, the model on a device. dtype: as in `pick_dtype`."""
    model, codec = load(name, revision, pick_dtype(dtype, device), white_space)
    model.to(device)  # type: ignore[arg-type] # a decorator of transformers hides the types of the arguments
    return model, codec


def load(
    name: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32, white_space: str = "auto"
) -> tuple[AnyOrderModel, TextCodec]:
    """A model in evaluation mode, and its codec. name, revision: as in `model_folder`.

    white_space: "auto" is what the model's config says (see `AsArm.from_pretrained`); "tokens" and "plain" override it.

    Raises InputError as `AsArm.from_pretrained`, `load_tokenizer` and `TextCodec` do, and when model and tokenizer do
    not belong together.
    """
    if white_space not in ("auto", "plain", "tokens"):
        raise InputError(f"unknown white_space {white_space!r}: choose auto, plain or tokens")
    model, tokenizer = AsArm.from_pretrained(name, revision, dtype), load_tokenizer(name, revision)
    if model.config.mask_token_id != tokenizer.mask_token_id or model.config.vocab_size <= tokenizer.mask_token_id:
        raise InputError(
            f"the tokenizer of {name} does not belong to its weights: its mask token is {tokenizer.mask_token_id}, "
            f"theirs {model.config.mask_token_id} of {model.config.vocab_size}"
        )
    if white_space != "auto":
        model.config.white_space = white_space
    return model, TextCodec(tokenizer, model.config.white_space)


class AsArm:
    """Any-subset models of every backbone, as the Auto classes of `transformers` are for its models."""

    @staticmethod
    def from_pretrained(
        name: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32
    ) -> AnyOrderModel:
        """A model in evaluation mode, named as in `model_folder`. Its config decides on the backbone.

        Reads safetensors only (one file or sharded), never pickle. Two settings that released checkpoints lack are
        added to the config, and saved with it: mask_token_id, from the tokenizer; and white_space, how text is
        encoded (see `TextCodec`): "tokens" for XLNet's branches `code` and `code-...`, "plain" for all others.

        Raises InputError when there is no such model, its weights are missing, damaged or do not fit the config, or
        its architecture is unknown.
        """
        config = read_config(name, model_folder(name, revision, weights=False))
        model = read_weights(BACKBONES[config.model_type], name, model_folder(name, revision), dtype)
        if model.config.mask_token_id is None:
            model.config.mask_token_id = load_tokenizer(name, revision).mask_token_id
        if getattr(model.config, "white_space", None) is None:
            is_code = config.model_type == XLNET and XLNET_CODE_BRANCH.fullmatch(revision or "")
            model.config.white_space = "tokens" if is_code else "plain"
        return model.eval()


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, named as in `model_folder`; XLNet's own where an XLNet model comes without one.

    Raises InputError when it is missing, damaged or has no mask token.
    """
    folder = model_folder(name, revision, weights=False)
    # For an XLNet folder without a tokenizer, `transformers` would make up an empty one: look for its files first.
    has_tokenizer = any((folder / file).exists() for file in TOKENIZER_FILES)
    if not has_tokenizer and read_config(name, folder).model_type == XLNET:
        try:
            folder = model_folder(XLNET_TOKENIZER, weights=False)
        except InputError as error:
            raise InputError(f"{name} comes without a tokenizer, and XLNet's is needed: {error}") from error
    tokenizer = read_tokenizer(name, folder)
    if tokenizer.mask_token_id is None:
        raise InputError(f"the tokenizer of {name} has no mask token: it does not belong to an any-subset model")
    return tokenizer


def read_config(name: str | Path, folder: Path, known: Iterable[str] = tuple(BACKBONES)) -> PreTrainedConfig:
    """The config in a model's folder. Raises InputError when it is missing, damaged, or of none of the types `known`.

    name: what the user called the model, for the messages.
    """
    with (
        as_input_error(lambda reason: f"the config of {name} is not valid: {reason}", StrictDataclassError),
        as_input_error(lambda reason: f"cannot load {name}: {reason}", OSError, ValueError),
    ):
        config = AutoConfig.from_pretrained(folder)
    if config.model_type not in known:
        raise InputError(f"{name} is a {config.model_type} model; known are {', '.join(known)}")
    return config


def read_weights(model_class: type[PreTrainedModel], name: str | Path, folder: Path, dtype: torch.dtype) -> Any:
    """A model of a class with the weights in a folder. Raises InputError when these are missing, damaged or unfit."""
    with (
        as_input_error(
            lambda reason: f"the weights in {folder} are damaged, download them again: {reason}", SafetensorError
        ),
        as_input_error(lambda reason: f"cannot load {name}: {reason}", OSError, RuntimeError),
    ):
        loaded: Any = model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
        model, report = loaded
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report[kind]}
    if wrong:
        raise InputError(f"the weights of {name} do not fit its config: {wrong}")
    return model


def read_tokenizer(name: str | Path, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises InputError when it is missing or damaged."""
    # `tokenizers` raises plain Exception for damaged files.
    with as_input_error(lambda why: f"cannot load the tokenizer of {name}: are its files there? ({why})", Exception):
        return AutoTokenizer.from_pretrained(folder)


def model_folder(name: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a model: a bundled one, a local one, or a Hub repository's in the cache.

    revision: branch, tag or commit of the repository; None is `main`. weights: whether the weights are needed, or
    config and tokenizer are enough. What the cache lacks is downloaded; with HF_HUB_OFFLINE=1 no request is made.

    Raises InputError when there is no such folder, repository or revision, or the download fails.
    """
    folder, revision = resolve_model(name), revision or constants.DEFAULT_REVISION
    if Path(folder).is_dir():
        return Path(folder)
    if Path(folder).is_absolute() or folder.startswith(".") or folder.count("/") > 1:
        raise InputError(f"no model folder {name}")
    files = SMALL_FILES + WEIGHT_FILES if weights else SMALL_FILES
    with download_errors(name, revision):
        return Path(snapshot_download(folder, revision=revision, allow_patterns=files))


def resolve_model(name: str | Path) -> str:
    """The folder of a bundled model for its name; any other name (a folder, a Hub repository) as it is.

    A bare name that begins as those of bundled models do, and is no folder, must be one of them.
    """
    name = str(name)
    bare = "/" not in name and not Path(name).exists()
    is_bundled = bare and (name.startswith(BUNDLED_PREFIX) or name in bundled_names())
    return str(bundled_model_path(name)) if is_bundled else name


def bundled_model_path(name: str) -> Path:
    """The folder of a bundled model. Raises InputError, which lists their names, when there is none of that name."""
    if name not in bundled_names():
        raise InputError(f"no bundled model {name!r}: there is {', '.join(bundled_names()) or 'none here'}")
    return BUNDLED_FOLDER / name


def bundled_names() -> list[str]:
    """Names of the models that come with this installation, sorted."""
    return sorted(path.parent.name for path in BUNDLED_FOLDER.glob("*/config.json"))


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one. Raises InputError when there is no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """float32, bfloat16, or for "auto" bfloat16 on a GPU that supports it, else float32. InputError for other names."""
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}: choose from {', '.join(DTYPES)}")
    is_fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return DTYPES[name] or (torch.bfloat16 if is_fast else torch.float32)
