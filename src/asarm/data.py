"""Local text files to packed token blocks, and the order in which training reads them."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from asarm.errors import InputError


def text_files(paths: list[str]) -> list[Path]:
    """The files named, and the *.txt files of the folders named, sorted."""
    files = []
    for path in map(Path, paths):
        if not path.exists():
            raise InputError(f"no such file or folder: {path}")
        files += sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"no *.txt files in {', '.join(map(str, paths))}")
    return files


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises InputError when it cannot be read, is no UTF-8 or is empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {error.object[error.start]:#x} at {error.start}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not text.strip():
        raise InputError(f"{path} is empty")
    return text


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the special tokens <eos>, <pad> and <mask> (ids 0, 1, 2); any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<eos>", "<pad>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", mask_token="<mask>"
    )


def pack(documents: list[list[int]], eos: int, block_size: int) -> np.ndarray:
    """Documents, each closed by eos, joined and cut into blocks: [n, block_size] int32. A short rest is dropped."""
    stream = np.concatenate([np.array([*document, eos], dtype=np.int32) for document in documents])
    count = len(stream) // block_size
    if count == 0:
        raise InputError(f"the text has {len(stream)} tokens, less than one block of {block_size}")
    return stream[: count * block_size].reshape(count, block_size)


def split_documents(documents: list[list[int]], held_out: float) -> tuple[list[list[int]], list[list[int]]]:
    """Each document's first tokens for training and its last `held_out` share for validation.

    The cut does not depend on the block size, so that runs which continue each other hold out the same text.
    """
    cuts = [len(document) - round(held_out * len(document)) for document in documents]
    pairs = list(zip(documents, cuts, strict=True))
    return [document[:cut] for document, cut in pairs], [document[cut:] for document, cut in pairs]


def evenly(blocks: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the blocks [n, N], evenly spread."""
    return blocks[np.linspace(0, len(blocks) - 1, min(count, len(blocks))).astype(int)]


def batch_rows(blocks: int, index: int, batch: int, seed: int) -> np.ndarray:
    """Which blocks make up batch number `index`: [batch] int64. Each epoch has its own shuffle, made from the seed."""
    places = np.arange(index * batch, (index + 1) * batch)
    rows = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(places // blocks):
        here = places // blocks == epoch
        rows[here] = np.random.default_rng([seed, 2, epoch]).permutation(blocks)[places[here] % blocks]
    return rows
