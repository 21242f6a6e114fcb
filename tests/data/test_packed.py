"""Local corpora: files of every kind, read in pieces, tokenised once and packed."""

import gzip
import json
import logging
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers.processors import TemplateProcessing

from asarm.data import packed, readers
from asarm.data.config import DataConfig
from asarm.data.packed import batch_rows, blocks, local_corpus, pack
from asarm.data.readers import documents
from asarm.data.streaming import StreamBatches, held_out_blocks, is_held_out
from asarm.data.tokenizer_training import corpus_text, train_tokenizer
from asarm.tokenization.codec import TextCodec
from asarm.training.trainer import Trainer
from asarm.utils.errors import InputError
from support.training import PROSE, run_config
from support.xlnet_tokenizer import train_xlnet_tokenizer


@pytest.fixture(scope="module")
def codec():
    return TextCodec(train_tokenizer([PROSE], 400))


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
        patch.setattr(packed, "write_streams", None)
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
        patch.setattr(codec, "encode_batch", lambda texts: [][0])
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
        ("a.txt", b"two lines\nand caf\xe9", "a.txt is not UTF-8 text: byte 0xe9 in line 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text', "a.jsonl, line 2 is no JSON"),
        ("a.jsonl", b'{"body": "x"}\n', "a.jsonl, line 1 has no field text or content .it has body.: name one"),
        ("a.jsonl", b'{"text": 3}\n', "a.jsonl, line 1: the field text holds 3 .int., not text"),
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


def test_bad_files_in_a_folder_are_skipped(tmp_path, codec, caplog):
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "a.py").write_text(PROSE)
    (folder / "b.py").write_bytes(b"caf\xe9")
    (folder / "c.py").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        train, _ = local(tmp_path, codec, folder, extensions=[".py"])
    assert "2 of 3 files are skipped" in caplog.text
    assert len(train) > 1000


def test_files_of_all_kinds_that_are_named_are_read_or_refused(tmp_path, codec, monkeypatch):
    (tmp_path / "a.json").write_text(json.dumps([{"text": "one"}, "two"]))
    (tmp_path / "b.csv").write_text("text\nthree\n")
    train, held_out = local(tmp_path, codec, tmp_path / "a.json", tmp_path / "b.csv")
    assert "".join(map(codec.decode, (train, held_out))).replace("<eos>", " ").split() == ["one", "two", "three"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.json").write_text("prose")
    (tmp_path / "d.txt").write_text(PROSE)
    with pytest.raises(InputError, match=r"c.json, line 1 is no JSON"):
        local(tmp_path, codec, "d.txt", "./c.json")
    with pytest.raises(InputError, match=r"c.json, line 1 is no JSON"):
        list(corpus_text(DataConfig(train_files=["d.txt", ".//c.json"])))


def test_bad_files_of_all_kinds_in_a_folder_are_passed_over(tmp_path, codec, caplog):
    folder = tmp_path / "mixed"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps({"text": PROSE}))
    (folder / "b.jsonl").write_text('{"text": "x"}\n{"text": 3}\n')
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}')[:-10])
    (folder / "d.csv").write_text("text,n\nx\n")
    (folder / "e.parquet").write_bytes(b"PAR1")
    (folder / "f.txt").write_text("x", encoding="utf-16")
    (folder / "g.jsonl").mkdir()
    config = {"extensions": [".jsonl", ".csv", ".parquet", ".txt"]}
    with caplog.at_level(logging.WARNING):
        train, held_out = local(tmp_path, codec, folder, **config)
    assert "5 of 6 files are skipped" in caplog.text
    assert codec.decode(np.concatenate((train[:-1], held_out[:-1])).tolist()) == PROSE
    assert "".join(corpus_text(DataConfig(train_files=[str(folder)], **config))).startswith(PROSE)


def test_a_corpus_that_is_too_short(tmp_path):
    (tmp_path / "word.txt").write_text("word")
    with pytest.raises(InputError, match="less than one block of 32"):
        Trainer(run_config(tmp_path, train_files=[str(tmp_path / "word.txt")]))
    with pytest.raises(InputError, match="no such file or folder"):
        Trainer(run_config(tmp_path, train_files=[str(tmp_path / "nowhere")]))
    with pytest.raises(InputError, match=r"no \*\.txt, \*\.jsonl, \*\.parquet files in"):
        Trainer(run_config(tmp_path, train_files=[str(tmp_path / "cache")]))
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
from asarm.data.preprocessing import token_ids
from asarm.data.readers import documents
class Codec:
    def reserved(self):
        return [2]
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


def test_packing_loses_nothing_and_closes_documents():
    blocks = pack([[5, 6, 7], [8], [9, 10, 11, 12]], eos=0, block_size=5)
    assert blocks.tolist() == [[5, 6, 7, 0, 8], [0, 9, 10, 11, 12]]
    with pytest.raises(InputError, match="less than one block"):
        pack([[1]], eos=0, block_size=5)


@pytest.fixture(scope="module")
def xlnet_codec():
    return TextCodec(train_xlnet_tokenizer(PROSE, 400))


def as_the_tokenizer_ends_them(codec, texts):
    """Documents as `PackedDataset` of the paper's repository joins them."""
    return [id for text in texts for id in [*codec.tokenizer(text)["input_ids"], codec.eos_token_id]]


def test_documents_can_end_as_the_tokenizer_ends_them(tmp_path, xlnet_codec, monkeypatch):
    monkeypatch.setattr(readers, "PIECE", 1000)
    texts = [PROSE[:5000], "The cats sat.", PROSE[200:300]]
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = {"held_out": 0.5, "document_end": "tokenizer"}
    tokens = local(tmp_path, xlnet_codec, tmp_path / "a.jsonl", **options)
    expected = as_the_tokenizer_ends_them(xlnet_codec, texts)
    cut = len(tokens[0]) - 3  # a file's end is held out; both parts end
    assert expected[-3:] == [4, 3, 2]
    assert tokens[0].tolist() == [*expected[:cut], 4, 3, 2]
    assert tokens[1].tolist() == expected[cut:]
    with_eos = local(tmp_path, xlnet_codec, tmp_path / "a.jsonl", held_out=0.5)
    assert not {3, 4} & set(with_eos[0].tolist())
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_streamed_documents_can_end_as_the_tokenizer_ends_them(tmp_path, xlnet_codec):
    texts = [f"The {n} cats of house {n} sat." for n in range(200)]
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = DataConfig(
        dataset=str(folder), streams=1, num_workers=0, shuffle_buffer=1000, held_out=0.2, block_size=16,
        document_end="tokenizer",
    )  # fmt: skip
    held_out = [is_held_out(text, 0.2) for text in texts]
    parts = [
        as_the_tokenizer_ends_them(xlnet_codec, [t for t, out in zip(texts, held_out, strict=True) if out == wanted])
        for wanted in (False, True)
    ]
    train, expected = (blocks(np.array(part), 16) for part in parts)
    assert held_out_blocks(config, xlnet_codec, 1000).tolist() == expected.tolist()
    batches = StreamBatches(config, xlnet_codec, 1, seed=0, rank=0, ranks=1)
    assert sorted(next(batches)[0].tolist() for _ in train) == sorted(train.tolist())


def test_a_tokenizer_that_begins_texts_cannot_end_documents(codec):
    tokenizer = train_tokenizer([PROSE], 300)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A <eos>", special_tokens=[("<eos>", 0)]
    )
    assert codec.document_end("tokenizer") == codec.document_end("eos") == [0]
    with pytest.raises(InputError, match="begins a text, with <eos>: use --document_end eos"):
        TextCodec(tokenizer).document_end("tokenizer")


def test_each_epoch_reads_every_block_once():
    rows = np.concatenate([batch_rows(10, index, 4, seed=3) for index in range(5)])
    assert sorted(rows[:10]) == list(range(10))
    assert sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
