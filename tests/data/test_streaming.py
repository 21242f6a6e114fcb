"""Streamed datasets: every document once, across processes and resumptions."""

import json
import zlib
from itertools import islice

import datasets
import httpx
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets.exceptions import DatasetNotFoundError
from datasets.table import CastError

from asarm.data.config import DataConfig
from asarm.data.streaming import StreamBatches, held_out_blocks, is_held_out, open_dataset, texts_of
from asarm.training.trainer import Trainer
from asarm.utils.errors import InputError
from support.training import PROSE, assert_same_weights, die_at, run_config

SIZE = 8


class Numbers:
    """A codec for documents of numbers: `17 17 17` is the tokens 20, 20, 20. eos 0, mask 2."""

    eos_token_id, mask_token_id = 0, 2

    def encode(self, text):
        return [int(word) + 3 for word in text.split()]

    def reserved(self):
        return [2]

    def document_end(self, kind):
        return [0] if kind == "eos" else [1, 0]


def numbered(folder, documents, files, kind="jsonl"):
    """Documents of SIZE - 1 tokens, all the document's number, so that with eos each fills a packed sequence."""
    folder.mkdir()
    for file in range(files):
        rows = [{"text": " ".join([str(number)] * (SIZE - 1))} for number in range(file, documents, files)]
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{file}.parquet", row_group_size=7)
        else:
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def stream_config(folder, **changes):
    values = {"dataset": str(folder), "block_size": SIZE, "streams": 4, "shuffle_buffer": 10, "held_out": 0.05}
    return DataConfig(**values | changes)


def trained_on(config, documents):
    texts = {number: " ".join([str(number)] * (SIZE - 1)) for number in range(documents)}
    return {number for number, text in texts.items() if not is_held_out(text, config.held_out)}


@pytest.mark.parametrize(("files", "kind"), [(8, "jsonl"), (3, "jsonl"), (8, "parquet"), (2, "parquet")])
def test_two_ranks_with_two_workers_read_every_document_once(tmp_path, files, kind):
    """As many documents for each reader as the other, so that their epochs end together; files for all, and too few."""
    total = 240
    config = stream_config(numbered(tmp_path / "corpus", total, files, kind), num_workers=2, held_out=1e-9)
    seen = []
    for rank in (0, 1):
        batches = StreamBatches(config, Numbers(), 1, seed=0, rank=rank, ranks=2)
        mine = [int(next(batches)[0, 0]) - 3 for _ in range(total // 2)]
        assert set(batches.states) == {rank, rank + 2}
        assert all(state["epoch"] == 0 for state in batches.states.values())
        next(batches)
        assert max(state["epoch"] for state in batches.states.values()) == 1
        seen += mine
    assert sorted(seen) == list(range(total))
    assert seen[: total // 2] != sorted(seen[: total // 2])


def test_held_out_documents_are_never_trained_on(tmp_path):
    config = stream_config(numbered(tmp_path / "corpus", 300, 4), held_out=0.1, num_workers=0)
    expected = trained_on(config, 300)
    assert 200 < len(expected) < 290
    batches = StreamBatches(config, Numbers(), 1, seed=0, rank=0, ranks=1)
    seen = {int(next(batches)[0, 0]) - 3 for _ in range(1200)}  # several epochs
    assert seen == expected
    held_out = held_out_blocks(config, Numbers(), 5)
    assert held_out.shape == (5, SIZE)
    assert not {int(row[0]) - 3 for row in held_out} & expected


def test_batches_do_not_depend_on_the_number_of_processes_and_workers(tmp_path):
    config = stream_config(numbered(tmp_path / "corpus", 200, 4), num_workers=0)
    single = StreamBatches(config, Numbers(), 2, seed=0, rank=0, ranks=1)
    expected = np.stack([next(single) for _ in range(60)])
    config.num_workers = 2
    pair = [StreamBatches(config, Numbers(), 2, seed=0, rank=rank, ranks=2) for rank in (0, 1)]
    assert np.array_equal(np.stack([next(pair[index % 2]) for index in range(60)]), expected)
    other = StreamBatches(config, Numbers(), 2, seed=1, rank=0, ranks=1)
    assert not np.array_equal(np.stack([next(other) for _ in range(60)]), expected)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("had", [1, 6, 31, 78])
def test_a_resumed_stream_continues_at_the_next_sequence(tmp_path, had, kind):
    """Over chunks and epochs, from a state that went through JSON, and on another number of processes."""
    config = stream_config(numbered(tmp_path / "corpus", 120, 3, kind), num_workers=0)
    whole = StreamBatches(config, Numbers(), 3, seed=0, rank=0, ranks=1)
    before = [next(whole) for _ in range(had)]
    states = {int(k): v for k, v in json.loads(json.dumps(whole.states)).items()}
    assert len(before) == had
    after = [next(whole) for _ in range(40)]
    resumed = StreamBatches(config, Numbers(), 3, 0, 0, 1, had, states)
    assert np.array_equal([next(resumed) for _ in range(40)], after)
    if had % 2 == 0:
        pair = [StreamBatches(config, Numbers(), 3, 0, rank, 2, had // 2, states) for rank in (0, 1)]
        assert np.array_equal([next(pair[index % 2]) for index in range(40)], after)


def test_documents_longer_and_shorter_than_sequences_end_with_eos(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lengths = [1, 30, 1, 2, 17, 1, 1, 9] * 5
    rows = [" ".join([str(number)] * length) for number, length in enumerate(lengths)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"content": row}) + "\n" for row in rows))
    config = stream_config(folder, streams=1, held_out=1e-9, num_workers=0, shuffle_buffer=7)
    batches = StreamBatches(config, Numbers(), 1, seed=0, rank=0, ranks=1)
    tokens = np.concatenate(list(islice(batches, (sum(lengths) + len(lengths)) // SIZE)))
    for number, length in enumerate(lengths):
        assert abs(int((tokens == number + 3).sum()) - length) <= SIZE  # the last sequence may be of the next epoch
    assert abs(int((tokens == 0).sum()) - len(lengths)) <= SIZE


def test_training_on_a_stream_resumes_bit_for_bit(tmp_path, monkeypatch):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(4):
        rows = [{"text": PROSE[n * 100 : n * 100 + 150]} for n in range(file, 400, 4)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"train_files": [], "dataset": str(folder), "streams": 4, "num_workers": 2, "shuffle_buffer": 20}
    Trainer(run_config(tmp_path, **options, output_dir=str(tmp_path / "whole"))).run()
    die_at(Trainer(run_config(tmp_path, **options)), monkeypatch, 10)
    resumed = Trainer(run_config(tmp_path, **options | {"num_workers": 1}))
    assert resumed.step == 10
    assert "nll_0.5" in resumed.run()
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach 'some/data' on the Hub (LocalEntryNotFoundError)\nmore"), "cannot be reached"),
        (DatasetNotFoundError("Dataset 'some/data' is a gated dataset on the Hub. You must be"), "is gated: ask for"),
        (
            DatasetNotFoundError("Dataset 'some/data' doesn't exist on the Hub or cannot be accessed."),
            "no dataset some",
        ),
        (ValueError('Bad split: test. Available splits: ["train"]'), "cannot be opened: Bad split"),
    ],
)
def test_datasets_that_cannot_be_opened(tmp_path, monkeypatch, error, message):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=message) as caught:
        Trainer(run_config(tmp_path, train_files=[], dataset="some/data"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_datasets_without_text(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    with pytest.raises(InputError, match="corpus"):
        open_dataset(stream_config(folder))
    (folder / "a.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(InputError, match="has no field text or content"):
        open_dataset(stream_config(folder))
    assert open_dataset(stream_config(folder, text_field="body"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('["17"]', r"the field text holds \['17'\] \(list\), not text"),
        ("17", r"the field text holds 17 \(int\), not text"),
        ('"17 \\ud800"', "cannot be read any further|cannot be opened"),
    ],
)
def test_rows_without_text(tmp_path, value, message):
    """Null and empty texts are passed over, as in local files."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text('{"text": null}\n{"text": ""}\n\n{"text": "17"}\n')
    config = stream_config(tmp_path / "corpus", streams=1)
    assert [text for texts in texts_of(open_dataset(config), config.dataset, 10) for text in texts] == ["17"]
    (tmp_path / "corpus" / "a.jsonl").write_text(f'{{"text": {value}}}\n')
    with pytest.raises(InputError, match=message) as caught:
        list(texts_of(open_dataset(config), config.dataset, 10))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (httpx.ReadTimeout("no answer\nin time"), "no answer in time"),
        (ConnectionError("Server Disconnected"), "Server Disconnected"),
        (TimeoutError(), "TimeoutError"),
        (EOFError("Compressed file ended"), "Compressed file ended"),
        (zlib.error("invalid block type"), "invalid block type"),
        (pyarrow.ArrowInvalid("magic bytes not found"), "magic bytes"),
        (CastError("Couldn't cast\nx: string", table_column_names=[], requested_column_names=[]), "cast x: string"),
    ],
)
def test_sources_that_break_off(error, reason):
    class Source:
        def iter(self, batch):
            yield {"text": ["one", None, ""]}
            raise error

    texts = texts_of(Source(), "some/data", 3)
    assert next(texts) == ["one"]
    with pytest.raises(InputError, match=f"^the dataset some/data cannot be read any further: .*{reason}") as caught:
        next(texts)
    assert "\n" not in str(caught.value)


def test_streams_that_do_not_fit(tmp_path):
    folder = numbered(tmp_path / "corpus", 3, 1)
    with pytest.raises(InputError, match="no multiple of the 3 processes"):
        StreamBatches(stream_config(folder), Numbers(), 1, 0, 0, 3)
    for workers in (0, 2):
        config = stream_config(folder, held_out=1e-9, num_workers=workers)
        batches = StreamBatches(config, Numbers(), 1, 0, 0, 1)
        with pytest.raises(InputError, match=r"^reader 3 of 4 found no documents in .*: use fewer streams$"):
            list(islice(batches, 8))
    with pytest.raises(InputError, match=r"held-out documents .* have 0 tokens"):
        held_out_blocks(stream_config(folder, held_out=1e-9), Numbers(), 1)
