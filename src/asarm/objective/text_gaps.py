"""Gaps in training texts as people leave them: words, sentences, lines, and pieces that begin and end inside words.

A text is cut where its gaps begin and end, and the pieces are tokenised apart, as they are when a text with gaps is
filled. A gap may be of unknown length: then it has more positions than its text has tokens, a `gap_end` token after the
text is a target, too, and one at the end of the gap is given, which tells the model that it is to say where the text
ends. The positions between the two are absent, and so is what they would cost.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from asarm.tokenization.batch import PADDING, InfillBatch
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import encode_segment

PIECES = {
    "words": re.compile(r"\s*\S+"),
    "sentences": re.compile(r"\s*[^\s.!?][^.!?\n]*[.!?]+[\"')\]]*"),
    "lines": re.compile(r"[^\n]*\S[^\n]*(\n|$)"),
    "characters": re.compile(r".", re.DOTALL),
}
MOST_PIECES = {"words": 12, "sentences": 2, "lines": 3, "characters": 120}  # of a gap
MOST_GAPS = 3
OPEN_SHARE = 0.5  # of the gaps, if any are of unknown length
ATTEMPTS = 8
ABSENT, GIVEN, TARGET = 0, 1, 2

Row = tuple[list[int], list[int]]  # tokens of a sequence, and the role of each


@dataclass(frozen=True)
class TextGaps:
    """How gaps are made.

    kinds: of `PIECES`, equally likely. most_tokens: of the text of a gap. most_spare: positions of a gap of unknown
    length beyond its text, from 0 on equally likely; 0 if all gaps are of known length.
    """

    codec: TextCodec
    kinds: Sequence[str] = tuple(PIECES)
    most_tokens: int = 40
    most_spare: int = 0

    def batch(self, tokens: torch.Tensor, generator: torch.Generator) -> InfillBatch:
        """Sequences with one to three gaps each, on the CPU.

        tokens: [B, N] int64, PADDING after the end of shorter ones; an eos token at the end is left out. The result has
        at least one target a row, and may be longer than N.
        """
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        rows = [self.row(row[row != PADDING].tolist(), rng) for row in tokens.cpu()]
        length = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows])
        roles = torch.tensor([roles + [ABSENT] * (length - len(roles)) for _, roles in rows])
        return InfillBatch(ids, roles == GIVEN, roles == TARGET)

    def row(self, ids: list[int], rng: np.random.Generator) -> Row:
        """One sequence with gaps."""
        if len(ids) > 1 and ids[-1] == self.codec.eos_token_id:
            ids = ids[:-1]
        row: Row = ([], [])
        text, end = self.codec.decode(ids), 0
        spans = self.spans(text, rng) if "\ufffd" not in text else []
        if not spans:
            return self.run_of_tokens(ids, rng)
        for start, stop in spans:
            self.add(row, self.encode(text, end, start), GIVEN)
            self.add_gap(row, self.encode(text, start, stop), rng)
            end = stop
        self.add(row, self.encode(text, end, len(text)), GIVEN)
        return row

    def spans(self, text: str, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Where gaps are, from left to right: some that do not touch, or none if none of a few attempts succeeds."""
        found: list[tuple[int, int]] = []
        count = 1 + int(rng.integers(MOST_GAPS)) * int(rng.integers(2))  # half of the texts have one gap only
        for _ in range(ATTEMPTS):
            span = self.span(text, rng)
            if span and all(span[1] < start or stop < span[0] for start, stop in found):
                found.append(span)
            if len(found) == count:
                break
        return sorted(found)

    def span(self, text: str, rng: np.random.Generator) -> tuple[int, int] | None:
        """Some pieces of one kind in a row; None if the text has no such pieces, or they have too many tokens."""
        kind = self.kinds[int(rng.integers(len(self.kinds)))]
        pieces = [piece.span() for piece in PIECES[kind].finditer(text)]
        if not pieces:
            return None
        first = int(rng.integers(len(pieces)))
        last = min(first + int(rng.integers(MOST_PIECES[kind])), len(pieces) - 1)
        start, stop = pieces[first][0], pieces[last][1]
        return (start, stop) if 0 < len(self.encode(text, start, stop)) <= self.most_tokens else None

    def encode(self, text: str, start: int, stop: int) -> list[int]:
        return encode_segment(self.codec, text[start:stop], continues=start > 0) if stop > start else []

    def add_gap(self, row: Row, ids: list[int], rng: np.random.Generator) -> None:
        """A gap with this text, of known length or not."""
        self.add(row, ids, TARGET)
        end = self.codec.gap_end_token_id
        if self.most_spare == 0 or end is None or rng.random() >= OPEN_SHARE:
            return
        spare = int(rng.integers(self.most_spare + 1))
        self.add(row, [end] * min(spare, 1), TARGET)
        self.add(row, [end] * max(spare - 1, 0), ABSENT)
        self.add(row, [end], GIVEN)

    def run_of_tokens(self, ids: list[int], rng: np.random.Generator) -> Row:
        """A sequence with one gap of some tokens in a row, whatever their text is."""
        count = 1 + int(rng.integers(min(self.most_tokens, len(ids))))
        start = int(rng.integers(len(ids) - count + 1))
        row: Row = (ids[:start], [GIVEN] * start)
        self.add_gap(row, ids[start : start + count], rng)
        self.add(row, ids[start + count :], GIVEN)
        return row

    @staticmethod
    def add(row: Row, ids: list[int], role: int) -> None:
        row[0].extend(ids)
        row[1].extend([role] * len(ids))
