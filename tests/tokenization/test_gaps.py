"""Gaps to tokens and back, for a byte-level BPE and for a SentencePiece tokenizer (XLNet's class)."""

import json
import random
import re
import shutil

import pytest

from asarm.data.preprocessing import token_ids
from asarm.evals.decoding.config import JOINED
from asarm.evals.decoding.texts import token_stream
from asarm.evals.language.likelihood import encode_pair
from asarm.models.load import load, load_tokenizer
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import escape_gaps, label_spans, parse_gaps, split_gaps
from asarm.tokenization.open_gaps import open_targets
from asarm.utils.errors import InputError
from support.xlnet_tokenizer import train_xlnet_tokenizer


@pytest.fixture(scope="session")
def byte_level(tiny_folder):
    return load(tiny_folder)[1]


@pytest.fixture(scope="session")
def sentence_piece(sample_text):
    return TextCodec(train_xlnet_tokenizer(sample_text, 120))


@pytest.fixture(params=["byte_level", "sentence_piece"])
def codec(request):
    return request.getfixturevalue(request.param)


def gap_sizes(batch):
    """Lengths of the runs of targets."""
    marks = "".join("x" if target else " " for target in batch.target[0].tolist())
    return [len(run) for run in marks.split()]


def test_gaps_become_masks_of_the_given_or_default_size(codec):
    batch = parse_gaps("Once upon a time ___ lived in a ___5.", codec, default_gap_tokens=8)
    assert gap_sizes(batch) == [8, 5]
    assert (batch.tokens[batch.target] == codec.mask_token_id).all()
    assert (batch.tokens[batch.given] != codec.mask_token_id).all()
    assert (batch.given == ~batch.target).all()
    assert batch.tokens.dtype.is_signed
    assert (
        batch.tokens[batch.given].tolist()
        == [token for text in ("Once upon a time", " lived in a") for token in codec.encode(text)]
        + codec.encode("castle.")[-1:]
    )


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("___", [8]),
        ("___3", [3]),
        ("a ______ b", [8]),
        ("a ___3___2 b", [5]),
        ("a ___3 ___ b", [11]),
        ("a ___12b ___", [12, 8]),
        ("a __ b ___2", [2]),
        ("def __init__(self): ___4", [4]),
        ("a\n___2\nb ___1", [2, 1]),
    ],
)
def test_what_is_a_gap(byte_level, text, sizes):
    assert gap_sizes(parse_gaps(text, byte_level, default_gap_tokens=8)) == sizes


@pytest.mark.parametrize(
    ("text", "segments", "digits"),
    [
        (r"a \___ b ___ c", ["a ___ b ", " c"], [""]),
        (r"\___5", ["___5"], []),
        (r"C:\\___", ["C:\\", ""], [""]),
        (r"C:\\\___", [r"C:\___"], []),
        (r"___\___", ["", "___"], [""]),
        (r"___\5", ["", "5"], [""]),
        (r"___3\5", ["", "5"], ["3"]),
        (r"___\\5", ["", r"\5"], [""]),
        (r"___\a \ \n \_ \__", ["", r"\a \ \n \_ \__"], [""]),
        ("___007a", ["", "a"], ["007"]),
    ],
)
def test_backslashes_make_underscores_and_digits_text(text, segments, digits):
    assert split_gaps(text) == (segments, digits)


def random_text(generator: random.Random) -> str:
    """Short, and rich in what has a meaning beside gaps."""
    return "".join(generator.choices(["_", "___", "\\", "5", "a", " "], k=generator.randrange(9)))


def test_escaped_texts_mean_themselves():
    generator = random.Random(0)
    for _ in range(3000):
        text = random_text(generator)
        assert split_gaps(escape_gaps(text)) == ([text], [])
        assert split_gaps(escape_gaps(escape_gaps(text))) == ([escape_gaps(text)], [])


def beside_gaps(segment: str, is_first: bool, is_last: bool) -> str:
    """A segment as it must be written between gaps."""
    segment = escape_gaps(segment)
    if not is_last:  # or backslashes at its end would be those of the gap
        segment += re.search(r"\\*$", segment)[0]
    return segment if is_first else re.sub(r"^(\\*[0-9])", r"\\\1", segment)


def test_what_is_written_between_gaps_is_read():
    """But for underscores at a gap, which belong to it."""
    generator = random.Random(1)
    for _ in range(3000):
        segments = [random_text(generator).strip("_") for _ in range(4)]
        digits = [generator.choice(["2", "13"]), generator.choice(["2", "13", ""] if segments[2] else ["2"]), ""]
        last = len(segments) - 1
        written = [beside_gaps(one, index == 0, index == last) for index, one in enumerate(segments)]
        text = written[0] + "".join(f"___{n}{one}" for n, one in zip(digits, written[1:], strict=True))
        assert split_gaps(text) == (segments, digits), text


@pytest.mark.parametrize(
    "pieces",  # text, filling, text, filling, ..., text
    [
        ["Once upon a time", " there", " lived in a", " castle", "."],
        ["", "Once", " upon a", " time", ""],
        ["an un", "ab", "le bear in the", " tree", ", and"],
        ["", "the", "re lived in a", " cas", "tle."],
        ["a", " bear", "", " in", " a tree"],
        ["the bear", ",", " who", " was", " old", "e", "r."],
    ],
)
def test_filling_the_gaps_gives_the_text(codec, pieces):
    """Tokens of the fillings instead of the masks decode to what a person would write."""
    text, fillings = pieces[0], []
    for filling, right in zip(pieces[1::2], pieces[2::2], strict=True):
        # At the start of a text and after a space there are tokens for words, elsewhere one for each letter.
        word = filling.startswith(" ") or not text
        tokens = codec.encode(filling) if word else codec.tokenizer.convert_tokens_to_ids(list(filling))
        text += " " * filling.startswith(" ") + f"___{len(tokens)}" + right
        fillings += tokens
    batch = parse_gaps(text, codec, default_gap_tokens=8)
    tokens = batch.tokens.clone()
    tokens[batch.target] = tokens.new_tensor(fillings)
    assert codec.decode(tokens[0].tolist()) == "".join(pieces)


def test_a_gap_between_words_leaves_the_other_tokens_as_they_were(codec):
    whole = codec.encode("Once upon a time there lived in a forest an old bear")
    there = len(codec.encode(" there"))
    batch = parse_gaps(f"Once upon a time ___{there} lived in a forest an old bear", codec, default_gap_tokens=8)
    first = batch.target[0].tolist().index(True)
    assert batch.tokens[batch.given].tolist() == whole[:first] + whole[first + there :]


def test_one_space_belongs_to_the_gap(byte_level):
    for text, left in (("a ___", "a"), ("a  ___", "a "), ("a\n    ___", "a\n   "), ("a\n___", "a\n"), ("a___", "a")):
        batch = parse_gaps(text, byte_level, default_gap_tokens=1)
        assert byte_level.decode(batch.tokens[batch.given].tolist()) == left


@pytest.mark.parametrize(
    ("text", "limit", "message"),
    [
        ("no gap here", None, "no ___ in the text"),
        ("two __ only", None, "no ___ in the text"),
        ("none ___0 here", None, "a gap of 0 tokens"),
        ("", None, "the text is empty"),
        (" \n", None, "the text is empty"),
        ("a <mask> b ___", None, "holds <mask>"),
        ("a ___129", 128, "takes at most 128"),
        ("a ___128", 128, "has 129 tokens, 128 of them in gaps"),
    ],
)
def test_bad_texts(byte_level, text, limit, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_gaps(text, byte_level, default_gap_tokens=8, max_length=limit)
    assert "\n" not in str(caught.value)


def test_a_text_may_be_as_long_as_the_model(byte_level):
    assert len(parse_gaps("a ___127", byte_level, default_gap_tokens=8, max_length=128).tokens[0]) == 128


@pytest.fixture(scope="session")
def ending(ending_folder):
    """A codec with a token that ends gaps."""
    return load(ending_folder)[1]


def test_gaps_without_digits_are_of_unknown_length(ending):
    """A mark follows them; spans and text are those without marks."""
    text, end = "Once ___ upon ___3 a ___", ending.gap_end_token_id
    batch, known = (parse_gaps(text, ending, 4, open_gaps=open_gaps) for open_gaps in (True, False))
    assert gap_sizes(batch) == gap_sizes(known) == [4, 3, 4]
    marks = (batch.tokens == end).nonzero()[:, 1].tolist()
    assert [bool(batch.target[0, mark - 1] and batch.given[0, mark]) for mark in marks] == [True, True]
    assert open_targets(batch, end).sum() == 8
    assert [token for token in batch.tokens[0].tolist() if token != end] == known.tokens[0].tolist()
    assert ending.decode(batch.tokens[0].tolist()) == ending.decode(known.tokens[0].tolist())
    labels = ["filled" if target else "prompt" for target in batch.target[0]]
    spans = label_spans(ending, batch.tokens[0].tolist(), labels)
    assert [span.label for span in spans] == ["prompt", "filled", "prompt", "filled", "prompt", "filled"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <gap_end> b ___", "holds <gap_end>"),
        ("a ___5 ___ b", "no text between ___5 and the ___ after it"),
        ("a ___99 b ___", "takes at most 100"),
    ],
)
def test_bad_texts_with_gaps_of_unknown_length(ending, text, message):
    with pytest.raises(InputError, match=message):
        parse_gaps(text, ending, 4, max_length=100, open_gaps=True)


def test_a_codec_without_a_token_that_ends_gaps(codec):
    with pytest.raises(InputError, match="this tokenizer has no token that ends a gap"):
        parse_gaps("a ___", codec, 4, open_gaps=True)


def test_spans_joined_are_the_text(codec, sample_text):
    tokens = codec.encode(sample_text)
    labels = ["filled" if index % 5 < 2 else "prompt" for index in range(len(tokens))]
    spans = label_spans(codec, tokens, labels)
    assert "".join(span.text for span in spans) == codec.decode(tokens)
    assert len(spans) > len(tokens) // 4


def test_spans_name_the_origin_of_each_piece(byte_level):
    tokens = byte_level.encode("Once upon") + byte_level.encode(" a time")
    labels = ["prompt"] * len(byte_level.encode("Once upon")) + ["filled"] * len(byte_level.encode(" a time"))
    assert label_spans(byte_level, tokens, labels) == [("Once upon", "prompt"), (" a time", "filled")]


def test_a_cut_inside_a_character_is_moved_to_its_left(byte_level):
    tokens = byte_level.encode("x\u20ac")  # the euro sign: three bytes, a token each
    assert len(tokens) == 4
    assert label_spans(byte_level, tokens, ["prompt", "prompt", "filled", "filled"]) == [
        ("x", "prompt"),
        ("\u20ac", "filled"),
    ]


def damage(folder, how):
    if how == "missing":
        for path in folder.glob("token*"):
            path.unlink()
    elif how == "corrupt":
        (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    else:
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        del settings["mask_token"]
        path.write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(
    ("how", "message"),
    [("missing", "without a tokenizer"), ("corrupt", "cannot load"), ("without mask", "has no mask token")],
)
def test_unusable_tokenizers(tiny_folder, tmp_path, how, message):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    damage(folder, how)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_token_that_ends_gaps_stands_in_no_text(ending):
    """In a prompt it would make the gap before it one of unknown length."""
    text = "Once upon <gap_end> a time"
    assert ending.reserved_in(ending.encode(text)) == "<gap_end>"
    assert ending.reserved_in(ending.encode("a <mask> b")) == "<mask>"
    assert ending.reserved_in(ending.encode("Once upon a time")) is None
    with pytest.raises(InputError, match="the text holds <gap_end>, which stands for what is to be decoded"):
        encode_pair(ending, text, " there", 64)
    with pytest.raises(InputError, match="the text holds <gap_end>, which stands for what is to be decoded"):
        token_stream([text], ending, JOINED, None)
    assert token_ids(ending, text).tolist() == [i for i in ending.encode(text) if i != ending.gap_end_token_id]
