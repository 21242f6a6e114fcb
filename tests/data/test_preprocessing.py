"""Tokenising local files in threads: the tokens of one, little memory, and an end that leaves nothing."""

import gzip
import json
import os
import signal
import threading

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tqdm import tqdm

from asarm.data import preprocessing, readers
from asarm.data.config import DataConfig
from asarm.data.packed import local_corpus
from asarm.data.preprocessing import End, Piece, read, tokenised
from asarm.data.tokenizer_training import train_tokenizer
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from support.training import PROSE


@pytest.fixture(scope="module")
def codec():
    return TextCodec(train_tokenizer([PROSE], 400))


@pytest.fixture
def folder(tmp_path):
    """A long text, many short documents, files of a line, and some that cannot be read, one of them at its end only."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "long.txt").write_text(PROSE)
    rows = [json.dumps({"text": PROSE[n * 7 : n * 8]}) for n in range(200)]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[::-1]).encode()))
    (folder / "bad.jsonl").write_text("\n".join([*rows, "{"]))
    pyarrow.parquet.write_table(pyarrow.table({"text": [PROSE[:900], None, PROSE[900:999]]}), folder / "rows.parquet")
    (folder / "empty.txt").write_text("")
    for number in range(20):
        (folder / f"short-{number}.txt").write_text(f"A <mask> cat sat on mat {number}.")
    return folder


def corpus(tmp_path, codec, path, threads, **changes):
    cache = tmp_path / f"cache-{threads}"
    config = {"train_files": [str(path)], "cache_dir": str(cache), "preprocessing_num_workers": threads} | changes
    streams = local_corpus(DataConfig(**config), codec)
    (made,) = cache.iterdir()
    return made.name, [stream.tobytes() for stream in streams]


@pytest.mark.parametrize("held_out", [0.02, 0.2])  # of each file its end; some of the files
def test_tokens_do_not_depend_on_the_number_of_threads(tmp_path, codec, folder, monkeypatch, held_out):
    monkeypatch.setattr(preprocessing, "PORTION", 2000)
    monkeypatch.setattr(readers, "PIECE", 1500)
    one, several = (corpus(tmp_path, codec, folder, threads, held_out=held_out) for threads in (1, 3))
    assert one == several
    monkeypatch.setattr(preprocessing, "tokenised", by_hand)
    assert corpus(tmp_path, codec, folder, 0, held_out=held_out) == one


def by_hand(parts, codec, threads):
    """`tokenised` without threads, piece by piece."""
    for part in parts:
        if isinstance(part, Piece):
            ids = [token for token in codec.encode(part.text) if token != codec.mask_token_id]
            part = preprocessing.Tokens(part.begins, np.array(ids, dtype=np.int32))
        yield part


def test_little_is_read_ahead(codec, monkeypatch):
    monkeypatch.setattr(preprocessing, "PORTION", 100)
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield Piece(True, "word " * 20)

    parts = tokenised(endless(), codec, 2)
    for _ in range(3):
        next(parts)
    parts.close()
    assert len(taken) <= 3 + 2 * 2 + 1


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt), (0, MemoryError)]
)
def test_what_ends_it_leaves_nothing(tmp_path, codec, folder, monkeypatch, number, error):
    monkeypatch.setattr(preprocessing, "PORTION", 2000)
    encode, calls = codec.encode_batch, []

    def encode_batch(texts):
        calls.append(None)
        if len(calls) == 5:
            if not number:
                raise MemoryError
            os.kill(os.getpid(), number)
        return encode(texts)

    with monkeypatch.context() as patch:
        patch.setattr(codec, "encode_batch", encode_batch)
        with pytest.raises(error):
            corpus(tmp_path, codec, folder, 2)
    assert not list((tmp_path / "cache-2").glob("*"))
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
    assert corpus(tmp_path, codec, folder, 2)[1][0]


def test_a_named_file_that_cannot_be_read_ends_it(tmp_path, codec, folder, monkeypatch):
    monkeypatch.setattr(preprocessing, "PORTION", 2000)
    with pytest.raises(InputError, match=r"bad.jsonl, line 201 is no JSON"):
        corpus(tmp_path, codec, folder / "bad.jsonl", 3)
    assert not list((tmp_path / "cache-3").glob("*"))


def test_the_bar_moves_by_the_bytes_that_were_read(folder):
    files = sorted(folder.iterdir())
    sizes, moves = [path.stat().st_size for path in files], []
    with tqdm(total=sum(sizes), disable=False, file=open(os.devnull, "w")) as bar:
        for part in read(files, sizes, "", bar):
            if isinstance(part, End):
                moves.append(bar.n)
    assert moves == np.cumsum(sizes).tolist()


def test_the_bar_moves_within_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 1000)
    (tmp_path / "long.txt").write_text(PROSE)
    with tqdm(total=len(PROSE), file=open(os.devnull, "w")) as bar:
        moves = [bar.n for _ in read([tmp_path / "long.txt"], [len(PROSE)], "", bar)]
    assert len(set(moves)) > 3
    assert moves == sorted(moves)
