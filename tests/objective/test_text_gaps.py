"""Gaps that are made in training texts."""

import pytest
import torch

from asarm.models.conversion.vocabulary import add_gap_end_token
from asarm.objective.masking import MaskingConfig, MaskingPattern, training_batch
from asarm.objective.text_gaps import PIECES, TextGaps
from asarm.tokenization.batch import PADDING
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError
from support.llama import byte_tokenizer

TEXT = (
    "One day Tom lost his dog. He looked for it in the park! Was it there?\nNo, it was at home.\n    So he laughed.\n"
)


@pytest.fixture(scope="module")
def codec(sample_text):
    tokenizer = byte_tokenizer(sample_text)
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    add_gap_end_token(tokenizer)
    return TextCodec(tokenizer)


def batch_of(codec, seeds=100, text=TEXT, **settings):
    tokens = torch.tensor([[*codec.encode(text), codec.eos_token_id]])
    tokens = torch.nn.functional.pad(tokens, (0, 3), value=PADDING)
    gaps = TextGaps(codec, **settings)
    return [gaps.batch(tokens, torch.Generator().manual_seed(seed)) for seed in range(seeds)]


def filled(codec, batch):
    """The texts of the gaps, left to right."""
    target, runs, run = batch.target[0].tolist(), [], []
    for token, is_target in zip([*batch.tokens[0].tolist(), 0], [*target, False], strict=True):
        if is_target:
            run.append(token)
        elif run:
            runs.append(codec.decode([one for one in run if one != codec.gap_end_token_id]))
            run = []
    return runs


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("kind", list(PIECES))
def test_what_is_known_and_what_is_filled_is_the_text(codec, kind, spare):
    """Without its eos token. Gaps are one to three, and none touches another."""
    batches = batch_of(codec, kinds=[kind], most_spare=spare, most_tokens=60)
    for tokens, given, target in batches:
        known = tokens[given | target]
        assert codec.decode(known[known != codec.gap_end_token_id].tolist()) == TEXT
        assert not (given & target).any()
    counts = [len(filled(codec, batch)) for batch in batches]
    assert set(counts) >= {1, 2}
    assert max(counts) <= 3
    assert counts.count(1) > 40


@pytest.mark.parametrize(
    ("kind", "pieces"),
    [
        ("lines", TEXT.splitlines(keepends=True)),
        ("sentences", ["One day Tom lost his dog.", " He looked for it in the park!", " Was it there?"]),
        ("words", [" Tom", " it", "\nNo,", "\n    So"]),
    ],
)
def test_gaps_are_whole_pieces(codec, kind, pieces):
    gaps = [gap for batch in batch_of(codec, 300, kinds=[kind], most_tokens=200) for gap in filled(codec, batch)]
    assert set(pieces) <= set(gaps)
    starts = {0, *(match.start() for match in PIECES[kind].finditer(TEXT))}
    assert all(any(TEXT.startswith(gap, start) for start in starts) for gap in gaps)


def test_gaps_may_begin_and_end_inside_words_and_are_not_long(codec):
    batches = batch_of(codec, kinds=["characters"], most_tokens=6)
    assert all(batch.target.sum() <= 3 * 6 for batch in batches)
    gaps = {gap for batch in batches for gap in filled(codec, batch)}
    assert any(TEXT[TEXT.index(gap) - 1].isalpha() and gap[0].isalpha() for gap in gaps)


def test_a_gap_of_unknown_length_ends_with_a_target_and_is_marked(codec):
    """text gap_end (absent ...) gap_end: half of the gaps; a full one has the mark alone."""
    end, spare, kinds = codec.gap_end_token_id, [], {"known": 0, "open": 0}
    for tokens, given, target in batch_of(codec, 400, kinds=["words"], most_spare=4):
        roles = ["gt"[int(t)] if g or t else "." for g, t in zip(given[0], target[0], strict=True)]
        ends = (tokens[0] == end).tolist()
        for start in [i for i, role in enumerate(roles) if role == "t" and (i == 0 or roles[i - 1] != "t")]:
            stop = next(i for i in range(start, len(roles)) if roles[i] != "t")
            marks = [i for i in range(start, len(ends)) if ends[i] and roles[i] == "g"]
            is_open = roles[stop : stop + 1] == ["."] or ends[stop]
            kinds["open" if is_open else "known"] += 1
            assert sum(ends[start:stop]) <= is_open
            if is_open:
                assert all(ends[i] and roles[i] == "." for i in range(stop, marks[0]))
                spare.append(marks[0] - stop + ends[stop - 1])
    assert set(spare) == set(range(5))
    assert 0.4 < kinds["open"] / sum(kinds.values()) < 0.6


@pytest.mark.parametrize("text", ["", "\n", "caf\u00e9"])
def test_texts_without_pieces_have_a_gap_of_some_tokens(codec, text):
    """A text that begins in the middle of a character cannot be tokenised again."""
    tokens = torch.tensor([[codec.encode("\u00e9")[-1], *codec.encode(text), codec.eos_token_id]])
    gaps = TextGaps(codec, kinds=["words"])
    for seed in range(20):
        batch = gaps.batch(tokens, torch.Generator().manual_seed(seed))
        assert batch.target.sum() >= 1
        assert batch.tokens[batch.given | batch.target].tolist() == tokens[0, :-1].tolist()


def test_a_share_of_the_batches_has_gaps(codec):
    tokens = torch.tensor([codec.encode(TEXT)])
    pattern = MaskingPattern(gaps=TextGaps(codec), gap_share=0.3)
    counts = [
        int(training_batch(tokens, 0.9, pattern, torch.Generator().manual_seed(i)).target.sum()) for i in range(200)
    ]
    whole = int(0.9 * tokens.shape[1])
    assert 40 < sum(count != whole for count in counts) < 80
    again = training_batch(tokens, 0.9, pattern, torch.Generator().manual_seed(7))
    assert int(again.target.sum()) == counts[7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_gaps": 1.5}, "mask_gaps must lie in"),
        ({"gap_kinds": ["chapters"]}, "chapters"),
        ({"gap_kinds": []}, "no gap_kinds"),
        ({"gap_tokens": 0}, "gap_tokens must be at least 1"),
        ({"gap_spare": -1}, "gap_spare must be at least 0"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        MaskingConfig(**options)
