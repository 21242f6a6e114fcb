"""`SampleResult`, which every sampler returns: filled sequences, their costs, and a trace on request."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


@dataclass
class TraceStep:
    """One iteration of one row.

    positions: of the drafted tokens, ascending. drafts: the tokens proposed there ([] for samplers without drafts).
    accepted: how many of the first of them were kept. added: (position, token) pairs decoded by other means than an
    accepted draft: the replacement of a rejected one, what a sampler without drafts drew, the rest of a gap that ended.
    """

    positions: list[int]
    drafts: list[int]
    accepted: int
    added: list[tuple[int, int]]


@dataclass
class SampleResult:
    """Filled sequences and their costs.

    tokens: [B, N] int64, the input with its targets filled; after the end of a gap's text with `gap_end`.
    nfe: [B] int64, network function evaluations that the row took part in until it was finished.
    targets: [B] int64, tokens drawn: all targets but those after the end of a gap's text.
    proposed, accepted: [B, k] int64, counts by column of the window: drafts up to the first rejection, that one
        included, and drafts accepted. k is 0 where nothing is drafted.
    seconds: wall time of the whole batch.
    trace: the steps of each row, or None when not asked for.
    """

    tokens: torch.Tensor
    nfe: torch.Tensor
    targets: torch.Tensor
    proposed: torch.Tensor
    accepted: torch.Tensor
    seconds: float
    trace: list[list[TraceStep]] | None = field(default=None, repr=False)


# Whether to keep all steps; or a function that gets each as it comes, with the index of its row.
TraceOption = bool | Callable[[int, TraceStep], object]


class ReportedSteps(list[TraceStep]):
    """The steps of one row; a function gets each that is appended."""

    def __init__(self, row: int, report: Callable[[int, TraceStep], object]):
        super().__init__()
        self.row, self.report = row, report

    def append(self, step: TraceStep) -> None:
        """As in list."""
        super().append(step)
        self.report(self.row, step)


def new_traces(trace: TraceOption, rows: int) -> list[list[TraceStep]] | None:
    """Empty traces of so many rows, or None if none are wanted."""
    if callable(trace):
        return [ReportedSteps(row, trace) for row in range(rows)]
    return [[] for _ in range(rows)] if trace else None
