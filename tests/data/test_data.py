"""Local corpora and streamed datasets: every document once, in pieces, across processes and resumptions."""

import gzip
import json
import logging
import subprocess
import sys
from itertools import islice

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets.exceptions import DatasetNotFoundError

from asarm.data import packed, readers
from asarm.data.config import DataConfig
from asarm.data.packed import local_corpus
from asarm.data.readers import documents
from asarm.data.streaming import StreamBatches, held_out_blocks, is_held_out, open_dataset
from asarm.data.tokenizer_training import train_tokenizer
from asarm.tokenization.codec import TextCodec
from asarm.training.trainer import Trainer
from asarm.utils.errors import InputError
from support.training import PROSE, settings

SIZE = 8


@pytest.fixture(scope="module")
def codec():
    return TextCodec(train_tokenizer([PROSE], 400))


class Numbers:
    """A codec for documents of numbers: `17 17 17` is the tokens 20, 20, 20. eos 0, mask 2."""

    eos_token_id, mask_token_id = 0, 2

    def encode(self, text):
        return [int(word) + 3 for word in text.split()]


def numbered(folder, documents, files, kind="jsonl"):
    """Documents of SIZE - 1 tokens that are all the document's number, so that with eos each fills a packed text."""
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


def test_texts_do_not_depend_on_the_number_of_processes_and_workers(tmp_path):
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
def test_a_resumed_stream_goes_on_at_the_next_text(tmp_path, had, kind):
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


def test_documents_longer_and_shorter_than_texts_end_with_eos(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    lengths = [1, 30, 1, 2, 17, 1, 1, 9] * 5
    rows = [" ".join([str(number)] * length) for number, length in enumerate(lengths)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"content": row}) + "\n" for row in rows))
    config = stream_config(folder, streams=1, held_out=1e-9, num_workers=0, shuffle_buffer=7)
    batches = StreamBatches(config, Numbers(), 1, seed=0, rank=0, ranks=1)
    tokens = np.concatenate(list(islice(batches, (sum(lengths) + len(lengths)) // SIZE)))
    for number, length in enumerate(lengths):
        assert abs(int((tokens == number + 3).sum()) - length) <= SIZE  # the last text may be of the next epoch
    assert abs(int((tokens == 0).sum()) - len(lengths)) <= SIZE


def test_training_on_a_stream_resumes_bit_for_bit(tmp_path, monkeypatch):
    from support.training import assert_same_weights, die_at

    folder = tmp_path / "corpus"
    folder.mkdir()
    for file in range(4):
        rows = [{"text": PROSE[n * 100 : n * 100 + 150]} for n in range(file, 400, 4)]
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"train_files": [], "dataset": str(folder), "streams": 4, "num_workers": 2, "shuffle_buffer": 20}
    Trainer(*settings(tmp_path, **options, output_dir=str(tmp_path / "whole"))).run()
    die_at(Trainer(*settings(tmp_path, **options)), monkeypatch, 10)
    resumed = Trainer(*settings(tmp_path, **options | {"num_workers": 1}))
    assert resumed.step == 10
    assert "nll_0.5" in resumed.run()
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


# Local corpora


def local(tmp_path, codec, *paths, **changes):
    return local_corpus(DataConfig(train_files=[*map(str, paths)], cache_dir=str(tmp_path / "cache"), **changes), codec)


def test_few_files_give_up_their_ends(tmp_path, codec):
    (tmp_path / "a.txt").write_text(PROSE)
    (tmp_path / "b.txt").write_text("A short one.")
    train, held_out = local(tmp_path, codec, tmp_path / "a.txt", tmp_path / "b.txt", held_out=0.1)
    parts = [codec.encode(PROSE), codec.encode("A short one.")]
    cuts = [len(part) - round(0.1 * len(part)) for part in parts]
    assert train.tolist() == [*parts[0][: cuts[0]], 0, *parts[1][: cuts[1]], 0]
    assert held_out.tolist() == [*parts[0][cuts[0] :], 0, *parts[1][cuts[1] :], 0]


def test_of_many_files_some_are_held_out(tmp_path, codec):
    folder = tmp_path / "sources"
    for number in range(100):
        (folder / f"package{number % 3}").mkdir(parents=True, exist_ok=True)
        (folder / f"package{number % 3}" / f"m{number:03}.py").write_text(f"x = {number}\n")
    train, held_out = local(tmp_path, codec, folder, extensions=[".py"], held_out=0.05)
    texts = [codec.decode(part.tolist()).split("<eos>")[:-1] for part in (train, held_out)]
    assert [len(part) for part in texts] == [95, 5]
    assert sorted(int(text.split()[-1]) for part in texts for text in part) == list(range(100))


def test_all_kinds_of_files_are_read(tmp_path, codec):
    words = {"a.txt": ["one two"], "b.jsonl": ["three", "four"], "c.jsonl.gz": ["five"], "d.parquet": ["six", "seven"]}
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.txt").write_text("one two")
    (folder / "b.jsonl").write_text('{"text": "three"}\n\n{"text": "four"}\n')
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"content": "five"}\n'))
    pyarrow.parquet.write_table(pyarrow.table({"content": ["six", "seven"], "n": [1, 2]}), folder / "d.parquet")
    for name, expected in words.items():
        assert list(documents(folder / name)) == [(True, text) for text in expected]
    train, held_out = local(tmp_path, codec, folder, held_out=0.25)
    assert codec.decode(np.concatenate((train, held_out)).tolist()).count("<eos>") == 4 * 2 + 2


def test_the_corpus_is_tokenised_once(tmp_path, codec, monkeypatch):
    (tmp_path / "a.txt").write_text(PROSE)
    first = local(tmp_path, codec, tmp_path / "a.txt")
    assert isinstance(first[0], np.memmap)
    with monkeypatch.context() as patch:
        patch.setattr(packed, "_tokenise", None)
        again = local(tmp_path, codec, tmp_path / "a.txt")
        codec.tokenizer.save_pretrained(tmp_path / "tokenizer")
        from transformers import AutoTokenizer

        reloaded = TextCodec(AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
        local(tmp_path, reloaded, tmp_path / "a.txt")
    assert all(np.array_equal(left, right) for left, right in zip(first, again, strict=True))
    for change in ({"held_out": 0.1}, {"text_field": "x"}):
        local(tmp_path, codec, tmp_path / "a.txt", **change)
    local(tmp_path, TextCodec(train_tokenizer([PROSE], 300)), tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text(PROSE + "!")
    local(tmp_path, codec, tmp_path / "a.txt")
    assert len(list((tmp_path / "cache").iterdir())) == 5


def test_an_interrupted_tokenisation_leaves_nothing_that_counts(tmp_path, codec, monkeypatch):
    (tmp_path / "a.txt").write_text(PROSE)
    with monkeypatch.context() as patch:
        patch.setattr(codec, "encode", lambda text: [][0])
        with pytest.raises(IndexError):
            local(tmp_path, codec, tmp_path / "a.txt")
    assert len(local(tmp_path, codec, tmp_path / "a.txt")[0])


def test_pieces_give_the_tokens_of_the_whole_text(tmp_path, codec, monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 1000)
    (tmp_path / "a.txt").write_text(PROSE)
    begins, parts = zip(*documents(tmp_path / "a.txt"), strict=True)
    assert begins == (True, *[False] * (len(parts) - 1))
    assert len(parts) > 30
    assert "".join(parts) == PROSE
    assert [token for part in parts for token in codec.encode(part)] == codec.encode(PROSE)


def test_mask_tokens_in_the_text_are_left_out(tmp_path, codec):
    (tmp_path / "a.txt").write_text("a <mask> b " * 50)
    train, held_out = local(tmp_path, codec, tmp_path / "a.txt")
    assert len(train) > 50
    assert codec.mask_token_id not in [*train, *held_out]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"two lines\nand caf\xe9", r"a.txt is not UTF-8 text: byte 0xe9 at 17"),
        ("a.jsonl", b'{"text": "x"}\n{"text', "line 2 of .*a.jsonl is not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "line 1 of .*a.jsonl has no field text or content .it has body.: name one"),
        ("a.jsonl", b'{"text": 3}\n', "line 1 of .*a.jsonl has no text in its field, but '3'"),
        ("a.jsonl", b'{"text": "caf\xe9"}\n', "not UTF-8"),
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.parquet", b"PAR", "a.parquet is no parquet file"),
        ("a.txt.gz", b"no gzip", "cannot read .*a.txt.gz"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, codec, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        local(tmp_path, codec, tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("[!.]*"))


def test_bad_files_in_a_folder_are_passed_over(tmp_path, codec, caplog):
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "a.py").write_text(PROSE)
    (folder / "b.py").write_bytes(b"caf\xe9")
    (folder / "c.py").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        train, _ = local(tmp_path, codec, folder, extensions=[".py"])
    assert "2 of 3 files are passed over" in caplog.text
    assert len(train) > 1000


def test_a_corpus_that_is_too_short(tmp_path):
    (tmp_path / "word.txt").write_text("word")
    with pytest.raises(InputError, match="less than one block of 32"):
        Trainer(*settings(tmp_path, train_files=[str(tmp_path / "word.txt")]))
    with pytest.raises(InputError, match="no such file or folder"):
        Trainer(*settings(tmp_path, train_files=[str(tmp_path / "nowhere")]))
    with pytest.raises(InputError, match=r"no \*\.txt, \*\.jsonl, \*\.parquet files in"):
        Trainer(*settings(tmp_path, train_files=[str(tmp_path / "cache")]))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_a_line_of_200_megabytes_takes_little_memory(tmp_path, kind):
    """A text is read and tokenised in pieces; a JSON line of that size is left out, with a warning."""
    path = tmp_path / f"line.{kind}"
    with path.open("w") as file:
        if kind == "jsonl":
            file.write(json.dumps({"text": PROSE}) + '\n{"text": "')
        for _ in range(200):
            file.write("word " * 200_000)
        file.write('"}\n' if kind == "jsonl" else "\n")
    script = f"""
import resource
from pathlib import Path
from asarm.data.packed import token_ids
from asarm.data.readers import documents
class Codec:
    mask_token_id = 2
    def encode(self, text):
        return [3] * text.count(" ")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens = sum(len(token_ids(Codec(), piece)) for _, piece in documents(Path({str(path)!r})))
print(tokens, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    tokens, mebibytes = map(int, result.stdout.split())
    assert tokens == 40_000_000 if kind == "txt" else 0 < tokens < 100_000
    assert ("line 2 of" in result.stderr) == (kind == "jsonl")
    print(f"{kind}: {mebibytes} MiB more")
    assert mebibytes < 150


# Streams that cannot be had


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
def test_datasets_that_cannot_be_had(tmp_path, monkeypatch, error, message):
    def load_dataset(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=message) as caught:
        Trainer(*settings(tmp_path, train_files=[], dataset="some/data"))
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
