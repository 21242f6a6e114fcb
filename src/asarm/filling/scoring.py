"""Exact log-likelihoods of what stands in the gaps of texts, given the rest."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asarm.filling.infiller import Infiller, padded_together
from asarm.objective.loss import log_prob
from asarm.tokenization.batch import InfillBatch, Role
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import encode_segment, split_gaps
from asarm.tokenization.transforms import Transforms
from asarm.utils.errors import InputError


@dataclass
class Score:
    """log_prob: exact joint log-density (nats) of all filled tokens given the others. tokens: how many they are."""

    log_prob: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """Of a token: exp of the mean negative log-density."""
        mean = -self.log_prob / self.tokens
        return math.exp(mean) if mean < 700 else math.inf


def parts_of(given: str, filled: str) -> list[str]:
    """What stands in the gaps of a text (`given`, with `___`) when it is filled: the space before a gap included.

    Where a text can be cut in several ways, each gap in turn takes as little as it can. Raises InputError if it is not
    the same text.
    """
    pieces, digits = split_gaps(given)
    if not digits:
        raise InputError(f"no ___ in {given[:60]!r}: mark what was filled")
    pieces = [piece.removesuffix(" ") for piece in pieces[:-1]] + pieces[-1:]
    if not (filled.startswith(pieces[0]) and filled.endswith(pieces[-1])):
        raise InputError(f"{filled[:60]!r} does not begin and end as {given[:60]!r}")
    parts, start, stop = [], len(pieces[0]), len(filled) - len(pieces[-1])
    for piece in pieces[1:-1]:
        found = filled.find(piece, start, stop) if piece else start
        if found < 0:
            raise InputError(f"{filled[:60]!r} is not {given[:60]!r} with its gaps filled: it has no {piece[:60]!r}")
        parts.append(filled[start:found])
        start = found + len(piece)
    if start > stop:
        raise InputError(f"{filled[:60]!r} is not {given[:60]!r} with its gaps filled: it is too short")
    return [*parts, filled[start:stop]]


def candidate_parts(given: str, candidate: str) -> list[str]:
    """As `parts_of`, of a candidate for the gaps; for several gaps its parts are separated by ___."""
    pieces, digits = split_gaps(given)
    parts = split_gaps(candidate)[0]
    if len(parts) != len(digits):
        raise InputError(f"{candidate[:60]!r} has {len(parts)} parts, separated by ___, for {len(digits)} gaps")
    if len(parts) > 1:
        parts = [part.strip(" ") for part in parts]
    return [f" {part}" if part and piece.endswith(" ") else part for piece, part in zip(pieces, parts, strict=False)]


def filled_batch(codec: TextCodec, given: str, parts: Sequence[str], capacity: int = 0) -> InfillBatch:
    """A text with something in its gaps, which are targets, as a batch of one.

    capacity: 0, or the most tokens of each gap, whose end the model then has to write, too (see
    `asarm.tokenization.open_gaps`). Raises InputError for a gap with nothing in it, unless the model ends gaps, for one
    with more tokens than the capacity, and for tokens that stand in no text.
    """
    pieces = split_gaps(given)[0]
    pieces = [piece.removesuffix(" ") for piece in pieces[:-1]] + pieces[-1:]
    before = encode_segment(codec, pieces[0], continues=False)
    rows, roles, text = [before], [Role.GIVEN], [*before]
    for part, piece in zip(parts, pieces[1:], strict=True):
        ids, after = (encode_segment(codec, one, continues=True) for one in (part, piece))
        text += ids + after
        if capacity and codec.gap_end_token_id is not None:
            if len(ids) > capacity:
                raise InputError(
                    f"{part[:60]!r} has {len(ids)} tokens, more than the gap's {capacity}: raise gap_tokens"
                )
            ids = ids + [codec.gap_end_token_id] * (capacity - len(ids))
            after = [codec.gap_end_token_id, *after]
        if not ids:
            raise InputError(f"a gap of {given[:60]!r} has nothing in it: fill it, or take it out")
        rows += [ids, after]
        roles += [Role.TARGET, Role.GIVEN]
    if reserved := codec.reserved_in(text):
        raise InputError(f"the text holds {reserved}, which stands in no text: take it out")
    return InfillBatch.from_parts([rows], roles)


def scores_of(
    infiller: Infiller, batches: Sequence[InfillBatch], transforms: Transforms, batch_size: int
) -> Iterator[Score]:
    """The score of each batch of one, as they come. Raises InputError for texts that are too long for the model."""
    longest = getattr(infiller.model.config, "n_positions", None)
    for batch in batches:
        if longest is not None and batch.tokens.shape[1] > longest:
            raise InputError(f"a text has {batch.tokens.shape[1]} tokens, but the model takes at most {longest}")
    gap_end = infiller.model.config.gap_end_token_id
    for start in range(0, len(batches), batch_size):
        together = padded_together(batches[start : start + batch_size]).to(infiller.model.device)
        found = log_prob(infiller.model, *together, transforms=transforms).double().sum(1)
        is_text = together.target if gap_end is None else together.target & (together.tokens != gap_end)
        for total, count in zip(found.tolist(), is_text.sum(1).tolist(), strict=True):
            yield Score(total, max(count, 1))
