"""Local corpora: text, JSON lines, parquet and folders of source files, tokenised once and memory-mapped.

A corpus is two streams of tokens, one for training and one held out, in which every document ends with eos, and what
the tokenizer puts after a text, if that is wished. Packed sequences are windows of a stream, and which of them a batch
holds is a function of the seed and the batch's number.
"""

import functools
import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from asarm.data.config import CorpusConfig
from asarm.data.preprocessing import HELD_OUT, TRAIN, write_streams
from asarm.data.readers import corpus_files
from asarm.data.unpacked import Texts
from asarm.tokenization.codec import TextCodec
from asarm.utils.cluster.processes import usable_cpus
from asarm.utils.errors import InputError
from asarm.utils.files import sha256_of_file, write_whole
from asarm.utils.folder_lock import locked

logger = logging.getLogger(__name__)
CACHE_VERSION = 2


def local_corpus(config: CorpusConfig, codec: TextCodec) -> tuple[np.ndarray, np.ndarray]:
    """Token streams of the local files, for training and held out: [n] each, memory-mapped.

    They are made once and kept in a cache folder whose name is a digest of the files' contents, the tokenizer and the
    settings. Of many files every 1 / held_out-th is held out; of few the end of each. Neither depends on the block
    size, so that runs which continue each other hold out the same documents.

    Raises InputError for a file that was named and cannot be read or is empty; such files in a folder are skipped.
    """
    files = corpus_files(config.train_files, config.extensions)
    base = Path(config.cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "asarm")).expanduser()
    threads = config.preprocessing_num_workers or usable_cpus()  # other processes of the run wait meanwhile
    folder = base / _digest(files, config, codec, threads)
    # As narrow as the vocabulary allows; its size is part of the digest.
    dtype = np.dtype(np.uint16 if len(codec) <= 1 << 16 else np.int32)
    if not folder.exists():
        with locked(folder, beside=True, wait=True):  # several runs may begin at once
            if not folder.exists():
                logger.info("tokenising %d files, once, in %d threads: %s", len(files), threads, folder)
                write_whole(folder, lambda path: write_streams(files, config, codec, dtype, path, threads))
    train, held_out = (
        np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
        for path in (folder / TRAIN, folder / HELD_OUT)
    )
    return train, held_out


def _digest(files: list[Path], config: CorpusConfig, codec: TextCodec, threads: int) -> str:
    """What the tokens depend on, as 32 hexadecimal digits."""
    settings = (CACHE_VERSION, config.text_field, config.held_out, codec.white_space_tokens)
    special = (codec.document_end(config.document_end), codec.mask_token_id)  # which the tokenizer's text does not name
    total = hashlib.sha256(repr(settings + special).encode())
    total.update(codec.tokenizer.backend_tokenizer.to_str().encode())
    pool = ThreadPoolExecutor(threads)
    try:
        for path, digest in zip(files, pool.map(_digest_of, files), strict=True):
            total.update(repr((path.suffixes, config.names(path))).encode() + digest.encode())
    finally:
        pool.shutdown(cancel_futures=True)
    return total.hexdigest()[:32]


def _digest_of(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


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
