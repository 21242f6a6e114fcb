"""Gaps filled in batches by an any-subset model, with the length given or searched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from asarm.evals.infilling.example import InfillExample
from asarm.evals.infilling.gap_length import choose
from asarm.objective.loss import log_prob
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import padded_parts
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import text_after

PREFIX, GAP, SUFFIX = range(3)


Row = tuple[InfillExample, int]  # a text, and how many tokens its gap takes


@dataclass
class InfillResult:
    """A filled gap: its text (white space at the ends and all) and tokens, and what it cost.

    drawn: tokens drawn, those of proposals that were not chosen among them. cut: tokens of prefix and suffix that were
    left out, for the model takes no more. nfe: function evaluations, those for
    scores among them. proposed, accepted: drafts judged and kept, by index in the window. scores: of each length that
    a search proposed, nats a token.
    """

    text: str
    tokens: list[int]
    drawn: int
    nfe: int
    proposed: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    cut: int = 0


def lay_out(
    stories: Sequence[InfillExample], gaps: Sequence[list[int]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts with these tokens in their gaps, as a batch: tokens [B, N] int64, and part [B, N] int64, which says of
    each place whether it is PREFIX, GAP, SUFFIX or PADDING."""
    rows = [(story.prefix_tokens, gap, story.suffix_tokens) for story, gap in zip(stories, gaps, strict=True)]
    return padded_parts(rows, device)


def fill(
    model, codec: TextCodec, rows: Sequence[Row], config: SamplerConfig, seeds: Sequence[int], see_suffix: bool = True
) -> list[InfillResult]:
    """Each gap filled once. see_suffix: without it, the model goes on from the prefix and knows of nothing behind."""
    stories, lengths = zip(*rows, strict=True)
    tokens, part = lay_out(stories, [[codec.mask_token_id] * length for length in lengths], model.device)
    given = (part == PREFIX) | (part == SUFFIX) if see_suffix else part == PREFIX
    result = sample(model, tokens, given, part == GAP, config, seeds)
    filled = []
    for row, length in enumerate(lengths):
        gap = result.tokens[row][part[row] == GAP].tolist()
        text = text_after(codec, stories[row].prefix_tokens, gap)
        judged, kept = result.proposed[row].tolist(), result.accepted[row].tolist()
        filled.append(InfillResult(text, gap, length, int(result.nfe[row]), judged, kept))
    return filled


def scores(model, stories: Sequence[InfillExample], gaps: Sequence[list[int]]) -> list[float]:
    """Exact joint log-density of gap and suffix given the prefix, over their number of tokens, of each story: nats."""
    tokens, part = lay_out(stories, gaps, model.device)
    behind = (part == GAP) | (part == SUFFIX)
    return (log_prob(model, tokens, part == PREFIX, behind).sum(1) / behind.sum(1)).tolist()


def search(
    model,
    codec: TextCodec,
    stories: Sequence[InfillExample],
    proposals: Sequence[list[int]],
    config: SamplerConfig,
    seed: Callable[[InfillExample, int], int],
    batch_size: int,
) -> list[InfillResult]:
    """Each gap filled once with each of its proposed lengths; the text that `choose` prefers is kept.

    seed: of a story filled with so many tokens. batch_size: fillings that are drawn together.
    """
    rows = [(place, length) for place, lengths in enumerate(proposals) for length in lengths]
    rows.sort(key=lambda row: stories[row[0]].context_length + row[1])  # like lengths together
    tried = [{} for _ in stories]  # for each story, {length: (filling, score)}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        some = [(stories[place], length) for place, length in batch]
        filled = fill(model, codec, some, config, [seed(*row) for row in some])
        marks = scores(model, [story for story, _ in some], [one.tokens for one in filled])
        for (place, length), one, mark in zip(batch, filled, marks, strict=True):
            tried[place][length] = (one, mark)
    return [_best(one) for one in tried]


def _best(tried: dict[int, tuple[InfillResult, float]]) -> InfillResult:
    """The chosen one of all fillings, with what all of them cost."""
    marks = {length: mark for length, (_, mark) in tried.items()}
    best, every = tried[choose(marks)][0], [one for one, _ in tried.values()]
    return InfillResult(
        best.text,
        best.tokens,
        drawn=sum(one.drawn for one in every),
        nfe=sum(one.nfe + 1 for one in every),  # one for the score
        proposed=[sum(counts) for counts in zip(*(one.proposed for one in every), strict=True)],
        accepted=[sum(counts) for counts in zip(*(one.accepted for one in every), strict=True)],
        scores=dict(sorted(marks.items())),
    )
