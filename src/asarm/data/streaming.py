"""Streamed datasets: read, tokenised and packed on the fly, by any number of processes, resumable at any step.

The documents are dealt to `streams` readers, which share nothing. Micro-batch number i of the whole run (counted over
processes and accumulation steps) comes from reader i mod streams; process r of w has the readers that are r modulo w.
So micro-batches do not depend on the number of processes, as long as it divides that of the readers.

A reader takes `shuffle_buffer` documents at a time (a chunk), packs them, and shuffles the packed sequences. Its state
says where in the source the chunk began, which tokens the chunks before left over, and how many sequences of the chunk
were given out: a resumed reader reads the chunk again and skips those.
"""

import os
import zlib
from collections.abc import Iterator
from typing import Any

import datasets
import fsspec.asyn
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node

from asarm.data.config import DataConfig
from asarm.data.preprocessing import document_ids
from asarm.data.readers import document_text, find_field
from asarm.data.unpacked import one_sequence
from asarm.data.worker_processes import WorkerProcesses
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from asarm.utils.hub_errors import dataset_errors, dataset_reading_errors

TOKENIZER_DOCUMENTS = 10_000


def open_dataset(config: DataConfig) -> datasets.IterableDataset:
    """The dataset, with its text column only. Raises InputError when it cannot be opened or has no such column."""
    name = config.dataset
    with dataset_errors(name):
        dataset = datasets.load_dataset(
            name,
            data_dir=config.dataset_dir or None,
            revision=config.dataset_revision or None,
            split=config.dataset_split,
            streaming=True,
        )
        columns = dataset.column_names or list(next(iter(dataset), {}))
    if not columns:
        raise InputError(f"the dataset {name} is empty")
    return dataset.select_columns([find_field(columns, config.text_field, f"the dataset {name}")])


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is kept for validation: decided by its bytes alone, so that order and sharding do not matter.

    share: of all documents, about, that are.
    """
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) < share * 2**32


def texts_of(dataset: datasets.IterableDataset, name: str, batch: int) -> Iterator[list[str]]:
    """The texts of the dataset, named `name`, `batch` at a time; empty ones are left out.

    Raises InputError for files that are damaged or cannot be reached, and for what is no text.
    """
    with dataset_reading_errors(name):
        for rows in dataset.iter(batch):
            ((field, column),) = rows.items()
            texts = (document_text(value, f"a row of the dataset {name}", field) for value in column)
            yield [text for text in texts if text]


def packable_ids(config: DataConfig, codec: TextCodec, text: str, end: list[int]) -> np.ndarray:
    """Token ids [n] int32 of a document with its end; those of a whole sequence where sequences are not packed."""
    ids = document_ids(codec, text, end)
    return one_sequence(ids, config.block_size, end) if config.unpacked else ids


def held_out_blocks(config: DataConfig, codec: TextCodec, count: int) -> np.ndarray:
    """The first held-out documents of the dataset, packed or one each: at most `count` blocks [n, N] int32.

    Raises InputError if they do not fill one.
    """
    parts, total, end = [], 0, codec.document_end(config.document_end)
    for texts in texts_of(open_dataset(config), config.dataset, 100):
        for text in texts:
            if is_held_out(text, config.held_out):
                parts.append(packable_ids(config, codec, text, end))
        total = sum(map(len, parts))
        if total >= count * config.block_size:
            break
    if total < config.block_size:
        raise InputError(
            f"the held-out documents of {config.dataset} have {total} tokens, less than one block of "
            f"{config.block_size}: raise held_out, now {config.held_out}"
        )
    whole = min(count, total // config.block_size) * config.block_size
    return np.concatenate(parts)[:whole].reshape(-1, config.block_size).astype(np.int32)


def tokenizer_texts(config: DataConfig) -> Iterator[str]:
    """The first documents of the dataset, to train a tokenizer on."""
    for texts in texts_of(open_dataset(config).take(TOKENIZER_DOCUMENTS), config.dataset, 100):
        yield from texts


class PackedStreams(torch.utils.data.IterableDataset):
    """Some readers of a dataset, in turns: yields (reader, sequences [batch, N] int32, state of the reader after them).

    readers: their numbers. states: reader -> state, as yielded; readers that are missing begin at the beginning.
    Endless: a reader that has read everything begins another epoch. With a DataLoader of W workers, W must divide the
    number of readers.
    """

    def __init__(
        self, config: DataConfig, codec: TextCodec, batch: int, seed: int, readers: list[int], states: dict[int, dict]
    ):
        self.dataset, self.config, self.codec = open_dataset(config), config, codec
        self.batch, self.seed, self.readers, self.states = batch, seed, readers, states
        self.end = codec.document_end(config.document_end)

    def __iter__(self) -> Iterator[tuple[int, np.ndarray, dict]]:
        worker = torch.utils.data.get_worker_info()
        mine = self.readers if worker is None else self.readers[worker.id :: worker.num_workers]
        if worker is not None:
            fsspec.asyn.reset_lock()  # a lock that was copied with the process may never open
        streams = [(reader, self.read(reader, self.states.get(reader))) for reader in mine]
        while True:
            for reader, batches in streams:
                yield reader, *next(batches)

    def source(self, reader: int) -> datasets.IterableDataset:
        """The reader's documents: whole files where there are enough of them, else every `streams`-th document."""
        streams = self.config.streams
        if self.dataset.num_shards >= streams:
            return self.dataset.shard(streams, reader, contiguous=False)
        return split_dataset_by_node(self.dataset, rank=reader, world_size=streams)

    def read(self, reader: int, state: dict | None) -> Iterator[tuple[np.ndarray, dict]]:
        """Sequences [batch, N] int32 of one reader, epoch after epoch, each with the state to continue from."""
        state = state or {"epoch": 0, "chunk": 0, "given": 0, "left_over": [], "source": None}
        while True:
            source = self.source(reader)
            source.set_epoch(state["epoch"])
            if state["source"] is not None:
                source.load_state_dict(state["source"])
            found = 0
            for texts in texts_of(source, self.config.dataset, self.config.shuffle_buffer):
                tokens = np.concatenate([np.array(state["left_over"], dtype=np.int32), *map(self.tokens, texts)])
                found += len(tokens)
                rows, left_over = self.shuffled(tokens, [self.seed, 4, reader, state["epoch"], state["chunk"]])
                for given in range(state["given"], len(rows), self.batch):
                    yield rows[given : given + self.batch], state | {"given": given + self.batch}
                state = {
                    "epoch": state["epoch"],
                    "chunk": state["chunk"] + 1,
                    "given": 0,
                    "left_over": left_over.tolist(),
                    "source": source.state_dict(),
                }
            if not found:
                raise InputError(
                    f"reader {reader} of {self.config.streams} found no documents in {self.config.dataset}: "
                    "use fewer streams"
                )
            state = state | {"epoch": state["epoch"] + 1, "chunk": 0, "given": 0, "source": None}

    def shuffled(self, tokens: np.ndarray, key: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [n] packed into whole batches of shuffled sequences [m, N], and the tokens left over. key: a seed."""
        size = self.config.block_size
        whole = len(tokens) // (self.batch * size) * self.batch * size
        rows = tokens[:whole].reshape(-1, size)
        return rows[np.random.default_rng(key).permutation(len(rows))], tokens[whole:]

    def tokens(self, text: str) -> np.ndarray:
        """`packable_ids` of one document; none if it is held out."""
        if is_held_out(text, self.config.held_out):
            return np.empty(0, dtype=np.int32)
        return packable_ids(self.config, self.codec, text, self.end)


class StreamBatches:
    """This process's batches of a streamed dataset, and the states of its readers after the last of them.

    As a context manager it ends, at last, the processes that read.

    rank, ranks: this process, and how many there are. start: how many batches this process had before. states: of all
    readers at that point; those that are missing begin at the beginning. Raises InputError if the processes cannot
    share the streams, or the dataset cannot be opened.
    """

    def __init__(
        self,
        config: DataConfig,
        codec: TextCodec,
        batch: int,
        seed: int,
        rank: int,
        ranks: int,
        start: int = 0,
        states: dict[int, dict] | None = None,
    ):
        if config.streams % ranks:
            raise InputError(f"streams={config.streams} is no multiple of the {ranks} processes: choose one that is")
        mine = list(range(rank, config.streams, ranks))
        turn = start % len(mine)
        mine = mine[turn:] + mine[:turn]
        states = states or {}
        self.states = {reader: states[reader] for reader in mine if reader in states}
        workers = max(n for n in range(config.num_workers + 1) if n == 0 or len(mine) % n == 0)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn about processes that fork
        packed = PackedStreams(config, codec, batch, seed, mine, self.states)
        self.workers = WorkerProcesses(packed, workers)

    def __enter__(self) -> "StreamBatches":
        return self

    def __exit__(self, *error: Any) -> None:
        self.workers.__exit__(*error)

    def __iter__(self) -> "StreamBatches":
        return self

    def __next__(self) -> np.ndarray:
        """The next batch [batch, N] int32."""
        try:
            reader, rows, state = next(self.workers)
        except InputError as error:  # torch puts a worker's traceback into the message
            raise InputError(
                str(error).strip().splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: ")
            ) from error
        self.states[reader] = state
        return rows
