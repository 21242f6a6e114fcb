"""Streamed datasets: read, tokenised and packed on the fly, by any number of processes, resumable at any pass.

The documents are dealt to `streams` readers, which share nothing. Pass number i of the whole run (counted over
processes and accumulation steps) takes its texts from reader i mod streams; process r of w has the readers that are r
modulo w. So the texts of a pass do not depend on the number of processes, as long as it divides that of the readers.

A reader takes `shuffle_buffer` documents at a time, packs them, and shuffles the packed texts. Its state is where in
the source these documents began, what the ones before left over, and how many texts have been given out: going on
reads the documents again and leaves those out.
"""

import os
import signal
import zlib
from collections.abc import Iterator

import datasets
import fsspec.asyn
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetNotFoundError

from asarm.data.config import DataConfig
from asarm.data.packed import document_ids
from asarm.data.readers import find_field
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError, first_line
from asarm.utils.preemption import SIGNALS

TOKENIZER_DOCUMENTS = 10_000


def open_dataset(config: DataConfig) -> datasets.IterableDataset:
    """The dataset, with its text column only. InputError, in one line, when it cannot be had or has no such column."""
    name = config.dataset
    try:
        dataset = datasets.load_dataset(
            name,
            data_dir=config.dataset_dir or None,
            revision=config.dataset_revision or None,
            split=config.dataset_split,
            streaming=True,
        )
        columns = dataset.column_names or list(next(iter(dataset)))
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise InputError(
                f"the dataset {name} is gated: ask for access on its page, then log in with `hf auth login`"
            ) from error
        raise InputError(
            f"no dataset {name}, neither a folder nor on the Hub (if it is private: `hf auth login`)"
        ) from error
    except StopIteration as error:
        raise InputError(f"the dataset {name} is empty") from error
    except OSError as error:
        raise InputError(f"the dataset {name} cannot be reached: {first_line(error)}") from error
    except (ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"the dataset {name} cannot be opened: {first_line(error)}") from error
    return dataset.select_columns([find_field(columns, config.text_field, f"the dataset {name}")])


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is kept for validation: by its own bytes, so that no order and no sharding matters."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) < share * 2**32


def texts_of(dataset: datasets.IterableDataset, batch: int) -> Iterator[list[str]]:
    """The dataset's texts, `batch` at a time; documents without any are left out."""
    for rows in dataset.iter(batch):
        (column,) = rows.values()
        yield [text for text in column if text]


def held_out_blocks(config: DataConfig, codec: TextCodec, count: int) -> np.ndarray:
    """The first held-out documents of the dataset, packed: at most `count` blocks [n, N] int32."""
    parts, total = [], 0
    for texts in texts_of(open_dataset(config), 100):
        for text in texts:
            if is_held_out(text, config.held_out):
                parts.append(document_ids(codec, text))
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
    for texts in texts_of(open_dataset(config).take(TOKENIZER_DOCUMENTS), 100):
        yield from texts


class PackedStreams(torch.utils.data.IterableDataset):
    """The readers `mine` of a dataset, in turns: (reader, texts [batch, N] int32, state of the reader behind them).

    states: reader -> state, as given out before; readers that are not there begin at the beginning. Endless: a reader
    that is through begins another epoch. With a DataLoader of W workers, W must divide the number of readers.
    """

    def __init__(self, config: DataConfig, codec: TextCodec, batch: int, seed: int, mine: list[int], states: dict):
        self.dataset, self.config, self.codec = open_dataset(config), config, codec
        self.batch, self.seed, self.mine, self.states = batch, seed, mine, states

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        mine = self.mine if worker is None else self.mine[worker.id :: worker.num_workers]
        if worker is not None:
            fsspec.asyn.reset_lock()  # a lock that was copied with the process may never open
        readers = [(reader, self.read(reader, self.states.get(reader))) for reader in mine]
        while True:
            for reader, batches in readers:
                yield reader, *next(batches)

    def source(self, reader: int) -> datasets.IterableDataset:
        """The reader's documents: whole files where there are enough of them, else every `streams`-th document."""
        streams = self.config.streams
        if self.dataset.num_shards >= streams:
            return self.dataset.shard(streams, reader, contiguous=False)
        return split_dataset_by_node(self.dataset, rank=reader, world_size=streams)

    def read(self, reader: int, state: dict | None) -> Iterator[tuple[np.ndarray, dict]]:
        """Texts [batch, N] int32 of one reader, each with the state that goes on behind it."""
        size, batch = self.config.block_size, self.batch
        state = state or {"epoch": 0, "chunk": 0, "given": 0, "left_over": [], "source": None}
        while True:
            source = self.source(reader)
            source.set_epoch(state["epoch"])
            if state["source"] is not None:
                source.load_state_dict(state["source"])
            found = 0
            for texts in texts_of(source, self.config.shuffle_buffer):
                tokens = np.concatenate([np.array(state["left_over"], dtype=np.int32), *map(self.tokens, texts)])
                whole = len(tokens) // (batch * size) * batch * size
                found += len(tokens)
                rows = tokens[:whole].reshape(-1, size)
                key = [self.seed, 4, reader, state["epoch"], state["chunk"]]
                rows = rows[np.random.default_rng(key).permutation(len(rows))]
                for given in range(state["given"], len(rows), batch):
                    yield rows[given : given + batch], state | {"given": given + batch}
                state = {
                    "epoch": state["epoch"],
                    "chunk": state["chunk"] + 1,
                    "given": 0,
                    "left_over": tokens[whole:].tolist(),
                    "source": source.state_dict(),
                }
            if not found:
                raise InputError(
                    f"reader {reader} of {self.config.streams} found no documents in {self.config.dataset}: "
                    "use fewer streams"
                )
            state = state | {"epoch": state["epoch"] + 1, "chunk": 0, "given": 0, "source": None}

    def tokens(self, text: str) -> np.ndarray:
        """Tokens of one document, closed by eos; none if it is held out."""
        if is_held_out(text, self.config.held_out):
            return np.empty(0, dtype=np.int32)
        return document_ids(self.codec, text)


def _ignore_stop_signals(_: int) -> None:
    """A cluster's signals go to all processes: the training ends its step, saves, and then ends the workers."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StreamBatches:
    """This process's batches of a streamed dataset, and the states of its readers behind the last of them."""

    def __init__(
        self,
        config: DataConfig,
        codec: TextCodec,
        batch: int,
        seed: int,
        rank: int,
        ranks: int,
        start: int = 0,
        states: dict | None = None,
    ):
        """start: how many batches this process has had; states: of all readers, behind them."""
        if config.streams % ranks:
            raise InputError(f"streams={config.streams} is no multiple of the {ranks} processes: choose one that is")
        mine = list(range(rank, config.streams, ranks))
        turn = start % len(mine)
        mine = mine[turn:] + mine[:turn]
        self.states = {reader: states[reader] for reader in mine if reader in (states or {})}
        workers = max(n for n in range(config.num_workers + 1) if n == 0 or len(mine) % n == 0)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn about processes that fork
        packed = PackedStreams(config, codec, batch, seed, mine, self.states)
        loader = torch.utils.data.DataLoader(
            packed, batch_size=None, num_workers=workers, worker_init_fn=_ignore_stop_signals
        )
        self.batches = iter(loader)

    def __iter__(self):
        return self

    def __next__(self) -> np.ndarray:
        """The next batch [batch, N]."""
        try:
            reader, rows, state = next(self.batches)
        except InputError as error:  # torch puts a worker's traceback into the message
            raise InputError(
                str(error).strip().splitlines()[-1].removeprefix(f"{InputError.__module__}.InputError: ")
            ) from error
        self.states[reader] = state
        return np.asarray(rows)
