"""Gaps of unknown length: the model says where a gap's text ends, by the token `gap_end`.

A gap is all targets between two given tokens. It is of unknown length if the given token after it is `gap_end`: that is
how a model is told, in training and in use. Its number of targets is then the most tokens that its text may have. The
model may write `gap_end` at any of them, and what comes after the first one in the gap is absent: neither given nor a
target. In all other targets `gap_end` has probability 0.

Shapes: B rows, N positions, R ranks.
"""

from collections.abc import Iterable

import torch

from asarm.tokenization.batch import InfillBatch


def _next_given(given: torch.Tensor) -> torch.Tensor:
    """The first given position at or after each one, N where there is none: [B, N] bool -> [B, N] int64."""
    positions = torch.arange(given.shape[1], device=given.device).expand(given.shape)
    return positions.masked_fill(~given, given.shape[1]).flip(1).cummin(1).values.flip(1)


def open_targets(batch: InfillBatch, gap_end: int | None) -> torch.Tensor:
    """The targets of gaps of unknown length: [B, N] bool. gap_end: None for models without such a token."""
    if gap_end is None:
        return torch.zeros_like(batch.target)
    after = _next_given(batch.given)
    token = batch.tokens.gather(1, after.clamp(max=after.shape[1] - 1))
    return batch.target & (after < after.shape[1]) & (token == gap_end)


def gap_sizes_from(batch: InfillBatch) -> torch.Tensor:
    """How many targets the gap of each target has from that one on, itself included: [B, N] int64; 0 elsewhere."""
    until = batch.target.long().cumsum(1)  # [B, N], targets at or before each position
    last = (_next_given(batch.given) - 1).clamp(min=0)
    return torch.where(batch.target, until.gather(1, last) - until + 1, 0)


def later_in_gap(marked: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    """Which positions have a marked one before them with nothing given between: [B, N] bool each."""
    positions = torch.arange(marked.shape[1], device=marked.device).expand(marked.shape)
    last_given = positions.masked_fill(~given, -1).cummax(1).values
    last_marked = positions.masked_fill(~marked, -1).cummax(1).values.roll(1, 1)  # before each position
    last_marked[:, :1] = -1
    return ~given & (last_marked > last_given)


def exclude_gap_end(logits: torch.Tensor, may_end: torch.Tensor, gap_end: int | None) -> torch.Tensor:
    """The logits [B, Q, V], in place, with -inf for gap_end where a text may not end. may_end: [B, Q] bool."""
    if gap_end is not None:
        logits[..., gap_end].masked_fill_(~may_end, float("-inf"))
    return logits


def take_out(count: torch.Tensor, decoded: torch.Tensor, width: int, parts: Iterable[torch.Tensor]) -> None:
    """Take the count [B] ranks after the first decoded [B] out of some tensors [B, R], in place: the later ones up to
    `width` move up, and they come last of these."""
    parts = list(parts)
    ranks = torch.arange(parts[0].shape[1], device=count.device)
    taken = (ranks >= decoded[:, None]) & (ranks < (decoded + count)[:, None])  # [B, R]
    order = (taken | (ranks >= width)).byte().argsort(dim=1, stable=True)
    for part in parts:
        part.copy_(part.gather(1, order))
