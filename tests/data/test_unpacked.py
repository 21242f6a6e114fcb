"""Unpacked sequences: one document each, cut or padded, of local files and of streams."""

import json

import numpy as np
import pytest

from asarm.data import unpacked
from asarm.data.config import DataConfig
from asarm.data.streaming import StreamBatches, held_out_blocks
from asarm.data.training_data import TrainingData
from asarm.data.unpacked import Texts, one_sequence
from asarm.tokenization.batch import PADDING
from asarm.utils.errors import InputError

SIZE = 8
LENGTHS = [3, 20, 1, 7, 8, 2, 30, 5] * 15  # of documents, in tokens


class Numbers:
    """A codec for documents of numbers: `17 17 17` is the tokens 20, 20, 20. eos 0, mask 2."""

    eos_token_id, mask_token_id, white_space_tokens = 0, 2, {}

    def encode(self, text):
        return [int(word) + 3 for word in text.split()]

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]

    def reserved(self):
        return [2]

    def document_end(self, kind):
        return [0]


def sequence(number: int) -> list[int]:
    """The sequence of a document."""
    return ([number + 3] * LENGTHS[number] + [0] + [PADDING] * SIZE)[:SIZE]


@pytest.fixture
def folder(tmp_path):
    """A document of each length that is its own number, repeated, and some that are blank."""
    (tmp_path / "corpus").mkdir()
    for file in range(4):
        rows = [" ".join([str(number)] * LENGTHS[number]) for number in range(file, len(LENGTHS), 4)] + [" "]
        (tmp_path / "corpus" / f"{file}.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return tmp_path / "corpus"


@pytest.mark.parametrize("part", [2, 1 << 24])
def test_the_documents_of_a_stream_are_cut_or_padded(monkeypatch, part):
    """Wherever the stream is searched in parts, and without documents that are nothing but an eos."""
    monkeypatch.setattr(unpacked, "PART", part)
    texts = Texts(np.array([5, 6, 0, 0, 7, 8, 9, 1, 0, 0, 3, 0], dtype=np.uint16), end=[0], block_size=3)
    assert len(texts) == 3
    assert texts[np.array([1, 0, 2])].tolist() == [[7, 8, 9], [5, 6, 0], [3, 0, PADDING]]
    for stream in ([], [0, 0], [4, 5]):
        with pytest.raises(InputError, match=f"the text has {len(stream)} tokens, and no document"):
            Texts(np.array(stream, dtype=np.uint16), end=[0], block_size=3)


def test_a_document_of_the_block_size_is_whole():
    assert one_sequence(np.array([4, 5, 0]), 3, [0]).tolist() == [4, 5, 0]
    assert one_sequence(np.array([4, 5, 6, 0]), 3, [0]).tolist() == [4, 5, 6]
    assert one_sequence(np.array([0]), 3, [0]).tolist() == one_sequence(np.array([4, 0]), 3, [4, 0]).tolist() == []


def local_data(folder, monkeypatch, **changes):
    monkeypatch.setattr("asarm.data.packed._digest", lambda *_: "digest")  # it needs a tokenizer
    config = DataConfig(train_files=[str(folder)], cache_dir=str(folder.parent / "cache"), block_size=SIZE, **changes)
    monkeypatch.setattr(Numbers, "__len__", lambda self: 200, raising=False)
    return TrainingData.load(config, Numbers(), 5, True)


def test_every_document_of_local_files_is_a_sequence(folder, monkeypatch):
    """Of each of few files the end is held out, which may cut a document."""
    data = local_data(folder, monkeypatch, unpacked=True, held_out=0.2)
    batches = data.batches(4, 0, 0, 1, 0, {})
    count = data.training_blocks
    rows = [row for _ in range(-(-count // 4)) for row in next(batches).tolist()][:count]
    numbers = [row[0] - 3 for row in rows]
    assert len(set(numbers)) == len(numbers) > 80
    cut = [number for number, row in zip(numbers, rows, strict=True) if row != sequence(number)]
    assert len(cut) <= 4
    assert data.held_out.shape == (5, SIZE)
    assert not {int(row[0]) - 3 for row in data.held_out} & (set(numbers) - set(cut))


def stream_config(folder, **changes):
    values = {"dataset": str(folder), "block_size": SIZE, "streams": 2, "shuffle_buffer": 10, "num_workers": 0}
    return DataConfig(**values | {"unpacked": True, "held_out": 0.2} | changes)


@pytest.mark.parametrize("batch", [1, 3])
def test_every_document_of_a_stream_is_a_sequence(folder, batch):
    config = stream_config(folder)
    batches = StreamBatches(config, Numbers(), batch, 0, 0, 1)
    rows = [row for _ in range(240 // batch) for row in next(batches).tolist()]  # more than an epoch
    numbers = {row[0] - 3 for row in rows}
    assert all(row == sequence(row[0] - 3) for row in rows)
    held_out = held_out_blocks(config, Numbers(), 50)
    assert all(row == sequence(row[0] - 3) for row in held_out.tolist())
    assert {int(row[0]) - 3 for row in held_out} | numbers == set(range(len(LENGTHS)))
    assert not {int(row[0]) - 3 for row in held_out} & numbers
    assert len(held_out) > 10
    states = {int(k): v for k, v in json.loads(json.dumps(batches.states)).items()}
    after = [next(batches).tolist() for _ in range(30)]
    resumed = StreamBatches(config, Numbers(), batch, 0, 0, 1, 240 // batch, states)
    assert [next(resumed).tolist() for _ in range(30)] == after
