"""Load any backbone and its tokenizer by the name of a bundled model, a folder or a repository on the Hub."""

import logging
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub import constants, is_offline_mode, snapshot_download
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from asarm.models.backbone import AnyOrderModel
from asarm.models.conversion import gguf, smollm2
from asarm.models.conversion.from_llama import FAMILIES, any_order_llama, check_supported
from asarm.models.conversion.vocabulary import add_gap_end_row, add_mask_token, vocabulary_size
from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.llama import AnyOrderLlama, AnyOrderLlamaConfig
from asarm.models.ops import attend_to_any_shape, pack_weights
from asarm.models.xlnet import AnyOrderXLNet, AnyOrderXLNetConfig
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.hub_errors import as_input_error, config_errors, download_errors
from asarm.utils.provenance import why_no_gpu
from asarm.utils.weights import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    WEIGHTS,
    find_weights,
    read_weights,
    refuse_pointer,
    shard_names,
    weights_sha256,
)

logger = logging.getLogger(__name__)
XLNET = AnyOrderXLNetConfig.model_type
LLAMA = AnyOrderLlamaConfig.model_type
BACKBONES: dict[str, type[AnyOrderModel]] = {
    AnyOrderGPT2Config.model_type: AnyOrderGPT2,
    XLNET: AnyOrderXLNet,
    LLAMA: AnyOrderLlama,
}
KNOWN = (*BACKBONES, *FAMILIES)  # what can be loaded
XLNET_TOKENIZER = "xlnet/xlnet-base-cased"  # released XLNet weights come without a tokenizer: all of them use this one
# Names of the branches that released XLNet weights have on the Hub: code-..., code_..., nlp_...
CODE_BRANCH, TEXT_BRANCH = re.compile(r"code([-_].*)?"), re.compile(r"nlp([-_].*)?")
BUNDLED_FOLDER, BUNDLED_PREFIXES = Path(__file__).parent.parent / "bundled", ("tiny-", "smollm2-")
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
TOKENIZER_FILES = [  # one of them holds the vocabulary
    "tokenizer.json", "spiece.model", "vocab.json", "tokenizer.model", "sentencepiece.bpe.model", "vocab.txt"
]  # fmt: skip
# What is downloaded of a repository, besides one form of its weights.
SMALL_FILES = [
    "config.json", ADAPTER_CONFIG, *TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
]  # fmt: skip


def load_on_device(
    name: str, revision: str | None, white_space: str, device: torch.device, dtype: str
) -> tuple[AnyOrderModel, TextCodec]:
    """The model and codec of `load`, the model on a device. dtype: as in `pick_dtype`."""
    config = read_config(name, model_folder(name, revision, weights=False))
    large = config.model_type in (LLAMA, *FAMILIES)
    model, codec = load(name, revision, pick_dtype(dtype, device, large), white_space)
    model.to(device)  # type: ignore[arg-type] # a decorator of transformers hides the types of the arguments
    return model, codec


def load(
    name: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32, white_space: str = "auto"
) -> tuple[AnyOrderModel, TextCodec]:
    """A model in evaluation mode, and its codec. name, revision, white_space: as in `AsArm.from_pretrained`.

    Raises InputError as `AsArm.from_pretrained`, `load_tokenizer` and `TextCodec` do, and when model and tokenizer do
    not belong together.
    """
    model, tokenizer = AsArm.from_pretrained(name, revision, dtype, white_space), load_tokenizer(name, revision)
    fit_to_tokenizer(model.config, tokenizer, name)
    return model, TextCodec(tokenizer, model.config.white_space)


class AsArm:
    """Any-subset models of every backbone, as the Auto classes of `transformers` are for its models."""

    @staticmethod
    def from_pretrained(
        name: str | Path, revision: str | None = None, dtype: torch.dtype = torch.float32, white_space: str = "auto"
    ) -> AnyOrderModel:
        """A model in evaluation mode, named as in `model_folder`. Its config decides on the backbone.

        Causal models of `transformers` of the families in `asarm.models.conversion.from_llama` are models of ours, too.
        Reads safetensors or, where there are none, pickles of tensors (see `asarm.utils.weights`). An adapter is merged
        into its base (see `merged`).

        white_space: how text is encoded (see `TextCodec`): "tokens" or "plain"; "auto" is what the config says or, as
        those of released checkpoints say nothing, "tokens" for XLNet's branches code, code-... and code_..., and
        "plain" for all others. It is added to the config, as is what `fit_to_tokenizer` says of the tokenizer where
        the config does not know the mask token.

        Raises InputError when there is no such model, its weights are missing, damaged or do not fit the config, or
        its architecture is unknown.
        """
        if white_space not in ("auto", "plain", "tokens"):
            raise InputError(f"unknown white_space {white_space!r}: choose auto, plain or tokens")
        folder = model_folder(name, revision, weights=False)
        config = read_config(name, folder)
        model: AnyOrderModel
        if (folder / ADAPTER_CONFIG).is_file():
            model = merged(name, model_folder(name, revision), config).to(dtype)  # type: ignore[arg-type]
        elif config.model_type in FAMILIES:
            check_supported(config, name)
            source = read_weights(FAMILIES[config.model_type], name, model_folder(name, revision), dtype)
            model = any_order_llama(source, load_tokenizer(name, revision), name)
        else:
            model = read_weights(BACKBONES[config.model_type], name, model_folder(name, revision), dtype)
        if model.config.mask_token_id is None:
            fit_to_tokenizer(model.config, load_tokenizer(name, revision), name)
        if white_space != "auto":
            model.config.white_space = white_space
        elif getattr(model.config, "white_space", None) is None:
            model.config.white_space = branch_white_space(config.model_type, name, revision)
        if model.draft_head is not None:
            model.draft_head.requires_grad_(False)  # transformers makes all weights that it reads trainable
        pack_weights(model)
        return model


def merged(name: str | Path, folder: Path, config: PreTrainedConfig) -> AnyOrderModel:
    """The base of an adapter with the adapter merged into it; else as `adapted`."""
    from asarm.models.adapter import merge_adapter

    model = adapted(name, folder, config)
    merge_adapter(model)
    return model.eval()


def adapted(name: str | Path, folder: Path, config: PreTrainedConfig) -> AnyOrderModel:
    """The base of an adapter with the adapter beside its weights, in float32.

    name, folder, config: of the adapter; its folder also names the base. Raises InputError when that is missing, or is
    not the model that the adapter was trained for, and when the adapter is damaged.
    """
    from asarm.models.adapter import add_adapter, check_base, load_adapter, read_adapter_config

    adapter = read_adapter_config(folder)
    base, revision = str(adapter.base_model_name_or_path), adapter.revision
    try:
        check_base(adapter, weights_sha256(base, model_folder(base, revision)), name)
        model = AsArm.from_pretrained(base, revision)
        if config.gap_end_token_id is not None and model.config.gap_end_token_id is None:
            add_gap_end_row(model, config.gap_end_token_id)
        add_adapter(model, adapter)
    except InputError as error:
        raise InputError(f"cannot load the base of {name}, which {folder / ADAPTER_CONFIG} names: {error}") from error
    for setting in ("draft_head", "draft_recurrent", "draft_vocabulary"):
        setattr(model.config, setting, getattr(config, setting))
    model.add_draft_head(model.config.hidden_size)
    load_adapter(model, folder, name)
    model.config.white_space = getattr(config, "white_space", None)
    return model


def fit_to_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str | Path) -> None:
    """Tell a config which rows of its vocabulary are never sampled: the mask token's, and those without a token.

    Raises InputError when the tokenizer has another mask token, or more tokens than there are rows.
    """
    known = vocabulary_size(tokenizer)
    if config.mask_token_id is None:
        config.mask_token_id = tokenizer.mask_token_id
    if config.mask_token_id != tokenizer.mask_token_id or known > config.vocab_size:
        raise InputError(
            f"the tokenizer of {name} does not belong to its weights: its mask token is {tokenizer.mask_token_id} of "
            f"{known}, theirs {config.mask_token_id} of {config.vocab_size}"
        )
    config.n_tokens = known if known < config.vocab_size else None


def branch_white_space(model_type: str, name: str | Path, revision: str | None) -> str:
    """How a model encodes white space, by its branch on the Hub. Says so where that is a guess."""
    if model_type != XLNET or name == XLNET_TOKENIZER or TEXT_BRANCH.fullmatch(revision or ""):
        return "plain"
    if CODE_BRANCH.fullmatch(revision or ""):
        return "tokens"
    logger.warning(
        "%s is read as a model of plain text, as neither its config nor a branch called nlp... or code... says what it "
        "is; if it is one of code: --white_space tokens", f"{name} at {revision}" if revision else name,
    )  # fmt: skip
    return "plain"


def load_tokenizer(name: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, named as in `model_folder`; XLNet's own where an XLNet model comes without one.

    Raises InputError when it is missing, damaged or has no mask token.
    """
    folder = model_folder(name, revision, weights=False)
    kind = read_config(name, folder).model_type if (folder / "config.json").is_file() else None
    if not tokenizer_files(folder) and kind == XLNET:
        try:
            folder = model_folder(XLNET_TOKENIZER, weights=False)
        except InputError as error:
            raise InputError(f"{name} comes without a tokenizer, and XLNet's is needed: {error}") from error
    tokenizer = read_tokenizer(name, folder)
    if kind in FAMILIES:
        add_mask_token(tokenizer)
    if tokenizer.mask_token_id is None:
        raise InputError(f"the tokenizer of {name} has no mask token: it does not belong to an any-subset model")
    return tokenizer


def read_config(name: str | Path, folder: Path, known: Iterable[str] = KNOWN) -> PreTrainedConfig:
    """The config in a model's folder. Raises InputError when it is missing, damaged, or of none of the types `known`.

    name: what the user called the model, for the messages.
    """
    if (folder / "config.json").is_file():
        refuse_pointer(folder / "config.json")
    with config_errors(name):
        config = AutoConfig.from_pretrained(folder)
    if config.model_type not in known:
        raise InputError(f"{name} is a {config.model_type} model; known are {', '.join(known)}")
    return config


def tokenizer_files(folder: Path) -> list[Path]:
    """The files with a vocabulary in a folder."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def read_tokenizer(name: str | Path, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder. Raises InputError when it is missing or damaged."""
    files = tokenizer_files(folder)
    if not files:  # `transformers` would make up an empty one
        raise InputError(f"{name} comes without a tokenizer: put the one that it was trained with beside its weights")
    for file in files:
        refuse_pointer(file)
    # `tokenizers` raises plain Exception for damaged files.
    with as_input_error(lambda why: f"cannot load the tokenizer of {name}: are its files there? ({why})", Exception):
        return AutoTokenizer.from_pretrained(folder)


def model_folder(name: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a model: a bundled one, a local one, or a Hub repository's in the cache.

    name: also a GGUF file, see `asarm.models.conversion.gguf`.
    revision: branch, tag or commit of the repository; None is `main`. weights: whether the weights are needed, or
    config and tokenizer are enough. What the cache lacks is downloaded; with HF_HUB_OFFLINE=1 no request is made.

    Raises InputError when there is no such folder, repository or revision, or the download fails.
    """
    folder, revision = resolve_model(name), revision or constants.DEFAULT_REVISION
    if folder == smollm2.NAME and not Path(folder).exists():
        return smollm2.smollm2_folder()
    if file := gguf.find_gguf(folder, revision):
        return gguf.unpacked(file)
    if Path(folder).is_dir():
        return Path(folder)
    if Path(folder).is_absolute() or folder.startswith(".") or folder.count("/") > 1:
        raise InputError(f"no model folder {name}")
    with download_errors(name, revision):
        return download(folder, revision, weights)


def download(repository: str, revision: str, weights: bool) -> Path:
    """The folder in the cache with the files of a repository that are needed, downloaded where they are not there yet.

    Of weights in several forms only the one that is read is downloaded.
    """
    # Else a commit is looked up on the Hub unless the cache has a list of its files; those of older versions have none.
    offline = is_offline_mode()
    folder = Path(
        snapshot_download(repository, revision=revision, allow_patterns=SMALL_FILES, local_files_only=offline)
    )

    def add(*files: str) -> Path | None:
        # The folder is called after the commit: from now on that is meant, wherever the branch moves.
        snapshot_download(repository, revision=folder.name, allow_patterns=list(files), local_files_only=offline)
        return find_weights(folder)

    forms = (ADAPTER_WEIGHTS,) if (folder / ADAPTER_CONFIG).is_file() else WEIGHTS
    for file in forms if weights else ():
        if found := add(file, file + INDEX):
            if found.name.endswith(INDEX):
                add(*shard_names(found))
            break
    return folder


def resolve_model(name: str | Path) -> str:
    """The folder of a bundled model for its name; any other name (a folder, a Hub repository) as it is.

    A bare name that begins as those of bundled models do, and is no folder, must be one of them.
    """
    name = str(name)
    bare = "/" not in name and not Path(name).exists()
    is_bundled = bare and (name.startswith(BUNDLED_PREFIXES) or name in bundled_names())
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
    attend_to_any_shape()
    if name == "auto":
        reason = why_no_gpu()
        if reason is not None:
            logger.warning("there is a GPU, but it cannot be used (%s): taking the CPU", reason)
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


def pick_dtype(name: str, device: torch.device, large: bool = False) -> torch.dtype:
    """float32 or bfloat16. InputError for other names.

    "auto" is bfloat16 on a GPU that supports it, and for large models on a CPU that multiplies it; else float32.
    """
    if name not in DTYPES:
        raise InputError(f"unknown dtype {name!r}: choose from {', '.join(DTYPES)}")
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = large and device.type == "cpu" and multiplies_bfloat16()
    return DTYPES[name] or (torch.bfloat16 if is_fast else torch.float32)


def multiplies_bfloat16() -> bool:
    """Whether this CPU multiplies matrices of bfloat16 faster than of float32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
