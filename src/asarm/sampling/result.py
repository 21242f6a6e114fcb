"""What every sampler returns."""

from dataclasses import dataclass, field

import torch


@dataclass
class TraceStep:
    """One iteration of one row: what was drafted where, and what became of it.

    positions: places of the drafted tokens, ascending. drafts: the tokens proposed for them ([] for samplers that
    draft nothing). accepted: how many of the first of them were kept. added: (position, token) pairs decoded without
    having been accepted drafts: the replacement of a rejected draft, or what a sampler without drafts drew.
    """

    positions: list[int]
    drafts: list[int]
    accepted: int
    added: list[tuple[int, int]]


@dataclass
class SampleResult:
    """Filled texts and what they cost.

    tokens: [B, N] int64, the input with its targets filled.
    nfe: [B] int64, function evaluations the row took part in until it was done.
    targets: [B] int64, tokens filled.
    proposed, accepted: [B, k] int64, by index in the window: drafts judged (all before them were accepted), drafts
        accepted. k is 0 where nothing is drafted.
    seconds: wall time of the whole batch.
    trace: for each row the steps it took, or None when not asked for.
    """

    tokens: torch.Tensor
    nfe: torch.Tensor
    targets: torch.Tensor
    proposed: torch.Tensor
    accepted: torch.Tensor
    seconds: float
    trace: list[list[TraceStep]] | None = field(default=None, repr=False)
