"""GGUF files: unpacked once, by `transformers`, into a folder of plain weights in the user's cache."""

from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import constants, hf_hub_download
from transformers import AutoModelForCausalLM, AutoTokenizer

from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_text, write_whole
from asarm.utils.hub_errors import as_input_error, download_errors

SUFFIX = ".gguf"
# What quantised weights stand for are products of float16 numbers and small integers.
DTYPE = torch.float16


def find_gguf(name: str, revision: str) -> Path | None:
    """The GGUF file that a model's name stands for, or None.

    name: such a file, a folder with one and without a config, or OWNER/REPOSITORY/FILE.gguf on the Hub. Raises
    InputError for a folder with several of them, when there is no such file, or its download fails.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").exists():
        files = sorted(path.glob(f"*{SUFFIX}"))
        if len(files) > 1:
            raise InputError(f"{name} has {len(files)} GGUF files: give one of them, such as {files[0]}")
        return files[0] if files else None
    if not name.endswith(SUFFIX) or path.is_dir():
        return None
    if path.is_file():
        return path
    repository, _, file = name.rpartition("/")
    if path.is_absolute() or name.startswith(".") or repository.count("/") != 1:
        raise InputError(f"no file {name}")
    with download_errors(repository, revision):
        return Path(hf_hub_download(repository, file, revision=revision))


def unpacked(file: Path) -> Path:
    """The folder with what a GGUF file holds, as `transformers` saves models.

    Raises InputError when the file is damaged, `transformers` does not know its architecture, or the package gguf is
    missing.
    """
    status = file.resolve().stat()
    key = sha256_of_text(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}")[:16]
    folder = Path(constants.HF_ASSETS_CACHE) / "asarm" / "gguf" / f"{file.stem}-{key}"
    if not folder.exists():
        check_package(file)
        unpack_whole(file, folder, file)
    return folder


def check_package(name: str | Path) -> None:
    """Raise InputError when the package that reads GGUF files is missing. name: of what is to be read."""
    if find_spec("gguf") is None:
        raise InputError(f"reading {name} takes the package gguf: pip install gguf")


def unpack_whole(file: Path, folder: Path, name: str | Path) -> None:
    """Make the folder of a GGUF file, at once. Raises InputError, with the name, for what cannot be read."""
    # The reader of GGUF files raises exceptions of all kinds.
    with as_input_error(lambda why: f"cannot read {name}: {why}", Exception):
        write_whole(folder, lambda path: unpack(file, path))


def unpack(file: Path, folder: Path) -> None:
    """Write config, weights and tokenizer of a GGUF file into a folder."""
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model, report = AutoModelForCausalLM.from_pretrained(**source, dtype=DTYPE, output_loading_info=True)
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report[kind]}
    if wrong:  # missing ones would be random
        raise InputError(f"the weights in {file} do not fit its config: {wrong}")
    tokenizer = AutoTokenizer.from_pretrained(**source)
    for name in ("bos_token_id", "eos_token_id"):  # `transformers` reads these of the config, but not of the tokenizer
        if (token := getattr(model.config, name)) is not None:
            setattr(tokenizer, name, token)
    del model.config.quantization_config  # the weights are plain now
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
