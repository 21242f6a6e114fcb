"""The joint loss, the draft loss and exact log-densities: one forward pass with different query contexts.

Shapes: B rows, N positions, S targets (the same number in every row of a training batch), D drafted targets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from asarm.config import DraftLossConfig
from asarm.order import RankOrder, rank_order


@dataclass
class Losses:
    """Mean cross-entropy (nats a token) of the joint queries and, if there were any, of the draft queries."""

    joint: torch.Tensor
    draft: torch.Tensor | None


def random_targets(batch: int, length: int, rate: float, generator: torch.Generator) -> torch.Tensor:
    """A uniformly chosen set of floor(rate * length) (at least 1) target positions a row: [B, N] bool."""
    count = max(1, int(rate * length))
    return torch.rand(batch, length, generator=generator).argsort(1).argsort(1) < count


def span_targets(batch: int, length: int, rate: float, generator: torch.Generator) -> torch.Tensor:
    """As many target positions as `random_targets`, in one run that begins anywhere: [B, N] bool."""
    count = max(1, int(rate * length))
    start = torch.randint(0, length - count + 1, (batch, 1), generator=generator)
    places = torch.arange(length)
    return (places >= start) & (places < start + count)


def line_targets(
    tokens: torch.Tensor, rate: float, line_ends: Sequence[int], generator: torch.Generator
) -> torch.Tensor:
    """As many target positions as `random_targets`, in whole lines drawn at random: [B, N] bool.

    tokens: [B, N] int64. line_ends: tokens that end a line. Every other line is drawn first, so that up to a rate of
    about a half gaps are single lines. Of the line drawn last the end alone is masked, for gaps end where lines do.
    """
    count = max(1, int(rate * tokens.shape[1]))
    ends = torch.isin(tokens, torch.tensor(line_ends, device=tokens.device)).cpu()
    line = ends.cumsum(1) - ends.long()  # [B, N]
    first = torch.randint(0, 2, (len(tokens), 1), generator=generator)
    luck = torch.rand(tokens.shape, generator=generator).gather(1, line)  # [B, N], the same within a line
    turn = luck + (line % 2 != first)
    backwards = turn.flip(1).argsort(dim=1, stable=True)  # [B, N], within a line its end comes first
    return (backwards.argsort(1) < count).flip(1)


@dataclass(frozen=True)
class Gaps:
    """How the targets of training texts lie: the share of the texts in which they are one run, and that in which they
    are whole lines; else they lie anywhere. line_ends: tokens that end a line."""

    spans: float = 0.0
    lines: float = 0.0
    line_ends: Sequence[int] = ()


ANYWHERE = Gaps()


def training_targets(tokens: torch.Tensor, rate: float, gaps: Gaps, generator: torch.Generator) -> torch.Tensor:
    """Targets of a batch of texts [B, N] int64, the same number in all rows: [B, N] bool, on the CPU."""
    batch, length = tokens.shape
    target = random_targets(batch, length, rate, generator)
    if gaps.spans + gaps.lines == 0:
        return target
    spans = span_targets(batch, length, rate, generator)
    kind = torch.rand(batch, 1, generator=generator)
    target = torch.where(kind < gaps.spans, spans, target)
    if gaps.lines == 0:
        return target
    lines = line_targets(tokens, rate, gaps.line_ends, generator)
    return torch.where((kind >= gaps.spans) & (kind < gaps.spans + gaps.lines), lines, target)


def draft_queries(
    order: RankOrder, config: DraftLossConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A share of the targets with contexts cut back by 1..draft_window-1 ranks, never into the prompt.

    Returns ranks and contexts, both [B, D] int64. The first target of a row has nothing to be cut back and is left
    out, so D may be 0.
    """
    prompt_length, length = int(order.prompt_length[0]), int(order.length[0])
    candidates = length - prompt_length - 1
    count = round(config.draft_share * candidates)
    batch = len(order.order)
    picks = torch.rand(batch, candidates, generator=generator).argsort(1)[:, :count]
    ranks = prompt_length + 1 + picks.sort(1).values
    cuts = torch.randint(1, config.draft_window, ranks.shape, generator=generator)
    contexts = (ranks.cpu() - cuts).clamp(min=prompt_length)
    return ranks.to(order.order.device), contexts.to(order.order.device)


def training_loss(
    model,
    tokens: torch.Tensor,
    rate: float,
    draft: DraftLossConfig,
    generator: torch.Generator,
    gaps: Gaps = ANYWHERE,
) -> Losses:
    """Joint loss of DESIGN's objective, and the draft loss where its weight is not 0, in one pass.

    tokens: [B, N] int64. rate: masking rate of the whole batch. generator: on the CPU; masks and drafts come from it.
    gaps: see `training_targets`.
    """
    target = training_targets(tokens, rate, gaps, generator).to(tokens.device)
    order = rank_order(~target, target)
    first = int(order.prompt_length[0])
    ranks = torch.arange(first, tokens.shape[1], device=tokens.device).expand(len(tokens), -1)  # [B, S]
    contexts, joint_count = ranks[:1], ranks.shape[1]  # the same in all rows, as prompts are equally long
    if draft.draft_weight > 0:
        draft_ranks, draft_contexts = draft_queries(order, draft, generator)
        ranks = torch.cat((ranks, draft_ranks), dim=1)  # [B, S + D]
        contexts = torch.cat((contexts.expand(len(tokens), -1), draft_contexts), dim=1)
    ranked = tokens.gather(1, order.order)
    # The token of the last rank is seen by no query.
    losses = model(
        ranked[:, :-1],
        order.order[:, :-1],
        order.content_context()[:1, :-1],
        order.order.gather(1, ranks),
        contexts,
        targets=ranked.gather(1, ranks),
    )  # [B, S + D]
    drafted = losses[:, joint_count:]
    return Losses(losses[:, :joint_count].mean(), drafted.mean() if drafted.numel() else None)


@torch.inference_mode()
def log_prob(
    model, tokens: torch.Tensor, given: torch.Tensor, target: torch.Tensor | None = None, temperature: float = 1.0
) -> torch.Tensor:
    """Exact log-density (nats) of any subset of a text given any other, in one function evaluation.

    tokens: [B, N] int64. given, target: [B, N] bool, disjoint; target defaults to all that is not given. Tokens that
    are neither are left out of the model's sight. Returns [B, N] float32: log p(token | given, targets to its left)
    at the targets, 0 elsewhere; the sum over a row is the joint log-density.
    """
    target = ~given if target is None else target
    log_probs, chosen, positions = _laws(model, tokens, given, target, temperature)
    return _at_targets(log_probs.gather(-1, chosen[..., None])[..., 0], positions, target)


@torch.inference_mode()
def log_prob_and_best(
    model, tokens: torch.Tensor, given: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`log_prob` (at temperature 1), and whether each target is the most probable token there: [B, N] bool.

    A row in which all targets are is what greedy decoding gives.
    """
    log_probs, chosen, positions = _laws(model, tokens, given, target, 1.0)
    best = (log_probs.argmax(-1) == chosen).float()
    scores = log_probs.gather(-1, chosen[..., None])[..., 0]
    return _at_targets(scores, positions, target), _at_targets(best, positions, target) > 0


def _laws(model, tokens, given, target, temperature) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-laws at a stretch of ranks that holds all targets [B, S, V], the tokens and positions there [B, S]."""
    order = rank_order(given, target)
    total = int(order.length.max())
    first = int(order.prompt_length.min())
    ranked = tokens.gather(1, order.order)
    ranks = torch.arange(first, total, device=tokens.device).expand(len(tokens), -1)  # [B, S], prompts among them
    seen = max(total - 1, 0)
    logits = model(
        ranked[:, :seen],
        order.order[:, :seen],
        order.content_context()[:, :seen].clamp(max=max(seen, 1)),
        order.order[:, first:total],
        ranks,
    )
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)  # [B, S, V]
    return log_probs, ranked[:, first:total], order.order[:, first:total]


def _at_targets(values: torch.Tensor, positions: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Values [B, S] float at positions [B, S] in position order [B, N], 0 where there is no target."""
    return torch.zeros(target.shape, device=values.device).scatter(1, positions, values).masked_fill(~target, 0.0)
