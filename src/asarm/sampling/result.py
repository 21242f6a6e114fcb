"""`SampleResult`, which every sampler returns: filled sequences, their costs, and a trace on request."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

Evaluations = Callable[[np.ndarray], np.ndarray | int]


def one_evaluation(size: np.ndarray) -> int:
    """The network function evaluations of a step, whatever the numbers of drafts."""
    return 1


@dataclass
class TraceStep:
    """One iteration of one row.

    positions: of the drafted tokens, ascending. drafts: the tokens proposed there ([] for samplers without drafts); an
    alternative that was kept stands in for its draft.
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
        included, and drafts accepted, or an alternative to them. k is 0 where nothing is drafted.
    windows: [B, k + 1] int64, how many windows had 0, 1, ... k drafts.
    seconds: wall time of the whole batch.
    trace: the steps of each row, or None when not asked for.
    """

    tokens: torch.Tensor
    nfe: torch.Tensor
    targets: torch.Tensor
    proposed: torch.Tensor
    accepted: torch.Tensor
    windows: torch.Tensor
    seconds: float
    trace: list[list[TraceStep]] | None = field(default=None, repr=False)

    def count(
        self,
        rows: np.ndarray,
        size: np.ndarray,
        verified: np.ndarray,
        accepted: np.ndarray,
        evaluations: np.ndarray | int,
        left_out: np.ndarray | int,
    ) -> None:
        """Count a step of some rows: of `size` drafts, `verified` up to the first rejection, the first `accepted` were
        accepted. All are [rows] int64.

        evaluations: network function evaluations that it took. left_out: targets that an ended gap leaves undrawn.
        """
        column = np.arange(self.proposed.shape[1])
        self.nfe.numpy()[rows] += evaluations
        self.targets.numpy()[rows] -= left_out
        self.proposed.numpy()[rows] += column < verified[:, None]
        self.accepted.numpy()[rows] += column < accepted[:, None]
        self.windows.numpy()[rows, size] += 1


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


def new_result(tokens: torch.Tensor, targets: torch.Tensor, window: int, trace: TraceOption) -> SampleResult:
    """The result of B rows before the first step. tokens: [B, N], targets: [B] int64. window: drafts, at most."""
    rows = len(targets)
    return SampleResult(
        tokens=tokens,
        nfe=torch.zeros(rows, dtype=torch.long),
        targets=targets,
        proposed=torch.zeros(rows, window, dtype=torch.long),
        accepted=torch.zeros(rows, window, dtype=torch.long),
        windows=torch.zeros(rows, window + 1, dtype=torch.long),
        seconds=0.0,
        trace=new_traces(trace, rows),
    )


def record_steps(
    trace: list[list[TraceStep]],
    rows: np.ndarray,
    ranked: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    drafts: torch.Tensor,
    outcome: list[torch.Tensor],
    added: torch.Tensor,
    gap_end: int | None,
) -> None:
    """Append a step to the trace of each row [B], once its tokens are decided.

    ranked: positions and tokens [B, R] in rank order, and how many are decided [B]. drafts: [B, W] int64. outcome: as
    `DecodeState.commit` returns it. added: [B] bool, whether a row got a token after its accepted drafts.
    """
    size, accepted, _, _, *rest = (part.tolist() for part in outcome)
    for row, (draft, has_next) in enumerate(zip(drafts.tolist(), added.tolist(), strict=True)):
        kept, after = accepted[row], accepted[row] + has_next
        first = int(ranked[2][row]) - after
        positions, tokens = (part[row, first:].tolist() for part in ranked[:2])
        pairs = list(zip(positions[kept:after], tokens[kept:after], strict=True))
        if rest and gap_end is not None:
            pairs += [(position, gap_end) for position in positions[after : after + rest[0][row]]]
        trace[int(rows[row])].append(TraceStep(positions[: size[row]], draft[: size[row]], kept, pairs))
