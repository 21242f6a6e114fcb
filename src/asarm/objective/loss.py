"""The joint loss, the draft loss and exact log-densities: one forward pass with different query contexts.

Shapes: B sequences, N positions, S targets (the same number in every row of a training batch), D drafted targets,
V vocabulary.
"""

from dataclasses import dataclass

import torch

from asarm.models.backbone import AnyOrderModel
from asarm.models.compiled import DecodingModel
from asarm.models.rank_order import RankOrder, rank_order
from asarm.objective.chunked_cross_entropy import cross_entropy
from asarm.objective.masking import ANYWHERE, MaskingPattern, training_targets
from asarm.utils.config import check, option


@dataclass
class DraftLossConfig:
    """The auxiliary loss for drafts: the same targets, predicted from fewer ranks. Weight 0 is the paper's recipe."""

    draft_weight: float = option(0.0, "weight of the draft loss beside the joint loss")
    draft_window: int = option(5, "contexts are cut back by 1 .. draft_window - 1 ranks")
    draft_share: float = option(0.5, "share of the targets that are also drafted")

    def __post_init__(self) -> None:
        check(self.draft_weight >= 0, f"draft_weight must be at least 0, not {self.draft_weight}")
        check(self.draft_window >= 2, f"draft_window must be at least 2, not {self.draft_window}")
        check(0 < self.draft_share <= 1, f"draft_share must lie in (0, 1], not {self.draft_share}")


@dataclass
class Losses:
    """Mean cross-entropy (nats a token) of the joint queries and, if there were any, of the draft queries."""

    joint: torch.Tensor
    draft: torch.Tensor | None


def training_loss(
    model: AnyOrderModel,
    tokens: torch.Tensor,
    rate: float,
    draft: DraftLossConfig,
    generator: torch.Generator,
    pattern: MaskingPattern = ANYWHERE,
) -> Losses:
    """The joint loss (arXiv 2504.20456), and the draft loss where its weight is not 0, in one pass.

    The joint loss is the mean over the targets of -log p(token | prompt, targets before it); the draft loss is that of
    some targets whose last few predecessors are not seen, as in drafting.

    tokens: [B, N] int64. rate: masking rate of the whole batch. generator: on the CPU; masks and drafts come from it.
    pattern: how the masked tokens lie.
    """
    target = training_targets(tokens, rate, pattern, generator).to(tokens.device)
    order = rank_order(~target, target)
    first = int(order.prompt_length[0])
    ranks = torch.arange(first, tokens.shape[1], device=tokens.device).expand(len(tokens), -1)  # [B, S]
    contexts, joint_count = ranks[:1], ranks.shape[1]  # the same in all rows, as prompts are equally long
    if draft.draft_weight > 0:
        draft_ranks, draft_contexts = draft_queries(order, draft, generator)
        ranks = torch.cat((ranks, draft_ranks), dim=1)  # [B, S + D]
        contexts = torch.cat((contexts.expand(len(tokens), -1), draft_contexts), dim=1)
    ranked = tokens.gather(1, order.order)
    # No query sees the token of the last rank.
    losses = query_nll(
        model,
        ranked[:, :-1],
        order.order[:, :-1],
        order.content_context()[:1, :-1],
        order.order.gather(1, ranks),
        contexts,
        targets=ranked.gather(1, ranks),
    )  # [B, S + D]
    drafted = losses[:, joint_count:]
    return Losses(losses[:, :joint_count].mean(), drafted.mean() if drafted.numel() else None)


def draft_queries(
    order: RankOrder, config: DraftLossConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A share of the targets with contexts cut back by 1..draft_window-1 ranks, never into the prompt.

    Returns ranks and contexts, both [B, D] int64. The first target of a row has no predecessor to be cut off and is
    left out, so D may be 0.
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


def query_nll(model: AnyOrderModel, *arguments: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihoods [B, Q] (nats, float32) of the queries' tokens `targets` [B, Q] int64.

    arguments: as in `AnyOrderModel.hidden`. The logits never exist as a whole (see `chunked_cross_entropy`).
    """
    states = model.hidden(*arguments)  # [B, Q, E]
    return cross_entropy(states, *model.output_layer(), targets, excluded=model.never_sampled())


@torch.inference_mode()
def log_prob(
    model: DecodingModel,
    tokens: torch.Tensor,
    given: torch.Tensor,
    target: torch.Tensor | None = None,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Exact log-density (nats) of any subset of a sequence given any other, in one function evaluation.

    tokens: [B, N] int64. given, target: [B, N] bool, disjoint; target defaults to all that is not given. Tokens that
    are neither are hidden from the model. Returns [B, N] float32: log p(token | given, targets before it) at the
    targets, 0 elsewhere; the sum over a row is the joint log-density.
    """
    target = ~given if target is None else target
    log_probs, targets, positions = _target_log_probs(model, tokens, given, target, temperature)
    return _at_targets(log_probs.gather(-1, targets[..., None])[..., 0], positions, target)


@torch.inference_mode()
def log_prob_and_best(
    model: DecodingModel, tokens: torch.Tensor, given: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`log_prob` (at temperature 1), and whether each target is the most probable token there: [B, N] bool.

    A row whose targets all are is what greedy decoding would give.
    """
    log_probs, targets, positions = _target_log_probs(model, tokens, given, target, 1.0)
    best = (log_probs.argmax(-1) == targets).float()
    scores = log_probs.gather(-1, targets[..., None])[..., 0]
    return _at_targets(scores, positions, target), _at_targets(best, positions, target) > 0


def _target_log_probs(
    model: DecodingModel,
    tokens: torch.Tensor,
    given: torch.Tensor,
    target: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs [B, S, V] at a range of S ranks that includes all targets, with the tokens and positions there [B, S].

    Where prompts differ in length, the range includes some prompt tokens and padding, too.
    """
    order = rank_order(given, target)
    total = int(order.length.max())
    first = int(order.prompt_length.min())
    ranked = tokens.gather(1, order.order)
    ranks = torch.arange(first, total, device=tokens.device).expand(len(tokens), -1)  # [B, S]
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
    """Values [B, S] float of positions [B, S] in position order [B, N], 0 where there is no target."""
    return torch.zeros(target.shape, device=values.device).scatter(1, positions, values).masked_fill(~target, 0.0)
