"""White space as tokens: the mapping that the released code models were trained with, and what comes back of it."""

import pickle

import pytest
import sentencepiece
from transformers import AutoTokenizer, XLNetConfig, XLNetLMHeadModel

from asarm.data.tokenizer_training import train_tokenizer
from asarm.models.load import AsArm, load, load_tokenizer
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import label_spans, parse_gaps
from asarm.utils.errors import InputError
from support.xlnet_tokenizer import SPECIAL, train_xlnet_tokenizer

FUNCTION = '''\
def median(values, default=None):
    """The middle of the values; the mean of the two in the middle, if they are even in number."""

    ordered = sorted(values)  # a copy
    if not ordered:
        return default
    half = len(ordered) // 2
    if len(ordered) % 2 == 0:
        return (ordered[half - 1]
                + ordered[half]) / 2

    return ordered[half]
'''
MAKEFILE = "all: a.o\n\tcc -o all a.o\n\n\tstrip all\n"


@pytest.fixture(scope="module")
def in_memory(sample_text):
    return train_xlnet_tokenizer(f"{FUNCTION}{MAKEFILE}{sample_text}a < b > c", 150)


@pytest.fixture(scope="module")
def reloaded(in_memory, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    in_memory.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def spiece(sample_text, tmp_path_factory):
    """Of an old checkpoint, which has a SentencePiece model and no tokenizer.json."""
    folder = tmp_path_factory.mktemp("spiece")
    with (folder / "spiece.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(f"{FUNCTION}{MAKEFILE}{sample_text}a < b > c".splitlines()),
            model_writer=file, vocab_size=150, hard_vocab_limit=False, character_coverage=1.0, minloglevel=2,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, control_symbols=SPECIAL[3:],
        )  # fmt: skip
    XLNetConfig().save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(params=["in_memory", "reloaded", "spiece"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def codec(tokenizer):
    return TextCodec(tokenizer, "tokens")


def round_trip(codec: TextCodec, text: str) -> str:
    return codec.decode(codec.encode(text))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a\nb", "a<cls>b"),
        ("\ta\n\n\t\tb\n", "<sep>a<cls><cls><sep><sep>b<cls>"),
        ("a b", "a b"),
        ("a  b", "a<unk>b"),
        ("a   b", "a<unk> b"),
        ("a    b", "a<unk><unk>b"),
        ("       a", "<unk><unk><unk> a"),
        ("if a:\n    b()  # c", "if a:<cls><unk><unk>b()<unk># c"),
        ("a\r\nb", "a\r<cls>b"),
    ],
)
def test_white_space_is_written_as_tokens_and_all_else_is_left_to_the_tokenizer(codec, tokenizer, text, written):
    assert codec.write_white_space(text) == written
    assert codec.encode(text) == tokenizer.encode(written, add_special_tokens=False)
    assert codec.write_white_space(written) == written


def test_a_batch_is_encoded_as_its_texts_are(codec):
    texts = [FUNCTION, MAKEFILE, "", "a <mask>  b", MAKEFILE * 3]
    assert codec.encode_batch(texts) == [codec.encode(text) for text in texts]
    assert codec.encode_batch([]) == []


def test_the_tokens_are_those_of_the_tokenizer(codec):
    ids = codec.encode("a\n\t    b")
    assert codec.tokenizer.convert_ids_to_tokens(ids)[1:5] == ["<cls>", "<sep>", "<unk>", "<unk>"]
    assert ids[1:5] == [3, 4, 0, 0]
    assert codec.tokenizer.pad_token_id not in codec.encode(FUNCTION + "   a      b")


def test_line_ends(codec, tokenizer):
    """All tokens with a newline at their end, eos, and no other."""
    ends = set(codec.line_ends())
    assert {tokenizer.eos_token_id, *codec.encode("\n")} <= ends
    assert not ends & set(codec.encode("a b  (c):"))
    assert ends == {tokenizer.eos_token_id} | {id for id in range(len(codec)) if codec.decode([id]).endswith("\n")}


@pytest.mark.parametrize("text", [FUNCTION, MAKEFILE, "\n\n\na\n", "\n", "\t", "    ", ""])
def test_code_comes_back(codec, text):
    assert round_trip(codec, text) == text


@pytest.mark.parametrize("n", range(1, 10))
def test_runs_of_spaces_come_back_but_for_an_odd_one(codec, n):
    spaces, kept = " " * n, " " * (n - n % 2)
    assert round_trip(codec, f"a{spaces}b") == (f"a{kept}b" if n > 1 else "a b")
    assert round_trip(codec, f"a\n{spaces}b") == f"a\n{kept}b"
    assert round_trip(codec, f"a{spaces}\nb") == f"a{kept}\nb"
    assert round_trip(codec, f"{spaces}a{spaces}") == f"{kept}a{kept}"
    assert round_trip(codec, f"a\t{spaces}b") == f"a\t{kept}b"
    assert round_trip(codec, round_trip(codec, f"a{spaces}b")) == round_trip(codec, f"a{spaces}b")


def test_line_ends_come_back_as_newlines(codec):
    assert round_trip(codec, FUNCTION.replace("\n", "\r\n")) == FUNCTION
    assert round_trip(codec, "a\r\n\r\n  b\r\n") == "a\n\n  b\n"
    assert round_trip(codec, "a\rb") == "a b"


def test_any_tokens_have_a_text(codec):
    """What a model may write though no text is encoded so."""
    tokenizer = codec.tokenizer

    def decode(*tokens: str) -> str:
        return codec.decode(tokenizer.convert_tokens_to_ids(list(tokens)))

    assert decode("<cls>", "<pad>", "a") == "\n   a"
    assert decode("<pad>", "<unk>", "\u2581a", "<cls>") == "     a\n"
    assert decode("\u2581a", "<cls>", "\u2581", "a", "\u2581a") == "a\na a"
    assert decode("<cls>", "\u2581", "\u2581a") == "\n a"  # the first one is the tokenizer's, the second the text's
    assert decode("\u2581a", "</s>", "<cls>", "<mask>", "\u2581a") == "a</s>\n<mask> a"
    assert decode("<sep>", "<", "c", "l", "s", ">") == "\t<cls>"
    assert decode() == ""


def test_plain_is_the_tokenizer(tokenizer):
    plain = TextCodec(tokenizer)
    for text in (FUNCTION, "a  b\n\tc", "a<cls>b<mask>"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert plain.encode(text) == ids
        assert plain.decode(ids) == tokenizer.decode(ids)
    assert plain.decode([]) == ""


@pytest.mark.parametrize("text", [FUNCTION, MAKEFILE, "a\r\nb  \n c", *(f" {' ' * n}a{' ' * n}b" for n in range(9))])
def test_a_tokenizer_that_keeps_all_spaces_gives_all_back(text):
    byte_level = train_tokenizer([FUNCTION], 300)
    byte_level.add_special_tokens({"cls_token": "[C]", "sep_token": "[S]", "unk_token": "[U]"})
    codec = TextCodec(byte_level, "tokens")
    assert round_trip(codec, text) == text


def test_a_tokenizer_without_the_tokens_is_refused(tokenizer):
    with pytest.raises(InputError, match=r"cls_token None, sep_token None.*--white_space plain") as error:
        TextCodec(train_tokenizer([FUNCTION], 300), "tokens")
    assert "\n" not in str(error.value)
    doubled = pickled(tokenizer)
    doubled.sep_token = doubled.cls_token
    with pytest.raises(InputError, match="cls_token <cls>, sep_token <cls>"):
        TextCodec(doubled, "tokens")
    with pytest.raises(InputError, match="unknown white_space 'tabs'"):
        TextCodec(tokenizer, "tabs")


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))


def test_a_codec_can_be_sent_to_other_processes(codec):
    assert pickled(codec).encode(FUNCTION) == codec.encode(FUNCTION)
    assert round_trip(pickled(codec), FUNCTION) == FUNCTION


@pytest.mark.parametrize(
    "pieces",  # text, filling, text, filling, ..., text
    [
        ["    if not", " ordered", ":\n        return default\n"],
        ["half = len(", "ordered", ") //", " 2", "\n"],
        ["    return (ordered[", "half", " - 1]\n                + ordered[half]", ")", " / 2\n"],
        ["def f():\n    ", "return a", "\n\n"],
        ["def f():\n    ", "return a", "  # c\n"],
        ["def f():", "\n    ", "return a\n"],
        ["def f():\n", "    return a\n", "    return b\n"],
        ["", "if", " a:\n\t", "b", "\n"],
        ["\tcc -o", " all", " a.o", "\n", "\tstrip all", "\n", ""],
    ],
)
def test_filling_gaps_in_code(codec, pieces):
    """Tokens of the fillings instead of the masks decode to what a person would write."""
    text, fillings = pieces[0], []
    for filling, right in zip(pieces[1::2], pieces[2::2], strict=True):
        # After white space there are tokens for words, within a word one for each letter.
        new = filling[0].isspace() or not text or text[-1].isspace()
        tokens = codec.encode(filling) if new else codec.tokenizer.convert_tokens_to_ids(list(filling))
        text += " " * (filling[0] == " " != filling[1]) + f"___{len(tokens)}" + right
        fillings += tokens
    batch = parse_gaps(text, codec, default_gap_tokens=8)
    tokens = batch.tokens.clone()
    tokens[batch.target] = tokens.new_tensor(fillings)
    assert codec.decode(tokens[0].tolist()) == "".join(pieces)


@pytest.mark.parametrize("indented", [True, False])
def test_a_gap_for_a_line_leaves_the_other_tokens_as_they_were(codec, indented):
    """What is given is encoded as in the whole text, whether the line's indentation is in the gap or before it."""
    lines = FUNCTION.splitlines(keepends=True)
    for number, line in enumerate(lines):
        content = line.rstrip("\n") if indented else line.strip()
        if not content:
            continue
        right = line[line.index(content) + len(content) :] + "".join(lines[number + 1 :])
        left = "".join(lines[:number]) + line[: line.index(content)]
        filling = codec.encode(content)
        batch = parse_gaps(f"{left}___{len(filling)}{right}", codec, default_gap_tokens=8)
        tokens = batch.tokens.clone()
        tokens[batch.target] = tokens.new_tensor(filling)
        assert tokens[0].tolist() == codec.encode(FUNCTION)


def test_a_single_space_before_a_gap_belongs_to_it_and_pairs_do_not(codec):
    for text, left in (("a ___", "a"), ("a  ___", "a  "), ("a   ___", "a  "), ("a\n    ___", "a\n    ")):
        batch = parse_gaps(text, codec, default_gap_tokens=1)
        assert codec.decode(batch.tokens[batch.given].tolist()) == left


def test_spans_of_code_joined_are_the_code(codec):
    tokens = codec.encode(FUNCTION + MAKEFILE)
    for step in (2, 3, 5):
        labels = ["filled" if index % step else "prompt" for index in range(len(tokens))]
        assert "".join(span.text for span in label_spans(codec, tokens, labels)) == FUNCTION + MAKEFILE


@pytest.fixture(scope="module")
def folder(in_memory, tmp_path_factory):
    """An XLNet checkpoint that says nothing of white space."""
    path = tmp_path_factory.mktemp("xlnet")
    shape = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 16}
    XLNetLMHeadModel(XLNetConfig(vocab_size=len(in_memory), **shape)).save_pretrained(path)
    in_memory.save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("revision", "option", "chosen"),
    [
        (None, "auto", "plain"),
        ("nlp", "auto", "plain"),
        ("code", "auto", "tokens"),
        ("code-single-line", "auto", "tokens"),
        ("codex", "auto", "plain"),
        ("code", "plain", "plain"),
        ("nlp", "tokens", "tokens"),
    ],
)
def test_the_branch_or_the_option_chooses_and_the_saved_model_remembers(folder, tmp_path, revision, option, chosen):
    model, codec = load(folder, revision, white_space=option)
    assert (round_trip(codec, FUNCTION) == FUNCTION) == (chosen == "tokens")
    assert model.config.white_space == chosen
    model.save_pretrained(tmp_path)
    codec.save_pretrained(tmp_path)
    again, codec = load(tmp_path)
    assert (round_trip(codec, FUNCTION) == FUNCTION) == (chosen == "tokens")
    assert again.config.white_space == chosen
    other = "plain" if chosen == "tokens" else "tokens"
    assert load(tmp_path, white_space=other)[0].config.white_space == other
    XLNetLMHeadModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "through_transformers")
    assert AsArm.from_pretrained(tmp_path / "through_transformers").config.white_space == chosen


def test_other_models_have_branches_of_any_name(tiny_folder):
    model, codec = load(tiny_folder, revision="code")
    assert model.config.white_space == "plain"
    assert round_trip(codec, "a\n   b") == "a\n   b"


def test_what_cannot_be_chosen(folder, tiny_folder):
    with pytest.raises(InputError, match="unknown white_space 'tabs': choose auto, plain or tokens"):
        load(folder, white_space="tabs")
    with pytest.raises(InputError, match="--white_space plain"):
        load(tiny_folder, white_space="tokens")


def test_lines_have_the_tokens_that_they_have_in_the_text():
    """So a gap of whole lines can be cut out of a text, and filled, in the tokens that the model was trained on."""
    codec = TextCodec(train_tokenizer([FUNCTION * 3], 300))
    ends = [index for index, letter in enumerate(FUNCTION) if letter == "\n"]
    for cut in (*ends, *(end + 1 for end in ends)):  # a newline belongs to the gap, or to what follows
        assert codec.encode(FUNCTION[:cut]) + codec.encode(FUNCTION[cut:]) == codec.encode(FUNCTION)
