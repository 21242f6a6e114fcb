"""Text with gaps (`___`) to token ids, and token ids back to text in labelled spans.

A tokenizer of these models keeps a word's leading space in the word's first token. So the space before a gap belongs
to the gap, and the text after it keeps its own: `upon a time ___ lived` is `upon a time`, gap, ` lived`.

A backslash before underscores makes them text (`\\___` is `___`), and one between a gap and a digit makes the digit
text (`___\\5` is a gap, then `5`). Two are a backslash: `\\\\___` is a backslash, then a gap. Others are as they are.
"""

import re
from collections.abc import Sequence
from itertools import chain, groupby
from typing import NamedTuple

from asarm.tokenization.batch import InfillBatch, Role
from asarm.tokenization.codec import TextCodec
from asarm.utils.errors import InputError

# Backslashes before, underscores, digits, and a backslash that keeps digits apart from the gap.
GAP = re.compile(r"(\\*)_{3,}([0-9]*)(?:\\(?=\\*[0-9]))?")
SENTENCEPIECE_SPACE = "\u2581"
MOST_DIGITS = 9


class Span(NamedTuple):
    """A piece of decoded text and the label of its tokens."""

    text: str
    label: str


def split_gaps(text: str) -> tuple[list[str], list[str]]:
    """The texts around the gaps, one more than there are gaps, and the digits after each gap ("" for none)."""
    segments, digits, segment, end = [], [], "", 0
    for match in GAP.finditer(text):
        slashes, number = match.groups()
        segment += text[end : match.start()] + slashes[: len(slashes) // 2]
        end = match.end()
        if len(slashes) % 2:
            segment += text[match.start() + len(slashes) : end]
            continue
        segments.append(segment)
        digits.append(number)
        segment = ""
    return [*segments, segment + text[end:]], digits


def escape_gaps(text: str) -> str:
    """The text such that it means itself where gaps are read: `split_gaps` finds none in it, and gives the text.

    If a gap is to follow it, double the backslashes at its end; if one comes before, write a backslash before digits
    that it begins with.
    """
    return re.sub(r"(\\*)(_{3,})", r"\1\1\\\2", text)


def parse_gaps(
    text: str, codec: TextCodec, default_gap_tokens: int, max_length: int | None = None, open_gaps: bool = False
) -> InfillBatch:
    """A text in which runs of three or more underscores are gaps, as a batch of one: [1, N], mask tokens in the gaps.

    Digits right after a gap give its length in tokens (`___5`); otherwise it is default_gap_tokens. One space before a
    gap belongs to the gap; where pairs of spaces are tokens (see `TextCodec`), only one that is not in a pair. For
    underscores and digits that are text, see the top of this module.
    max_length: the most tokens that the model takes; None is no limit. open_gaps: gaps without digits are of unknown
    length, of default_gap_tokens at most (see `asarm.tokenization.open_gaps`), for codecs with such a token.

    Raises InputError for a text that is empty, has no gap, has a gap of 0 tokens, holds the mask token or the one that
    ends gaps, or is longer than max_length; for a gap with digits just before one of unknown length; and for gaps of
    unknown length if the codec has no token that ends them.
    """
    if not text.strip():
        raise InputError("the text is empty: write one with gaps, such as 'Once upon a time ___ lived in a ___.'")
    pieces, digits = split_gaps(codec.write_white_space(text))
    if not digits:
        raise InputError(f"no ___ in the text: mark what to fill by ___ (or ___5 for 5 tokens), not {_shown(text)}")
    segments = [piece.removesuffix(" ") for piece in pieces[:-1]] + pieces[-1:]
    sizes = [gap_size(number, default_gap_tokens, text) for number in digits]
    if min(sizes) < 1:
        raise InputError(f"a gap of {min(sizes)} tokens in {_shown(text)}: a gap takes at least 1")
    encoded = [encode_segment(codec, segment, continues=index > 0) for index, segment in enumerate(segments)]
    if reserved := codec.reserved_in([*chain(*encoded)]):
        raise InputError(f"the text holds {reserved}: mark what to fill by ___ instead")
    if open_gaps:
        if codec.gap_end_token_id is None:
            raise InputError("this tokenizer has no token that ends a gap: give the lengths of gaps, such as ___5")
        _mark_open_gaps(digits, encoded[1:], codec.gap_end_token_id, text)
    length = sum(map(len, encoded)) + sum(sizes)
    if max_length is not None and length > max_length:
        raise InputError(
            f"the text has {length} tokens, {sum(sizes)} of them in gaps, but the model takes at most {max_length}: "
            "shorten the text or its gaps"
        )
    gaps = [[codec.mask_token_id] * size for size in sizes]
    parts = [*encoded[:1], *chain.from_iterable(zip(gaps, encoded[1:], strict=True))]  # text, gap, text, ..., text
    roles = [Role.GIVEN, *[Role.TARGET, Role.GIVEN] * len(gaps)]
    return InfillBatch.from_parts([parts], roles)


def gap_size(digits: str, default: int, text: str) -> int:
    """Tokens of a gap by the digits after it. Raises InputError for a number that no text has tokens for."""
    if len(digits) > MOST_DIGITS:
        raise InputError(f"a gap of {digits[:MOST_DIGITS]}... tokens in {_shown(text)}: no model takes so many")
    return int(digits) if digits else default


def _mark_open_gaps(digits: Sequence[str], after: Sequence[list[int]], gap_end: int, text: str) -> None:
    """Put the token that ends gaps after each gap without digits. after: token ids of the text after each gap."""
    for index, (size, ids) in enumerate(zip(digits, after, strict=True)):
        if not size:
            ids.insert(0, gap_end)
        elif not ids and "" in digits[index + 1 : index + 2]:  # one gap to the model
            raise InputError(
                f"no text between ___{size} and the ___ after it in {_shown(text)}: join them, or write some"
            )


def encode_segment(codec: TextCodec, segment: str, continues: bool) -> list[int]:
    """Token ids of a segment between gaps, such that all segments and gaps joined decode to the text.

    continues: other text or a gap comes before the segment.
    """
    ids = codec.encode(segment)
    if not (continues and ids) or segment[0].isspace():
        return ids
    if not str(codec.tokenizer.convert_ids_to_tokens(ids[0])).startswith(SENTENCEPIECE_SPACE):
        return ids
    # SentencePiece tokenizers put a space before whatever they are given, but not between a symbol that is part of no
    # longer piece and what follows it.
    symbol = codec.encode("\u2603")
    joined = codec.encode("\u2603" + segment)
    return joined[len(symbol) :] if joined[: len(symbol)] == symbol else ids


def _shown(text: str, width: int = 60) -> str:
    """The text, or its beginning, in quotes on one line."""
    return repr(text if len(text) <= width else text[:width] + "...")


def label_spans(codec: TextCodec, tokens: Sequence[int], labels: Sequence[str]) -> list[Span]:
    """The decoded text, cut where the label of the tokens changes. The spans joined are the whole decoded text.

    tokens, labels: N each. A character whose bytes are on both sides of a cut belongs to the span after it.
    """
    tokens = list(tokens)
    whole = codec.decode(tokens)
    spans: list[Span] = []
    start = end = 0
    for label, run in groupby(labels):
        end += len(list(run))
        left = codec.decode(tokens[:end])
        cut = len(left if whole.startswith(left) else left.rstrip("\ufffd"))  # without an incomplete character
        if cut > start:
            spans.append(Span(whole[start:cut], label))
            start = cut
    return spans


def text_after(codec: TextCodec, left: Sequence[int], ids: Sequence[int]) -> str:
    """The text of token ids that follow others. Alone, some tokenizers would drop the space that it begins with.

    An incomplete UTF-8 sequence shows as the replacement character.
    """
    spans = label_spans(codec, [*left, *ids], ["left"] * len(left) + ["after"] * len(ids))
    return "".join(span.text for span in spans if span.label == "after")
