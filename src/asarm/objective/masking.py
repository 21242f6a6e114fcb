"""Which tokens of a training sequence are masked: how many (`MaskingConfig`), and where (`MaskingPattern`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from asarm.objective.text_gaps import PIECES, TextGaps
from asarm.tokenization.batch import PADDING, InfillBatch
from asarm.utils.config import check, check_at_least, check_choices, option


@dataclass
class MaskingConfig:
    """Which share of a sequence is masked in training: uniform in [low, high], which move linearly in the warm-up."""

    mask_start: float = option(0.15, "masking rate of the first step")
    mask_low: float = option(0.85, "lowest masking rate after the warm-up")
    mask_high: float = option(0.99, "highest masking rate after the warm-up")
    mask_warmup_steps: int = option(0, "steps in which the rates move from mask_start to [mask_low, mask_high]")
    mask_spans: float = option(0.0, "share of sequences whose masked tokens are one run, as gaps are; 0 is the paper's")
    mask_lines: float = option(0.0, "share of sequences whose masked tokens are whole lines, as gaps in code are")
    mask_gaps: float = option(0.0, "share of micro-batches whose texts have one to three gaps, whatever the rate is")
    gap_kinds: list[str] = option(
        list(PIECES),
        "what these gaps are: words, sentences, lines, characters; one named twice is twice as likely",
    )
    gap_tokens: int = option(40, "most tokens of such a gap")
    gap_spare: int = option(0, "most spare positions of gaps of unknown length, which are half of them; 0 for none")

    def __post_init__(self) -> None:
        for name in ("mask_start", "mask_low", "mask_high"):
            check(0 < getattr(self, name) < 1, f"{name} must lie in (0, 1), not {getattr(self, name)}")
        check(self.mask_low <= self.mask_high, f"mask_low={self.mask_low} is above mask_high={self.mask_high}")
        for name in ("mask_spans", "mask_lines", "mask_gaps"):
            check(0 <= getattr(self, name) <= 1, f"{name} must lie in [0, 1], not {getattr(self, name)}")
        shares = self.mask_spans + self.mask_lines
        check(shares <= 1, f"mask_spans and mask_lines are shares of the sequences: together at most 1, not {shares}")
        check_at_least(self, mask_warmup_steps=0, gap_tokens=1, gap_spare=0)
        check_choices("gap_kinds", self.gap_kinds, PIECES)
        check(bool(self.gap_kinds), "no gap_kinds given")

    def rate(self, step: int, quantile: float) -> float:
        """The masking rate of a step (0, 1, ...) at a quantile in [0, 1] of its range."""
        moved = min(1.0, step / self.mask_warmup_steps) if self.mask_warmup_steps else 1.0
        low = self.mask_start + moved * (self.mask_low - self.mask_start)
        high = self.mask_start + moved * (self.mask_high - self.mask_start)
        return low + quantile * (high - low)


@dataclass(frozen=True)
class MaskingPattern:
    """How the masked tokens are arranged, sequence by sequence: in one span, in whole lines, or anywhere.

    spans: share of the sequences whose masked tokens are one span.
    lines: share of the sequences whose masked tokens are whole lines.
    line_ends: tokens that end a line.
    gaps, gap_share: how gaps are made in a share of the batches, whose masking rate is not used.
    """

    spans: float = 0.0
    lines: float = 0.0
    line_ends: Sequence[int] = ()
    gaps: TextGaps | None = None
    gap_share: float = 0.0


ANYWHERE = MaskingPattern()


def training_batch(
    tokens: torch.Tensor, rate: float, pattern: MaskingPattern, generator: torch.Generator
) -> InfillBatch:
    """What is given and what is predicted of sequences [B, N] int64, with PADDING after the end of shorter ones.

    The result is on their device, and longer than they are where gaps of unknown length make it so.
    """
    if pattern.gaps and float(torch.rand((), generator=generator)) < pattern.gap_share:
        return pattern.gaps.batch(tokens, generator).to(tokens.device)
    target = training_targets(tokens, rate, pattern, generator).to(tokens.device)
    return InfillBatch(tokens.clamp(min=0), ~target & (tokens != PADDING), target)


def training_targets(
    tokens: torch.Tensor, rate: float, pattern: MaskingPattern, generator: torch.Generator
) -> torch.Tensor:
    """Targets of a batch of sequences: [B, N] bool, on the CPU.

    tokens: [B, N] int64, PADDING after the end of shorter ones. Sequences of the same length have as many targets.
    """
    target = random_targets(tokens, rate, generator)
    if pattern.spans + pattern.lines == 0:
        return target
    spans = span_targets(tokens, rate, generator)
    kind = torch.rand(len(tokens), 1, generator=generator)
    target = torch.where(kind < pattern.spans, spans, target)
    if pattern.lines == 0:
        return target
    lines = line_targets(tokens, rate, pattern.line_ends, generator)
    return torch.where((kind >= pattern.spans) & (kind < pattern.spans + pattern.lines), lines, target)


def padding(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where tokens [B, N] are padding, [B, N] bool, and the lengths of the sequences, [B, 1] int64, both on the CPU."""
    absent = (tokens == PADDING).cpu()
    return absent, tokens.shape[1] - absent.sum(1, keepdim=True)


def target_count(lengths: torch.Tensor, rate: float) -> torch.Tensor:
    """How many tokens of sequences of some lengths [B, 1] int64 are masked: floor(rate * length), but at least 1."""
    return (lengths.double() * rate).long().clamp(min=1)


def random_targets(tokens: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    """`target_count` target positions a row, chosen uniformly: [B, N] bool. tokens: as in `training_targets`."""
    absent, lengths = padding(tokens)
    luck = torch.rand(tokens.shape, generator=generator).masked_fill(absent, torch.inf)
    return luck.argsort(1).argsort(1) < target_count(lengths, rate)


def span_targets(tokens: torch.Tensor, rate: float, generator: torch.Generator) -> torch.Tensor:
    """As many target positions as `random_targets`, in one span that begins anywhere: [B, N] bool."""
    _, lengths = padding(tokens)
    count = target_count(lengths, rate)
    starts = [torch.randint(0, most + 1, (1,), generator=generator) for most in (lengths - count)[:, 0].tolist()]
    start, positions = torch.stack(starts), torch.arange(tokens.shape[1])
    return (positions >= start) & (positions < start + count)


def line_targets(
    tokens: torch.Tensor, rate: float, line_ends: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    """As many target positions as `random_targets`, in whole lines drawn at random: [B, N] bool.

    tokens: as in `training_targets`. line_ends: tokens that end a line. Every other line is drawn first, so that up to
    a rate of about a half gaps are single lines. Of the line drawn last only the end is masked, since gaps end where
    lines do.
    """
    absent, lengths = padding(tokens)
    ends = torch.isin(tokens, torch.tensor(line_ends, device=tokens.device)).cpu()
    line = ends.cumsum(1) - ends.long()  # [B, N], the number of each token's line
    parity = torch.randint(0, 2, (len(tokens), 1), generator=generator)  # of the lines that are drawn first
    luck = torch.rand(tokens.shape, generator=generator).gather(1, line)  # [B, N], the same within a line
    turn = (luck + (line % 2 != parity)).masked_fill(absent, torch.inf)
    backwards = turn.flip(1).argsort(dim=1, stable=True)  # [B, N], within a line its end comes first
    return (backwards.argsort(1) < target_count(lengths, rate)).flip(1)
