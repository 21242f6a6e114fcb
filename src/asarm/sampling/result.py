"""`SampleResult`, which every sampler returns: filled sequences, their costs, and a trace on request."""

from dataclasses import dataclass, field

import numpy as np
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

    def count(
        self,
        rows: np.ndarray,
        size: np.ndarray,
        accepted: np.ndarray,
        evaluations: np.ndarray | int,
        left_out: np.ndarray | int,
    ) -> None:
        """Count a step of some rows: of `size` drafts the first `accepted` were accepted. All are [rows] int64.

        evaluations: network function evaluations that it took. left_out: targets that an ended gap leaves undrawn.
        """
        column = np.arange(self.proposed.shape[1])
        self.nfe.numpy()[rows] += evaluations
        self.targets.numpy()[rows] -= left_out
        self.proposed.numpy()[rows] += (column <= accepted[:, None]) & (column < size[:, None])
        self.accepted.numpy()[rows] += column < accepted[:, None]
