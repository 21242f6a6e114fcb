"""Text with gaps (`___`) to tokens, and tokens back to text with the origin of every piece.

A tokenizer of these models keeps a word's leading space in the word's first token. So the space before a gap belongs
to the gap, and the text on its right keeps its own: `upon a time ___ lived` is `upon a time`, gap, ` lived`.
"""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch

from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError

GAP = re.compile(r"_{3,}([0-9]*)")
SENTENCEPIECE_SPACE = "\u2581"


class Span(NamedTuple):
    """A piece of decoded text and the label of the tokens that it came from."""

    text: str
    label: str


def parse_gaps(text: str, codec: TextCodec, default_gap_tokens: int, max_length: int | None = None) -> InfillBatch:
    """Tokens of a text in which runs of three or more underscores are gaps.

    Digits directly behind a gap give its tokens (`___5`), otherwise it has default_gap_tokens. One space before a gap
    belongs to the gap; where pairs of spaces are tokens (see `TextCodec`), only one that is not in a pair. max_length:
    the model's positions; None is no limit.

    Raises InputError for a text that is empty, has no gap, has a gap of 0 tokens, holds the mask token itself, or is
    longer than max_length.
    """
    if not text.strip():
        raise InputError("the text is empty: write one with gaps, such as 'Once upon a time ___ lived in a ___.'")
    # One group in the pattern: split gives left, digits, text, digits, ..., right.
    pieces = GAP.split(codec.write_white_space(text))
    if len(pieces) == 1:
        raise InputError(f"no ___ in the text: mark what to fill by ___ (or ___5 for 5 tokens), not {_shown(text)}")
    segments = [piece.removesuffix(" ") for piece in pieces[0:-1:2]] + [pieces[-1]]
    sizes = [int(digits) if digits else default_gap_tokens for digits in pieces[1::2]]
    if min(sizes) < 1:
        raise InputError(f"a gap of {min(sizes)} tokens in {_shown(text)}: a gap takes at least 1")
    encoded = [encode_segment(codec, segment, continues=index > 0) for index, segment in enumerate(segments)]
    if any(codec.mask_token_id in ids for ids in encoded):
        raise InputError(f"the text holds {codec.mask_token}: mark what to fill by ___ instead")
    length = sum(map(len, encoded)) + sum(sizes)
    if max_length is not None and length > max_length:
        raise InputError(
            f"the text has {length} tokens, {sum(sizes)} of them in gaps, but the model takes at most {max_length}: "
            "shorten the text or its gaps"
        )
    ids, filled = list(encoded[0]), [False] * len(encoded[0])
    for size, segment in zip(sizes, encoded[1:], strict=True):
        ids += [codec.mask_token_id] * size + segment
        filled += [True] * size + [False] * len(segment)
    target = torch.tensor(filled)
    return InfillBatch(torch.tensor(ids), ~target, target)


def encode_segment(codec: TextCodec, segment: str, continues: bool) -> list[int]:
    """Token ids of a segment, so that all segments and gaps joined decode to the text."""
    ids = codec.encode(segment)
    if not (continues and ids) or segment[0].isspace():
        return ids
    if not codec.tokenizer.convert_ids_to_tokens(ids[0]).startswith(SENTENCEPIECE_SPACE):
        return ids
    # SentencePiece tokenizers put a space before all that they are given. Behind a symbol that joins no piece there
    # is none.
    symbol = codec.encode("\u2603")
    joined = codec.encode("\u2603" + segment)
    return joined[len(symbol) :] if joined[: len(symbol)] == symbol else ids


def _shown(text: str, width: int = 60) -> str:
    """The text, or its beginning, in quotes on one line."""
    return repr(text if len(text) <= width else text[:width] + "...")


def label_spans(codec: TextCodec, tokens: Sequence[int], labels: Sequence[str]) -> list[Span]:
    """The decoded text cut where the label of the tokens changes; the spans joined are the whole decoded text.

    tokens, labels: N each. A character whose bytes lie on both sides of a cut goes to the right one.
    """
    tokens = list(tokens)
    whole = codec.decode(tokens)
    spans, start, end = [], 0, 0
    for label, run in groupby(labels):
        end += len(list(run))
        left = codec.decode(tokens[:end])
        cut = len(left if whole.startswith(left) else left.rstrip("\ufffd"))  # the bytes of half a character
        if cut > start:
            spans.append(Span(whole[start:cut], label))
            start = cut
    return spans


def text_after(codec: TextCodec, left: Sequence[int], ids: Sequence[int]) -> str:
    """The text of token ids behind others, where some tokenizers read a space that they drop at a text's beginning.

    Bytes that are no whole character show as the replacement character.
    """
    spans = label_spans(codec, [*left, *ids], ["left"] * len(left) + ["behind"] * len(ids))
    return "".join(span.text for span in spans if span.label == "behind")
