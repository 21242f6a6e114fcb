"""Local corpora: text, JSON lines, parquet and folders of source files, tokenised once and memory-mapped.

A corpus is two streams of tokens, one for training and one held out, in which every document ends with eos. Packed
texts are windows of them, and what a pass reads is a function of the seed and the pass's number alone.
"""

import functools
import gzip
import hashlib
import io
import json
import logging
import os
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from asarm.codec import TextCodec
from asarm.config import CorpusConfig
from asarm.errors import InputError
from asarm.files import write_whole

logger = logging.getLogger(__name__)
PIECE = 1 << 20  # characters that are tokenised at once, so that a document of any length takes little memory
LONGEST_LINE = 1 << 24  # bytes of JSON that are read at once
TEXT_FIELDS = ("text", "content")
STDLIB = "stdlib"
STDLIB_PACKAGES = ("asyncio", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing",
                   "unittest", "urllib", "xml")  # fmt: skip
TOKENIZER_TEXT = 100_000_000  # characters from which a tokenizer is trained
CACHE_VERSION = 1


def corpus_files(paths: list[str], extensions: Iterable[str] = (".txt",)) -> list[Path]:
    """The files named, and those with one of the extensions in the folders named and the folders in them, sorted."""
    files = []
    for path in paths:
        if path == STDLIB and not Path(path).exists():
            library = Path(sysconfig.get_paths()["stdlib"])
            folders = [library / package for package in STDLIB_PACKAGES]
        elif not Path(path).exists():
            raise InputError(f"no such file or folder: {path}")
        elif Path(path).is_dir():
            folders = [Path(path)]
        else:
            files.append(Path(path))
            continue
        found = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        files += sorted(file for file in found if file.name.removesuffix(".gz").endswith(tuple(extensions)))
    if not files:
        raise InputError(f"no {', '.join('*' + end for end in extensions)} files in {', '.join(map(str, paths))}")
    return files


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises InputError when it cannot be read, is no UTF-8 or is empty."""
    text = "".join(piece for _, piece in documents(Path(path), as_text=True))
    if not text.strip():
        raise InputError(f"{path} is empty")
    return text


def documents(path: Path, text_field: str = "", as_text: bool = False) -> Iterator[tuple[bool, str]]:
    """The documents of a file in pieces of about PIECE characters at most: (whether a document begins, piece).

    A text file is one document; .jsonl and .parquet files (unless as_text) have one a line or row. Raises InputError,
    with the line, for what cannot be read, is no UTF-8 or no JSON, or has no such field.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    try:
        if kind == ".parquet" and not as_text:
            yield from _parquet_documents(path, text_field)
        elif kind == ".jsonl" and not as_text:
            yield from _json_documents(path, text_field)
        else:
            with _open(path) as file, io.TextIOWrapper(file, encoding="utf-8") as text:
                yield from pieces(text)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: byte {_first_wrong_byte(path)}") from error
    except (OSError, EOFError) as error:
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _open(path: Path):
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _first_wrong_byte(path: Path) -> str:
    """Value and place of the first byte of a file that is not UTF-8."""
    offset = 0
    with _open(path) as file:
        for line in file:
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"{line[error.start]:#x} at {offset + error.start}"
            offset += len(line)
    return "at its end"


def _json_documents(path: Path, text_field: str) -> Iterator[tuple[bool, str]]:
    with _open(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE and not line.endswith(b"\n"):
                logger.warning("line %d of %s is left out: it is over %d bytes", number, path, LONGEST_LINE)
                while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                raise
            except ValueError as error:
                raise InputError(f"line {number} of {path} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"line {number} of {path} is no JSON object")
            text = row.get(find_field(row, text_field, f"line {number} of {path}"))
            if not isinstance(text, str):
                raise InputError(f"line {number} of {path} has no text in its field, but {str(text)[:40]!r}")
            yield from pieces(io.StringIO(text))


def _parquet_documents(path: Path, text_field: str) -> Iterator[tuple[bool, str]]:
    try:
        file = pyarrow.parquet.ParquetFile(path)
        field = find_field(file.schema_arrow.names, text_field, str(path))
        for batch in file.iter_batches(batch_size=64, columns=[field]):
            for text in batch.column(0).to_pylist():
                yield from pieces(io.StringIO(text or ""))
    except pyarrow.ArrowException as error:
        raise InputError(f"{path} is no parquet file that can be read: {str(error).splitlines()[0]}") from error


def find_field(names: Iterable[str], wanted: str, where: str) -> str:
    """The field with the text: the one wanted, or else `text` or `content`. InputError when there is none."""
    names = list(names)
    for field in [wanted] if wanted else TEXT_FIELDS:
        if field in names:
            return field
    raise InputError(
        f"{where} has no field {wanted or ' or '.join(TEXT_FIELDS)} (it has {', '.join(names)}): name one by text_field"
    )


def pieces(file) -> Iterator[tuple[bool, str]]:
    """A text file's characters in pieces: (whether it is the first, piece). The cuts lie before white space, where
    tokenizers cut anyway."""
    text, first = file.read(PIECE), True
    while more := file.read(PIECE):
        tail = max(0, len(text) - 4096)
        spaces = [match.start() for match in re.finditer(r"(?<=\S)\s", text[tail:])]
        cut = tail + spaces[-1] if spaces else len(text)
        yield first, text[:cut]
        text, first = text[cut:] + more, False
    yield first, text


def token_ids(codec: TextCodec, text: str) -> np.ndarray:
    """Token ids of a piece. Mask tokens that stand in the text are left out: no model can predict them."""
    ids = np.array(codec.encode(text), dtype=np.int32)
    return ids[ids != codec.mask_token_id]


def document_ids(codec: TextCodec, text: str) -> np.ndarray:
    """Token ids of a whole document, closed by eos: [n] int32."""
    parts = [token_ids(codec, piece) for _, piece in pieces(io.StringIO(text))]
    return np.concatenate([*parts, np.array([codec.eos_token_id], dtype=np.int32)])


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with the special tokens <eos>, <pad> and <mask> (ids 0, 1, 2); any text round-trips.

    A newline is a token of its own: GPT-2's rule joins it to the indentation behind it, and then a text that is cut at
    a line, as gaps in code are, has other tokens at the cut than the whole text, which a model takes for its end.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
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


def corpus_text(config: CorpusConfig) -> Iterator[str]:
    """The text of the local files, for a tokenizer: TOKENIZER_TEXT characters at most."""
    left = TOKENIZER_TEXT
    for path in corpus_files(config.train_files, config.extensions):
        try:
            for _, piece in documents(path, config.text_field):
                yield piece
                left -= len(piece)
                if left <= 0:
                    return
        except InputError:
            if str(path) in config.train_files:
                raise


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
            total.update(file_digest(path).encode())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
    return total.hexdigest()[:32]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()


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
