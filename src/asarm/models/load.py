"""Loading any backbone and its tokenizer from a folder or the Hub."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from asarm.errors import InputError
from asarm.models.bundled import resolve_model
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.xlnet import AnyOrderXLNet, AnyOrderXLNetConfig

BACKBONES = {AnyOrderGPT2Config.model_type: AnyOrderGPT2, AnyOrderXLNetConfig.model_type: AnyOrderXLNet}
# Released XLNet weights come without a tokenizer: all of them use this one.
XLNET_TOKENIZER = "xlnet/xlnet-base-cased"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")


def _comes_without_tokenizer(name: str | Path, revision: str | None) -> bool:
    files = (
        cached_file(name, file, revision=revision, _raise_exceptions_for_missing_entries=False)
        for file in TOKENIZER_FILES
    )
    return all(file is None for file in files)


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or Hub repository; XLNet's own where an XLNet model comes without one.

    Raises InputError when it is missing, damaged or has no mask token.
    """
    try:
        # Asked for a tokenizer that is not there, `transformers` makes up an empty one for XLNet: look first.
        if _comes_without_tokenizer(name, revision):
            config = AutoConfig.from_pretrained(name, revision=revision)
            if config.model_type == AnyOrderXLNetConfig.model_type:
                name, revision = XLNET_TOKENIZER, None
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except Exception as error:  # `tokenizers` raises plain Exception for damaged files
        reason = str(error).strip().splitlines()[0].rstrip(": ")
        raise InputError(f"cannot load the tokenizer of {name}: are its files there? ({reason})") from error
    if tokenizer.mask_token_id is None:
        raise InputError(f"the tokenizer of {name} has no mask token: it does not belong to an any-subset model")
    return tokenizer


def load_model(name: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32):
    """An AS-ARM in evaluation mode, from a folder or a Hub repository.

    Reads safetensors only (in one file or sharded), never pickle. The mask token's id comes from the config, or from
    the tokenizer where the config does not know it. Raises InputError when there is no such model, its weights are
    missing or damaged, do not fit the config, or it is of another kind.
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
    except StrictDataclassError as error:
        raise InputError(f"the config of {name} is not valid: {' '.join(str(error).split())}") from error
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot load {name}: {str(error).strip().splitlines()[0]}") from error
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report[kind]}
    if wrong:
        raise InputError(f"the weights of {name} do not fit its config: {wrong}")
    if model.config.mask_token_id is None:
        model.config.mask_token_id = load_tokenizer(name, revision).mask_token_id
    return model.eval()


def load(name: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32):
    """A model and its tokenizer: (model, tokenizer). name: a bundled model, a folder or a Hub repository.

    Raises InputError as `load_model` and `load_tokenizer` do, and when the two do not belong together.
    """
    folder = resolve_model(name)
    if not Path(folder).is_dir() and (Path(folder).is_absolute() or folder.startswith(".") or folder.count("/") > 1):
        raise InputError(f"no model folder {name}")
    model, tokenizer = load_model(folder, revision, dtype), load_tokenizer(folder, revision)
    if model.config.mask_token_id != tokenizer.mask_token_id or model.config.vocab_size <= tokenizer.mask_token_id:
        raise InputError(
            f"the tokenizer of {name} does not belong to its weights: its mask token is {tokenizer.mask_token_id}, "
            f"theirs {model.config.mask_token_id} of {model.config.vocab_size}"
        )
    return model, tokenizer
