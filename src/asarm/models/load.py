"""Loading any backbone, and its tokenizer, by the name of a bundled model, a folder or a repository on the Hub."""

import re
from collections.abc import Iterable
from pathlib import Path

import httpx
import torch
from huggingface_hub import constants, is_offline_mode, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from asarm.models.backbone import AnyOrderModel
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.xlnet import AnyOrderXLNet, AnyOrderXLNetConfig
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError, first_line

FOLDER = Path(__file__).parent.parent / "bundled"
PREFIX = "tiny-"


def bundled_names() -> list[str]:
    """Names of the models in this installation, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def bundled_model_path(name: str) -> Path:
    """The folder of a bundled model. InputError, with the names there are, when there is none of that name."""
    if name not in bundled_names():
        raise InputError(f"no bundled model {name!r}: there is {', '.join(bundled_names()) or 'none here'}")
    return FOLDER / name


def resolve_model(name: str | Path) -> str:
    """The folder of a bundled model for its name; any other name (a folder, a Hub repository) as it is.

    A bare name that begins as the bundled ones do, and is no folder, must be one of them.
    """
    name = str(name)
    bare = "/" not in name and not Path(name).exists()
    is_bundled = bare and (name.startswith(PREFIX) or name in bundled_names())
    return str(bundled_model_path(name)) if is_bundled else name


BACKBONES = {AnyOrderGPT2Config.model_type: AnyOrderGPT2, AnyOrderXLNetConfig.model_type: AnyOrderXLNet}
XLNET = AnyOrderXLNetConfig.model_type
# Released XLNet weights come without a tokenizer: all of them use this one.
XLNET_TOKENIZER = "xlnet/xlnet-base-cased"
XLNET_CODE_BRANCH = re.compile(r"code(-.*)?")
TOKENIZER_FILES = ["tokenizer.json", "spiece.model"]
# What is downloaded of a repository: no pickle, and nothing in folders.
SMALL_FILES = [
    "config.json", *TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt",
]  # fmt: skip


WEIGHT_FILES = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]


def model_folder(name: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a model: a bundled one, a local one, or a Hub repository's in the cache.

    revision: branch, tag or commit of the repository; None is `main`. weights: whether the weights must be there, or
    config and tokenizer are enough. What the cache lacks is downloaded; with HF_HUB_OFFLINE=1 no request is made.

    Raises InputError when there is no such folder, repository or revision, or it cannot be had.
    """
    folder, revision = resolve_model(name), revision or constants.DEFAULT_REVISION
    if Path(folder).is_dir():
        return Path(folder)
    if Path(folder).is_absolute() or folder.startswith(".") or folder.count("/") > 1:
        raise InputError(f"no model folder {name}")
    files = SMALL_FILES + WEIGHT_FILES if weights else SMALL_FILES
    try:
        return Path(snapshot_download(folder, revision=revision, allow_patterns=files))
    except HFValidationError as error:
        raise InputError(f"no model folder {name}, and no repository of the Hub can have this name") from error
    except GatedRepoError as error:
        raise InputError(f"{name} is gated: ask for access on its page, then `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"no model folder {name}, and no such repository on the Hub (if it is private: `hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name} has no branch, tag or commit {revision!r} on the Hub") from error
    except LocalEntryNotFoundError as error:
        why = "HF_HUB_OFFLINE is set" if is_offline_mode() else first_line(error.__cause__ or error)
        raise InputError(
            f"no model folder {name}; {name} at {revision} is not (wholly) in the cache {constants.HF_HUB_CACHE}, and "
            f"{constants.ENDPOINT} cannot be reached: {why}"
        ) from error
    except (httpx.HTTPError, OSError) as error:
        raise InputError(f"the download of {name} at {revision} failed, try again: {first_line(error)}") from error


def read_config(name: str | Path, folder: Path, known: Iterable[str] = tuple(BACKBONES)) -> PreTrainedConfig:
    """The config in a model's folder. Raises InputError when it is missing, damaged or of none of the kinds known."""
    try:
        config = AutoConfig.from_pretrained(folder)
    except StrictDataclassError as error:
        raise InputError(f"the config of {name} is not valid: {' '.join(str(error).split())}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot load {name}: {first_line(error)}") from error
    if config.model_type not in known:
        raise InputError(f"{name} is a {config.model_type} model; known are {', '.join(known)}")
    return config


def read_weights(model_class: type[PreTrainedModel], name: str | Path, folder: Path, dtype: torch.dtype):
    """The model of a class with the weights in a folder. Raises InputError when they are missing, damaged or others."""
    try:
        model, report = model_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    except SafetensorError as error:
        raise InputError(f"the weights in {folder} are damaged, get them anew: {error}") from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot load {name}: {first_line(error)}") from error
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report[kind]}
    if wrong:
        raise InputError(f"the weights of {name} do not fit its config: {wrong}")
    return model


def read_tokenizer(name: str | Path, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises InputError when it is missing or damaged."""
    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # `tokenizers` raises plain Exception for damaged files
        raise InputError(f"cannot load the tokenizer of {name}: are its files there? ({first_line(error)})") from error


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, named as in `model_folder`; XLNet's own where an XLNet model comes without one.

    Raises InputError when it is missing, damaged or has no mask token.
    """
    folder = model_folder(name, revision, weights=False)
    # Asked for a tokenizer that is not there, `transformers` makes up an empty one for XLNet: look first.
    there = any((folder / file).exists() for file in TOKENIZER_FILES)
    if not there and read_config(name, folder).model_type == XLNET:
        try:
            folder = model_folder(XLNET_TOKENIZER, weights=False)
        except InputError as error:
            raise InputError(f"{name} comes without a tokenizer, and XLNet's is needed: {error}") from error
    tokenizer = read_tokenizer(name, folder)
    if tokenizer.mask_token_id is None:
        raise InputError(f"the tokenizer of {name} has no mask token: it does not belong to an any-subset model")
    return tokenizer


class AsArm:
    """Any-subset models of every backbone: what the Auto classes of `transformers` are for theirs."""

    @staticmethod
    def from_pretrained(
        name: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32
    ) -> AnyOrderModel:
        """A model in evaluation mode, named as in `model_folder`; its config tells the backbone.

        Reads safetensors only (in one file or sharded), never pickle. Its config gets what checkpoints do not say, and
        saves it: mask_token_id, from the tokenizer; and white_space, how its texts are written (see `TextCodec`),
        which is "tokens" for XLNet's branches `code` and `code-...` and "plain" for all others.

        Raises InputError when there is no such model, its weights are missing or damaged, do not fit the config, or it
        is of another kind.
        """
        config = read_config(name, model_folder(name, revision, weights=False))
        model = read_weights(BACKBONES[config.model_type], name, model_folder(name, revision), dtype)
        if model.config.mask_token_id is None:
            model.config.mask_token_id = load_tokenizer(name, revision).mask_token_id
        if getattr(model.config, "white_space", None) is None:
            is_code = config.model_type == XLNET and XLNET_CODE_BRANCH.fullmatch(revision or "")
            model.config.white_space = "tokens" if is_code else "plain"
        return model.eval()


def load(
    name: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32, white_space: str = "auto"
) -> tuple[AnyOrderModel, TextCodec]:
    """A model and the codec of its texts. name, revision: as in `model_folder`.

    white_space: "auto" is what the model's config says (see `AsArm.from_pretrained`); "tokens" and "plain" overrule it.

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


def load_on_device(
    name: str, revision: str | None, white_space: str, device: torch.device, dtype: str
) -> tuple[AnyOrderModel, TextCodec]:
    """The model and codec of `asarm.models.load.load`, on a device, in the number format that `dtype` names."""
    model, codec = load(name, revision, pick_dtype(dtype, device), white_space)
    return model.to(device), codec
