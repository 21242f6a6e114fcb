"""Infilling with an any-subset model: gaps filled in batches, with the length given or searched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from asarm.evals.infilling.example import InfillExample
from asarm.evals.infilling.gap_length import choose
from asarm.models.compiled import DecodingModel
from asarm.objective.loss import log_prob
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch, Role
from asarm.tokenization.codec import TextCodec
from asarm.tokenization.gaps import text_after

Row = tuple[InfillExample, int]  # an example, and how many tokens its gap takes (at most, if its length is unknown)


@dataclass
class InfillResult:
    """A filled gap: its text (white space at the ends included) and tokens, and what it cost.

    drawn: tokens drawn, those of proposals that were not chosen and a gap's end among them. nfe: function evaluations,
    those for scores among them. proposed, accepted: drafts verified and accepted, by index in the window. scores: of
    each length that a search proposed, nats a token. cut: tokens of prefix and suffix that the model did not see.
    """

    text: str
    tokens: list[int]
    drawn: int
    nfe: int
    proposed: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    cut: int = 0


def infill_batch(
    examples: Sequence[InfillExample],
    gaps: Sequence[list[int]],
    device: torch.device,
    suffix: Role = Role.GIVEN,
    gap_end: int | None = None,
) -> InfillBatch:
    """Examples with these tokens in their gaps, which are targets. suffix: whether the suffix is given or a target.
    gap_end: the token that ends gaps, where their lengths are unknown."""
    mark = [] if gap_end is None else [gap_end]
    rows = [
        (example.prefix_tokens, gap, [*mark, *example.suffix_tokens])
        for example, gap in zip(examples, gaps, strict=True)
    ]
    return InfillBatch.from_parts(rows, (Role.GIVEN, Role.TARGET, suffix), device)


def fill(
    model: DecodingModel,
    codec: TextCodec,
    rows: Sequence[Row],
    config: SamplerConfig,
    seeds: Sequence[int],
    gap_end: int | None = None,
) -> list[InfillResult]:
    """Each gap filled once. A gap of no tokens costs nothing, and no model sees it.

    gap_end: the token by which the model ends gaps that take at most so many tokens; None where they take all.
    """
    filled = [InfillResult("", [], 0, 0) for _ in rows]
    open_rows = [row for row, (_, length) in enumerate(rows) if length]
    if not open_rows:
        return filled
    examples, lengths = zip(*(rows[row] for row in open_rows), strict=True)
    masks = [[codec.mask_token_id] * length for length in lengths]
    batch = infill_batch(examples, masks, model.device, gap_end=gap_end)
    result = sample(model, *batch, config, [seeds[row] for row in open_rows])
    for index, row in enumerate(open_rows):
        tokens = [token for token in result.tokens[index][batch.target[index]].tolist() if token != gap_end]
        text = text_after(codec, examples[index].prefix_tokens, tokens)
        proposed, accepted = result.proposed[index].tolist(), result.accepted[index].tolist()
        filled[row] = InfillResult(text, tokens, int(result.targets[index]), int(result.nfe[index]), proposed, accepted)
    return filled


def scores(model: DecodingModel, examples: Sequence[InfillExample], gaps: Sequence[list[int]]) -> list[float]:
    """Exact joint log-density of gap and suffix given the prefix, nats a token, of each example."""
    batch = infill_batch(examples, gaps, model.device, suffix=Role.TARGET)
    return (log_prob(model, *batch).sum(1) / batch.target.sum(1)).tolist()


def search(
    model: DecodingModel,
    codec: TextCodec,
    examples: Sequence[InfillExample],
    proposals: Sequence[list[int]],
    config: SamplerConfig,
    seed: Callable[[InfillExample, int], int],
    batch_size: int,
) -> list[InfillResult]:
    """Each gap filled once with each of its proposed lengths; the text that `choose` prefers is kept.

    seed: of an example filled with a number of tokens. batch_size: gaps that are filled together.
    """
    rows = [(number, length) for number, lengths in enumerate(proposals) for length in lengths]
    rows.sort(key=lambda row: examples[row[0]].context_length + row[1])  # like lengths together
    tried: list[dict[int, tuple[InfillResult, float]]] = [{} for _ in examples]  # {length: (result, score)} of each
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        some = [(examples[number], length) for number, length in batch]
        filled = fill(model, codec, some, config, [seed(*row) for row in some])
        found = scores(model, [example for example, _ in some], [one.tokens for one in filled])
        for (number, length), one, score in zip(batch, filled, found, strict=True):
            tried[number][length] = (one, score)
    return [_best(one) for one in tried]


def _best(tried: dict[int, tuple[InfillResult, float]]) -> InfillResult:
    """The chosen one of all results, with what all of them cost."""
    found = {length: score for length, (_, score) in tried.items()}
    best, every = tried[choose(found)][0], [one for one, _ in tried.values()]
    return InfillResult(
        best.text,
        best.tokens,
        drawn=sum(one.drawn for one in every),
        nfe=sum(one.nfe + 1 for one in every),  # one for the score
        proposed=[sum(counts) for counts in zip(*(one.proposed for one in every), strict=True)],
        accepted=[sum(counts) for counts in zip(*(one.accepted for one in every), strict=True)],
        scores=dict(sorted(found.items())),
    )
