"""Local corpora: text, JSON lines, parquet and folders of source files, tokenised once and memory-mapped.

A corpus is two streams of tokens, one for training and one held out, in which every document ends with eos, and what
the tokenizer puts after a text, if that is wished. Packed sequences are windows of a stream, and which of them a batch
holds is a function of the seed and the batch's number.
"""

import functools
import hashlib
import io
import logging
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from asarm.data.config import CorpusConfig
from asarm.data.readers import corpus_files, documents, pieces
from asarm.data.unpacked import Texts
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_file, write_whole
from asarm.utils.folder_lock import locked

logger = logging.getLogger(__name__)
CACHE_VERSION = 2
TRAIN, HELD_OUT = "train.bin", "held_out.bin"


def token_ids(codec: TextCodec, text: str) -> np.ndarray:
    """Token ids [n] int32 of a piece. Mask tokens in the text are dropped, as no model can predict them, and those that
    end gaps, which in a text would mean one."""
    ids = np.array(codec.encode(text), dtype=np.int32)
    return ids[~np.isin(ids, codec.reserved())]


def document_ids(codec: TextCodec, text: str, end: list[int]) -> np.ndarray:
    """Token ids of a whole document, closed by `end` (see `TextCodec.document_end`): [n] int32."""
    parts = [token_ids(codec, piece) for _, piece in pieces(io.StringIO(text))]
    return np.concatenate([*parts, np.array(end, dtype=np.int32)])


def local_corpus(config: CorpusConfig, codec: TextCodec) -> tuple[np.ndarray, np.ndarray]:
    """Token streams of the local files, for training and held out: [n] each, memory-mapped.

    They are made once and kept in a cache folder whose name is a digest of the files' contents, the tokenizer and the
    settings. Of many files every 1 / held_out-th is held out; of few the end of each. Neither depends on the block
    size, so that runs which continue each other hold out the same documents.

    Raises InputError for a file that was named and cannot be read or is empty; such files in a folder are skipped.
    """
    files = corpus_files(config.train_files, config.extensions)
    base = Path(config.cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "asarm")).expanduser()
    folder = base / _digest(files, config, codec)
    # As narrow as the vocabulary allows; its size is part of the digest.
    dtype = np.dtype(np.uint16 if len(codec) <= 1 << 16 else np.int32)
    if not folder.exists():
        with locked(folder, beside=True, wait=True):  # several runs may begin at once
            if not folder.exists():
                logger.info("tokenising %d files, once: %s", len(files), folder)
                write_whole(folder, lambda path: write_streams(files, config, codec, dtype, path))
    train, held_out = (
        np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
        for path in (folder / TRAIN, folder / HELD_OUT)
    )
    return train, held_out


def write_streams(files: list[Path], config: CorpusConfig, codec: TextCodec, dtype: np.dtype, folder: Path) -> None:
    """Tokenise files into the streams of a new folder. See `local_corpus`."""
    folder.mkdir()
    every = round(1 / config.held_out)
    many = len(files) >= 2 * every
    skipped, end = 0, np.array(codec.document_end(config.document_end))
    with (folder / TRAIN).open("w+b") as train_file, (folder / HELD_OUT).open("w+b") as held_out_file:
        train, held_out = TokenWriter(train_file, dtype), TokenWriter(held_out_file, dtype)
        for index, path in enumerate(files):
            stream = held_out if many and index % every == every - 1 else train
            start = len(stream)
            try:
                write_documents(path, config.text_field, codec, end, stream)
            except InputError:
                if config.names(path):
                    raise
                stream.cut(start)
                skipped += 1
                continue
            if not many:
                held_out_tokens = round(config.held_out * (len(train) - start))
                held_out.append(train.cut(len(train) - held_out_tokens))
                held_out.append(end)
            stream.append(end)
    if skipped:
        logger.warning("%d of %d files are skipped: they are empty or cannot be read", skipped, len(files))


def write_documents(path: Path, text_field: str, codec: TextCodec, end: np.ndarray, stream: "TokenWriter") -> None:
    """Append a file's documents, with `end` [e] between them. Raises InputError if it cannot be read or has no
    tokens."""
    start = len(stream)
    for is_first, piece in documents(path, text_field):
        ids = token_ids(codec, piece)
        if is_first and len(stream) > start and len(ids):
            stream.append(end)  # of the document before
        stream.append(ids)
    if len(stream) == start:
        raise InputError(f"{path} is empty")


class TokenWriter:
    """A file of tokens that grows, and can be cut back."""

    def __init__(self, file: BinaryIO, dtype: np.dtype):
        self.file, self.dtype = file, dtype

    def __len__(self) -> int:
        return self.file.tell() // self.dtype.itemsize

    def append(self, ids: np.ndarray) -> None:
        """Write tokens [n] at the end."""
        self.file.write(ids.astype(self.dtype).tobytes())

    def cut(self, length: int) -> np.ndarray:
        """Keep the first `length` tokens, and return the rest."""
        self.file.seek(length * self.dtype.itemsize)
        rest = np.frombuffer(self.file.read(), self.dtype)
        self.file.seek(length * self.dtype.itemsize)
        self.file.truncate()
        return rest


def _digest(files: list[Path], config: CorpusConfig, codec: TextCodec) -> str:
    """What the tokens depend on, as 32 hexadecimal digits."""
    settings = (CACHE_VERSION, config.text_field, config.held_out, codec.white_space_tokens)
    special = (codec.document_end(config.document_end), codec.mask_token_id)  # which the tokenizer's text does not name
    total = hashlib.sha256(repr(settings + special).encode())
    total.update(codec.tokenizer.backend_tokenizer.to_str().encode())
    for path in files:
        total.update(repr((path.suffixes, config.names(path))).encode())
        try:
            total.update(sha256_of_file(path).encode())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
    return total.hexdigest()[:32]


def pack(documents: list[list[int]], eos: int, block_size: int) -> np.ndarray:
    """Documents, each closed by eos, joined and cut into blocks: [n, block_size] int32. The remainder is dropped."""
    return blocks(np.concatenate([np.array([*document, eos], dtype=np.int32) for document in documents]), block_size)


def blocks(stream: np.ndarray, block_size: int) -> np.ndarray:
    """A stream of tokens [n] cut into blocks: a view [n // block_size, block_size]. The remainder is dropped.

    Raises InputError if there is no whole block.
    """
    count = len(stream) // block_size
    if count == 0:
        raise InputError(f"the text has {len(stream)} tokens, less than one block of {block_size}")
    return stream[: count * block_size].reshape(count, block_size)


def evenly(blocks: np.ndarray | Texts, count: int) -> np.ndarray:
    """At most `count` of the blocks [n, N], evenly spaced."""
    return blocks[np.linspace(0, len(blocks) - 1, min(count, len(blocks))).astype(int)]


def batch_rows(blocks: int, index: int, batch: int, seed: int) -> np.ndarray:
    """Which blocks make up batch number `index`: [batch] int64. Each epoch has its own shuffle, made from the seed."""
    numbers = np.arange(index * batch, (index + 1) * batch)  # counted over epochs
    rows = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(numbers // blocks):
        here = numbers // blocks == epoch
        rows[here] = _epoch_order(blocks, seed, int(epoch))[numbers[here] % blocks]
    return rows


@functools.lru_cache(maxsize=2)
def _epoch_order(blocks: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 2, epoch]).permutation(blocks)


class LocalBatches:
    """Batches of a local corpus. Batch number i of the whole run is the same on any number of processes.

    rank, ranks: this process, and how many there are. start: how many batches this process had before.
    """

    def __init__(self, blocks: np.ndarray | Texts, batch: int, seed: int, rank: int, ranks: int, start: int = 0):
        self.blocks, self.batch, self.seed = blocks, batch, seed
        self.rank, self.ranks, self.next = rank, ranks, start
        self.states: dict[int, dict] = {}  # those of `StreamBatches`; here the step says it all

    def __enter__(self) -> "LocalBatches":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open; `StreamBatches` has processes to end."""

    def __iter__(self) -> "LocalBatches":
        return self

    def __next__(self) -> np.ndarray:
        """This process's next batch [batch, N]: numbers rank, rank + ranks, rank + 2 ranks, ..."""
        rows = batch_rows(len(self.blocks), self.next * self.ranks + self.rank, self.batch, self.seed)
        self.next += 1
        return self.blocks[rows]
