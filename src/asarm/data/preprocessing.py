"""Local files as streams of tokens: read in this thread, tokenised in several, written in the order of the files.

Documents go through the threads in portions, of which few are in memory at a time, whatever the sizes of the files. The
tokens do not depend on the number of threads. Threads are enough, as the tokenizers let go of Python's lock while they
work; they were no slower than processes, which would have to be started, watched and ended. The threads that tokenizers
have of their own wait for each other at the end of each batch.
"""

import io
import logging
import os
import shutil
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from asarm.data.config import CorpusConfig
from asarm.data.readers import documents, pieces
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.progress import progress_bar

logger = logging.getLogger(__name__)
TRAIN, HELD_OUT = "train.bin", "held_out.bin"
PORTION = 1 << 18  # characters, about, that a thread tokenises at once
COPIED = 1 << 24  # bytes


class End(NamedTuple):
    """The end of a file, among its documents. error: why it ends there, if the rest cannot be read."""

    error: InputError | None


class Piece(NamedTuple):
    """A piece of a document. begins: whether it is the first one."""

    begins: bool
    text: str


class Tokens(NamedTuple):
    """A piece of a document, as token ids [n] int32."""

    begins: bool
    ids: np.ndarray


def token_ids(codec: TextCodec, text: str) -> np.ndarray:
    """Token ids [n] int32 of a piece. Mask tokens in the text are dropped, as no model can predict them, and those that
    end gaps, which in a text would mean one."""
    return _predictable(codec, codec.encode(text))


def _predictable(codec: TextCodec, ids: list[int]) -> np.ndarray:
    array = np.array(ids, dtype=np.int32)
    return array[~np.isin(array, codec.reserved())]


def document_ids(codec: TextCodec, text: str, end: list[int]) -> np.ndarray:
    """Token ids of a whole document, closed by `end` (see `TextCodec.document_end`): [n] int32."""
    parts = [token_ids(codec, piece) for _, piece in pieces(io.StringIO(text))]
    return np.concatenate([*parts, np.array(end, dtype=np.int32)])


def write_streams(
    files: list[Path], config: CorpusConfig, codec: TextCodec, dtype: np.dtype, folder: Path, threads: int
) -> None:
    """Tokenise files into the streams of a new folder. See `asarm.data.packed.local_corpus`."""
    folder.mkdir()
    every = round(1 / config.held_out)
    many = len(files) >= 2 * every
    skipped, end = 0, np.array(codec.document_end(config.document_end))
    sizes = [path.stat().st_size for path in files]
    with (
        (folder / TRAIN).open("w+b") as train_file,
        (folder / HELD_OUT).open("w+b") as held_out_file,
        progress_bar("tokenising", "B", sum(sizes), scaled=True, delayed=True) as bar,
        closing(tokenised(read(files, sizes, config.text_field, bar), codec, threads)) as parts,
    ):
        train, held_out = TokenWriter(train_file, dtype), TokenWriter(held_out_file, dtype)
        for index, path in enumerate(files):
            stream = held_out if many and index % every == every - 1 else train
            start = len(stream)
            try:
                write_documents(path, parts, end, stream)
            except InputError:
                if config.names(path):
                    raise
                stream.cut(start)
                skipped += 1
                continue
            if not many:
                held_out_tokens = round(config.held_out * (len(train) - start))
                train.move_end(len(train) - held_out_tokens, held_out)
                held_out.append(end)
            stream.append(end)
    if skipped:
        logger.warning("%d of %d files are skipped: they are empty or cannot be read", skipped, len(files))


def write_documents(path: Path, parts: Iterator[Tokens | End], end: np.ndarray, stream: "TokenWriter") -> None:
    """Append a file's documents, with `end` [e] between them. parts: of it, up to its End, and of files after it.

    Raises InputError if it cannot be read or has no tokens.
    """
    start = len(stream)
    for part in parts:
        if isinstance(part, End):
            if part.error:
                raise part.error
            break
        if part.begins and len(stream) > start and len(part.ids):
            stream.append(end)  # of the document before
        stream.append(part.ids)
    if len(stream) == start:
        raise InputError(f"{path} is empty")


def read(files: list[Path], sizes: list[int], text_field: str, bar: tqdm) -> Iterator[Piece | End]:
    """The documents of files in pieces, with an End after each file. bar: is moved by the bytes that were read."""
    for path, size in zip(files, sizes, strict=True):
        before, error = bar.n, None
        try:
            for begins, text in documents(path, text_field, bar.update):
                yield Piece(begins, text)
        except InputError as found:
            error = found
        bar.update(before + size - bar.n)
        yield End(error)


def tokenised(parts: Iterable[Piece | End], codec: TextCodec, threads: int) -> Generator[Tokens | End, None, None]:
    """The parts with their tokens, in their order. At most two portions a thread are read ahead."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizer's own threads would be too many
    codec.encode_batch([])  # sets the tokenizer up, which the threads may not do at once
    pool, waiting = ThreadPoolExecutor(threads), deque[Future[list[Tokens | End]]]()
    try:
        for portion in portions(parts):
            waiting.append(pool.submit(tokenise, portion, codec))
            if len(waiting) > 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def portions(parts: Iterable[Piece | End]) -> Iterator[list[Piece | End]]:
    """The parts in lists of about PORTION characters, of many short documents or one long piece."""
    portion: list[Piece | End] = []
    size = 0
    for part in parts:
        portion.append(part)
        size += len(part.text) if isinstance(part, Piece) else 1
        if size >= PORTION:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def tokenise(portion: list[Piece | End], codec: TextCodec) -> list[Tokens | End]:
    """A portion with the tokens of its pieces."""
    ids = iter(codec.encode_batch([part.text for part in portion if isinstance(part, Piece)]))
    return [
        Tokens(part.begins, _predictable(codec, next(ids))) if isinstance(part, Piece) else part for part in portion
    ]


class TokenWriter:
    """A file of tokens that grows, and can be cut back."""

    def __init__(self, file: BinaryIO, dtype: np.dtype):
        self.file, self.dtype = file, dtype

    def __len__(self) -> int:
        return self.file.tell() // self.dtype.itemsize

    def append(self, ids: np.ndarray) -> None:
        """Write tokens [n] at the end."""
        self.file.write(ids.astype(self.dtype).tobytes())

    def cut(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self.file.seek(length * self.dtype.itemsize)
        self.file.truncate()

    def move_end(self, length: int, other: "TokenWriter") -> None:
        """Keep the first `length` tokens, and append the rest to another file, of the same dtype."""
        self.file.seek(length * self.dtype.itemsize)
        shutil.copyfileobj(self.file, other.file, COPIED)
        self.cut(length)
