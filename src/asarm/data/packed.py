"""Local corpora: text, JSON lines, parquet and folders of source files, tokenised once and memory-mapped.

A corpus is two streams of tokens, one for training and one held out, in which every document ends with eos. Packed
texts are windows of them, and what a pass reads is a function of the seed and the pass's number alone.
"""

import functools
import hashlib
import io
import logging
import os
from pathlib import Path

import numpy as np

from asarm.data.config import CorpusConfig
from asarm.data.readers import corpus_files, documents, pieces
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_file, write_whole

logger = logging.getLogger(__name__)
CACHE_VERSION = 1


def token_ids(codec: TextCodec, text: str) -> np.ndarray:
    """Token ids of a piece. Mask tokens that stand in the text are left out: no model can predict them."""
    ids = np.array(codec.encode(text), dtype=np.int32)
    return ids[ids != codec.mask_token_id]


def document_ids(codec: TextCodec, text: str) -> np.ndarray:
    """Token ids of a whole document, closed by eos: [n] int32."""
    parts = [token_ids(codec, piece) for _, piece in pieces(io.StringIO(text))]
    return np.concatenate([*parts, np.array([codec.eos_token_id], dtype=np.int32)])


def local_corpus(config: CorpusConfig, codec: TextCodec) -> tuple[np.ndarray, np.ndarray]:
    """Token streams of the local files, for training and held out: [n] each, memory-mapped.

    They are made once and kept in a cache folder whose name is a digest of the files' contents, the tokenizer and the
    settings. Of many files every 1 / held_out-th is held out; of few the last share of each, which does not depend on
    the block size, so that runs which continue each other hold out the same text.

    Raises InputError for a file that was named and cannot be read or is empty; one found in a folder is passed over.
    """
    files = corpus_files(config.train_files, config.extensions)
    base = Path(config.cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "asarm")).expanduser()
    folder = base / _digest(files, config, codec)
    # Narrow: the size of the vocabulary is part of the digest.
    dtype = np.dtype(np.uint16 if len(codec) <= 1 << 16 else np.int32)
    if not folder.exists():
        logger.info("tokenising %d files, once: %s", len(files), folder)
        write_whole(folder, lambda path: _tokenise(files, config, codec, dtype, path))
    names = [folder / "train.bin", folder / "held_out.bin"]
    return tuple(np.memmap(name, dtype, "r") if name.stat().st_size else np.empty(0, dtype) for name in names)


def _tokenise(files: list[Path], config: CorpusConfig, codec: TextCodec, dtype: np.dtype, folder: Path) -> None:
    folder.mkdir()
    every = round(1 / config.held_out)
    many = len(files) >= 2 * every
    passed_over = 0
    with (folder / "train.bin").open("w+b") as train, (folder / "held_out.bin").open("w+b") as held_out:

        def put(file, ids) -> None:
            file.write(np.asarray(ids).astype(dtype).tobytes())

        for index, path in enumerate(files):
            file = held_out if many and index % every == every - 1 else train
            start, count = file.tell(), 0
            try:
                for begins, piece in documents(path, config.text_field):
                    ids = token_ids(codec, piece)
                    if begins and count and len(ids):
                        put(file, [codec.eos_token_id])  # of the document before
                        count += 1
                    put(file, ids)
                    count += len(ids)
                if not count:
                    raise InputError(f"{path} is empty")
            except InputError:
                if str(path) in config.train_files:
                    raise
                passed_over += 1
                file.seek(start)
                file.truncate()
                continue
            if not many:
                tail = round(config.held_out * count)
                train.seek(start + (count - tail) * dtype.itemsize)
                held_out.write(train.read())
                train.seek(start + (count - tail) * dtype.itemsize)
                train.truncate()
                put(held_out, [codec.eos_token_id])
            put(file, [codec.eos_token_id])
    if passed_over:
        logger.warning("%d of %d files are passed over: they are empty or cannot be read", passed_over, len(files))


def _digest(files: list[Path], config: CorpusConfig, codec: TextCodec) -> str:
    """What the tokens depend on, as 32 hexadecimal digits."""
    total = hashlib.sha256(repr((CACHE_VERSION, config.text_field, config.held_out, codec.written)).encode())
    total.update(codec.tokenizer.backend_tokenizer.to_str().encode())
    for path in files:
        total.update(repr((path.suffixes, str(path) in config.train_files)).encode())
        try:
            total.update(sha256_of_file(path).encode())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
    return total.hexdigest()[:32]


def pack(documents: list[list[int]], eos: int, block_size: int) -> np.ndarray:
    """Documents, each closed by eos, joined and cut into blocks: [n, block_size] int32. A short rest is dropped."""
    return blocks(np.concatenate([np.array([*document, eos], dtype=np.int32) for document in documents]), block_size)


def blocks(stream: np.ndarray, block_size: int) -> np.ndarray:
    """A stream of tokens [n] cut into blocks: a view [n // block_size, block_size]. A short rest is dropped."""
    count = len(stream) // block_size
    if count == 0:
        raise InputError(f"the text has {len(stream)} tokens, less than one block of {block_size}")
    return stream[: count * block_size].reshape(count, block_size)


def evenly(blocks: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the blocks [n, N], evenly spread."""
    return blocks[np.linspace(0, len(blocks) - 1, min(count, len(blocks))).astype(int)]


def batch_rows(blocks: int, index: int, batch: int, seed: int) -> np.ndarray:
    """Which blocks make up batch number `index`: [batch] int64. Each epoch has its own shuffle, made from the seed."""
    places = np.arange(index * batch, (index + 1) * batch)
    rows = np.empty(batch, dtype=np.int64)
    for epoch in np.unique(places // blocks):
        here = places // blocks == epoch
        rows[here] = _epoch_order(blocks, seed, int(epoch))[places[here] % blocks]
    return rows


@functools.lru_cache(maxsize=2)
def _epoch_order(blocks: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, 2, epoch]).permutation(blocks)


class LocalBatches:
    """Batches of a local corpus. Batch number i of the whole run is the same on any number of processes."""

    def __init__(self, blocks: np.ndarray, batch: int, seed: int, rank: int, ranks: int, start: int = 0):
        self.blocks, self.batch, self.seed = blocks, batch, seed
        self.rank, self.ranks, self.next = rank, ranks, start

    def __iter__(self):
        return self

    def __next__(self) -> np.ndarray:
        """This process's next batch [batch, N]: numbers rank, rank + ranks, rank + 2 ranks, ..."""
        rows = batch_rows(len(self.blocks), self.next * self.ranks + self.rank, self.batch, self.seed)
        self.next += 1
        return self.blocks[rows]
