"""Files from users: what every reader makes of all kinds of files, sound and faulty."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from asarm.data.readers import documents, read_text, read_texts
from asarm.data.rows import decode, plain_text, read_rows
from asarm.evals.language.data import lambada_questions
from asarm.models.load import load
from asarm.utils.errors import InputError

BOM = b"\xef\xbb\xbf"


def parquet(table=None, **columns):
    """The bytes of a parquet file."""
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table or pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


NO_UTF8 = pyarrow.StringArray.from_buffers(2, *pyarrow.array([b"one", b"caf\xe9"]).buffers()[1:])
TWICE = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text", "text"])
JSON_LIST = json.dumps([{"text": "one two"}, {"text": "three four"}], indent=1).encode()
GOOD = [
    ("a.jsonl", b'{"text": "one two"}\r\n\r\n  \n{"text": "three four"}\r\n'),
    ("a.jsonl", BOM + b'{"text": "one two"}\n{"text": "three four"}'),
    ("a.jsonl.gz", gzip.compress(BOM + b'{"text": "one two"}\n"three four"\n', mtime=0)),
    ("a.jsonl", gzip.compress(b'{"text": "one two"}\n{"text": "three four"}\n', mtime=0)),
    ("a.json", JSON_LIST),
    ("a.json", b'["one two", "three four"]'),
    ("a.json", b'{"text": "one two"}\n{"text": "three four"}\n'),
    ("a", BOM + JSON_LIST),
    ("a.txt", b'{"text": "one two"}\n{"text": "three four"}\n'),
    ("a.CSV", BOM + b'n,text\r\n1,one two\r\n\r\n,\r\n2,"three four"\r\n'),
    ("a.csv.gz", gzip.compress(b"content\none two\nthree four\n", mtime=0)),
    ("a.tsv", b"n\ttext\n1\tone two\n2\tthree four\n"),
    ("a.parquet", parquet(text=["one two", "three four"], n=[1, 2])),
    ("a.parquet", parquet(text=pyarrow.array(["one two", "three four"], pyarrow.large_string()))),
    ("a.parquet", parquet(text=pyarrow.array(["one two", "three four"]).dictionary_encode())),
    ("a.parquet.gz", gzip.compress(parquet(text=["one two", "three four"]), mtime=0)),
    ("a", parquet(text=["one two", "three four"])),
]


@pytest.mark.parametrize(("name", "content"), GOOD)
def test_rows_of_all_kinds(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert list(documents(path)) == [(True, "one two"), (True, "three four")]
    assert [text for _, text in read_texts(path)] == ["one two", "three four"]
    assert read_text(path) == "one two\nthree four"
    assert [tuple(question) for question in lambada_questions(str(path))] == [
        ("one", [" two"], 0), ("three", [" four"], 0)
    ]  # fmt: skip


def test_a_quoted_newline_and_a_long_cell_are_of_a_csv_text(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'text,n\n"one\n\ntwo ""and"" three",1\n' + b"x" * 200_000 + b",2\n")
    assert list(documents(tmp_path / "a.csv")) == [(True, 'one\n\ntwo "and" three'), (True, "x" * 200_000)]


@pytest.mark.parametrize("name", ["a.txt", "a", "a.txt.gz"])
def test_plain_text(tmp_path, name):
    """A byte order mark and carriage returns are not of the text; braces and brackets do not make it JSON."""
    text = "[Illustration]\n\n{one} two\n"
    data = BOM + text.replace("\n", "\r\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)
    assert read_text(tmp_path / name) == plain_text(tmp_path / name) == decode(data, "it") == text
    assert [where.split()[-1] for where, _ in read_texts(tmp_path / name)] == ["1", "3"]
    assert [text for _, text in read_texts(tmp_path / name)] == ["[Illustration]", "{one} two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n', "a.jsonl is not UTF-8 text: byte 0xe9 in line 2"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": ["y"]}\n', r"a.jsonl, line 3: the field text holds \['y'\] \(list\)"),
        ("a.jsonl", b'{"text": "x"}\n3\n', "a.jsonl, line 2 is no JSON object, but 3"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1 is no JSON that can be read"),
        ("a.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "a.jsonl, line 1 is no JSON that can be read"),
        ("a.jsonl", b'{"text": "a\0b"}\n', "a.jsonl is not UTF-8 text: byte 0x00 in line 1"),
        ("a.json", b'[{"text": "x"},\n{"text": "y"]', "a.json, line 2 is no JSON: "),
        (
            "a.json",
            b'{\n "text": "x"\n}',
            "a.json, line 1 is no JSON: .*; a JSON file holds an object a line",
        ),
        ("a.json", b'[{"text": "x"}, {"body": "y"}]', "a.json, item 2 has no field text or content"),
        ("a.json", b"Prose, not JSON.\n", "a.json, line 1 is no JSON: "),
        ("a.txt", '{"text": "x"}\n'.encode("utf-16"), "a.txt is UTF-16 text: convert it to UTF-8"),
        ("a.txt", "one\ntwo".encode("utf-16-le"), "a.txt is not UTF-8 text: byte 0x00 in line 1"),
        ("a.txt", b"one\r\ntwo \xff", "a.txt is not UTF-8 text: byte 0xff in line 2"),
        ("a.csv", b"text,n\nx,1\nx,1,2\n", "a.csv, line 3 has 3 cells, and the header 2"),
        ("a.csv", b'text,n\n"x,1\n', "a.csv, line 2 is no CSV that can be read: unexpected end of data"),
        ("a.csv", b"text,text\nx,y\n", "a.csv has the column text 2 times"),
        ("a.csv", b"body,n\nx,1\n", r"a.csv has no field text or content \(it has body, n\)"),
        ("a.csv", b'"a\nb",n\nx,1\n', r"a.csv has no field text or content \(it has a b, n\)"),
        ("a.csv", b"word," * 999, "it has word, word.{190}[.]{3}"),
        ("a.csv", b"text,n\nx,1\ncaf\xe9,2\n", "a.csv is not UTF-8 text: byte 0xe9 in line 3"),
        ("a.csv", b"text\n" + b"x" * (1 << 24) + b"xx\n", "a.csv, line 2 is no CSV that can be read: field larger"),
        ("a.parquet", parquet(text=[["x"]]), r"a.parquet, row 1: the field text holds \['x'\] \(list\), not text"),
        ("a.parquet", parquet(text=[b"x"]), r"a.parquet, row 1: the field text holds b'x' \(bytes\), not text"),
        ("a.parquet", parquet(text=[{"a": "x"}]), r"a.parquet, row 1: the field text holds \{'a': 'x'\} \(dict\)"),
        ("a.parquet", parquet(text=[1.5]), r"a.parquet, row 1: the field text holds 1.5 \(float\), not text"),
        ("a.parquet", parquet(text=NO_UTF8), "a.parquet, row 2 is not UTF-8 text: byte 0xe9"),
        ("a.parquet", parquet(TWICE), "a.parquet has the column text 2 times"),
        ("a.parquet", parquet(text=["x"])[:-20], "a.parquet is no parquet file that can be read"),
        ("a.parquet", b'{"text": "x"}', "a.parquet is no parquet file that can be read"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}', mtime=0)[:-9],
            "a.jsonl.gz: Compressed file ended",
        ),
        ("a.txt.gz", b"\x1f\x8b\x08" + b"\0" * 7 + b"\xff" * 20, "cannot read .*a.txt.gz: Error -3"),
        ("a.txt.gz", b"no gzip", "cannot read .*a.txt.gz: Not a gzipped file"),
    ],
)
def test_faulty_files_are_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    for read in (lambda path: list(documents(path)), read_text, read_texts):
        with pytest.raises(InputError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "x"}\n\n{"text": null}\n', "a.jsonl, line 3: the field text holds null, not text"),
        (b'{"text": "x"}\n{"body": "x"}\n', r"a.jsonl, line 2 has no field text \(it has body\)"),
        (b'"x"\n{"text": 3}\n', r"a.jsonl, line 2: the field text holds 3 \(int\), not text"),
    ],
)
def test_fields_of_an_evaluation_set_must_be_there(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_rows(tmp_path / "a.jsonl", ["text"])


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_empty_files_and_folders(tmp_path, name):
    content = parquet(text=pyarrow.array([], pyarrow.string())) if name == "a.parquet" else b""
    (tmp_path / name).write_bytes(content)
    for read in (read_text, read_texts, lambda path: read_rows(path, ())):
        with pytest.raises(InputError, match=f"{name} is empty"):
            read(tmp_path / name)
        with pytest.raises(InputError, match=r"cannot read .*Is a directory"):
            read(tmp_path)
        with pytest.raises(InputError, match=r"cannot read .*none: No such file"):
            read(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": null}\n{"text": ""}\n{"text": "x"}\n'),
        ("a.csv", b'text,n\n,1\n"",2\nx,3\n'),
        ("a.parquet", parquet(text=[None, "", "x"])),
    ],
)
def test_null_is_no_document_and_no_passage(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert list(documents(tmp_path / name)) == [(True, "x")]
    with pytest.raises(InputError, match=r"null|at least two words, not ''"):
        lambada_questions(str(tmp_path / name))


def test_lone_surrogates_are_replaced(tmp_path):
    """And those in pairs are the character that they stand for."""
    row = rb'{"text": "a \ud800 b \ud83d\ude00", "more": [["\udc00"], {"x": "\ud800"}]}'
    (tmp_path / "a.jsonl").write_bytes(row)
    text = "a \ufffd b \U0001f600"
    assert list(documents(tmp_path / "a.jsonl")) == [(True, text)]
    assert [found for _, found in read_texts(tmp_path / "a.jsonl")] == [text]
    (found,) = read_rows(tmp_path / "a.jsonl", ["text"])
    assert found.fields == {"text": text, "more": [["\ufffd"], {"x": "\ufffd"}]}
    assert read_rows(tmp_path / "a.jsonl", ["text"], as_written=True)[0].fields["text"] == "a \ud800 b \U0001f600"
    assert len(load("tiny-text")[1].encode(text)) > 3


def test_documents_joined_are_the_lines_of_wikitext(tmp_path):
    """Its rows end with their newlines; those of other sets do not."""
    rows = ["", " = Title = \n", "", " Some text . \n"]
    (tmp_path / "a.parquet").write_bytes(parquet(text=rows))
    assert read_text(tmp_path / "a.parquet") == "".join(rows)
    (tmp_path / "a.parquet").write_bytes(parquet(text=["one", "two\n", "three"]))
    assert read_text(tmp_path / "a.parquet") == "one\ntwo\nthree"
