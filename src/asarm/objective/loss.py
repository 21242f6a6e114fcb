"""The training losses and exact log-densities: one forward pass with different query contexts.

Shapes: B sequences, N positions, S targets of the row with the most (all rows of packed texts have as many), D drafted
targets likewise, V vocabulary.
"""

from dataclasses import dataclass

import torch

from asarm.models.backbone import AnyOrderModel
from asarm.models.compiled import DecodingModel
from asarm.models.rank_order import RankOrder, rank_order
from asarm.objective.chunked_cross_entropy import cross_entropy
from asarm.objective.masking import ANYWHERE, MaskingPattern, training_batch
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.open_gaps import exclude_gap_end, later_in_gap, open_targets
from asarm.tokenization.transforms import Transforms
from asarm.utils.config import check, check_choices, option


@dataclass
class LossConfig:
    """What is minimised. The defaults are the paper's recipe; objective, order and loss_scale are its ablations."""

    objective: str = option("joint", "joint: targets see the prompt and the targets before them; parallel: only it")
    order: str = option("ascending", "ascending: targets are decoded from left to right; random: in any order")
    loss_scale: str = option("none", "weight of the loss at masking rate r: 1 (none), r (rate) or r / (1 - r) (snr)")
    draft_weight: float = option(0.0, "weight of the draft loss beside the joint loss")
    draft_window: int = option(5, "contexts are cut back by 1 .. draft_window - 1 ranks")
    draft_share: float = option(0.5, "share of the targets that are also drafted")

    def __post_init__(self) -> None:
        check_choices("objective", [self.objective], ("joint", "parallel"))
        check_choices("order", [self.order], ("ascending", "random"))
        check_choices("loss_scale", [self.loss_scale], ("none", "rate", "snr"))
        check(self.draft_weight >= 0, f"draft_weight must be at least 0, not {self.draft_weight}")
        check(self.draft_window >= 2, f"draft_window must be at least 2, not {self.draft_window}")
        check(0 < self.draft_share <= 1, f"draft_share must lie in (0, 1], not {self.draft_share}")
        if self.objective == "parallel":
            check(self.draft_weight == 0, "objective parallel drafts every target already: leave draft_weight at 0")
            check(self.order == "ascending", "objective parallel predicts all targets at once: leave out order random")

    def scale(self, rate: float) -> float:
        """What the loss at a masking rate is multiplied by."""
        return {"none": 1.0, "rate": rate, "snr": rate / (1 - rate)}[self.loss_scale]

    def total(self, joint: torch.Tensor, draft: torch.Tensor | None, rate: float) -> torch.Tensor:
        """The scalar that is minimised, of the losses at a masking rate."""
        return self.scale(rate) * (joint if draft is None else joint + self.draft_weight * draft)


@dataclass
class Losses:
    """Mean cross-entropy (nats a token) of the targets' own queries and, if there were any, of the draft queries.

    joint: of the objective, so with `parallel` that of single targets given the prompt.
    """

    joint: torch.Tensor
    draft: torch.Tensor | None


def training_loss(
    model: AnyOrderModel,
    tokens: torch.Tensor,
    rate: float,
    config: LossConfig,
    generator: torch.Generator,
    pattern: MaskingPattern = ANYWHERE,
) -> Losses:
    """The joint loss (arXiv 2504.20456), and the draft loss where its weight is not 0, in one pass.

    The joint loss is the mean over the targets of -log p(token | prompt, targets before it), or with the objective
    `parallel` of -log p(token | prompt); the draft loss is that of some targets whose last few predecessors are not
    seen, as in drafting.

    tokens: [B, N] int64, PADDING after the end of shorter sequences; it is never read. rate: masking rate of the whole
    batch. generator: on the CPU; masks, orders and drafts come from it. pattern: how the masked tokens lie.
    """
    tokens, given, target = training_batch(tokens, rate, pattern, generator)
    turn = random_turns(tokens, generator) if config.order == "random" else None
    order = rank_order(given, target, turn)
    ranks, contexts = target_queries(order, config)  # [B, S]
    content_context, joint_count = order.content_context(), ranks.shape[1]
    is_even = bool((order.length == order.length[0]).all())
    if is_even:  # so are the prompts, and all rows have the same masks
        contexts, content_context = contexts[:1], content_context[:1]
    if config.draft_weight > 0:
        draft_ranks, draft_contexts = draft_queries(order, config, generator)
        ranks = torch.cat((ranks, draft_ranks), dim=1)  # [B, S + D]
        contexts = torch.cat((contexts.expand(len(tokens), -1), draft_contexts), dim=1)
    is_query = ranks < order.length[:, None]
    ranks = ranks.minimum(order.length[:, None] - 1)
    ranked = tokens.gather(1, order.order)
    seen = int(contexts.max())  # no query sees the token of the last rank
    losses = query_nll(
        model,
        ranked[:, :seen],
        order.order[:, :seen],
        content_context[:, :seen],
        order.order.gather(1, ranks),
        contexts,
        targets=ranked.gather(1, ranks),
    )  # [B, S + D]
    joint, drafted = losses[:, :joint_count], losses[:, joint_count:]
    if not is_even:
        joint, drafted = joint[is_query[:, :joint_count]], drafted[is_query[:, joint_count:]]
    return Losses(joint.mean(), drafted.mean() if drafted.numel() else None)


def random_turns(tokens: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A uniformly random permutation of 0..N-1 for each row of tokens [B, N]: [B, N] int64 (see `rank_order`)."""
    return torch.rand(tokens.shape, generator=generator).argsort(1).to(tokens.device)


def target_queries(order: RankOrder, config: LossConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks of all targets, and the contexts that the objective lets them see, both [B, S] int64.

    Rows with fewer than S of them are filled up with ranks of at least `order.length`.
    """
    prompt_length, length = order.prompt_length[:, None], order.length[:, None]  # [B, 1]
    ranks = prompt_length + torch.arange(int((length - prompt_length).max()), device=length.device)
    return ranks, ranks.minimum(length - 1) if config.objective == "joint" else prompt_length.repeat(1, ranks.shape[1])


def draft_queries(
    order: RankOrder, config: LossConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A share of the targets with contexts cut back by 1..draft_window-1 ranks, never into the prompt.

    Returns ranks and contexts, both [B, D] int64. The first target of a row has no predecessor to be cut off and is
    left out, so D may be 0. Rows with fewer than D of them are filled up with ranks equal to `order.length`.
    """
    prompt_length = order.prompt_length[:, None].cpu()  # [B, 1]
    candidates = (order.length[:, None].cpu() - prompt_length - 1).clamp(min=0)
    count = (config.draft_share * candidates.double()).round().long()
    luck = torch.rand(len(candidates), int(candidates.max()), generator=generator)
    picks = luck.masked_fill(torch.arange(luck.shape[1]) >= candidates, torch.inf).argsort(1)[:, : int(count.max())]
    picks = torch.where(torch.arange(picks.shape[1]) < count, picks, candidates)
    ranks = prompt_length + 1 + picks.sort(1).values
    cuts = torch.randint(1, config.draft_window, ranks.shape, generator=generator)
    contexts = (ranks - cuts).maximum(prompt_length)
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
    turn: torch.Tensor | None = None,
    transforms: Transforms | None = None,
    allowed: torch.Tensor | None = None,
) -> torch.Tensor:
    """Exact log-density (nats) of any subset of a sequence given any other, in one function evaluation.

    tokens: [B, N] int64. given, target: [B, N] bool, disjoint; target defaults to all that is not given. Tokens that
    are neither are hidden from the model. turn: [B, N] int64, each row a permutation of 0..N-1: targets are decoded in
    ascending turn, by default in ascending position. Returns [B, N] float32: log p(token | given, targets before it) at
    the targets, 0 elsewhere; the sum over a row is the joint log-density. After the end of the text of a gap of unknown
    length (see `asarm.tokenization.open_gaps`) it is 0 for further ends, and -inf for anything else.

    transforms: of each conditional, such as a `SamplerConfig`: the density is then the one that samples with these
    settings have. It stands instead of the temperature. allowed: [1 or B, N, V] bool, with transforms, as in
    `asarm.sampling.sample`.

    Raises ValueError for such a gap together with a turn, for a temperature other than 1 together with transforms, and
    for allowed tokens without transforms.
    """
    if transforms is None and allowed is not None:
        raise ValueError("allowed tokens need transforms, such as SamplerConfig()")
    if transforms is not None and temperature != 1:
        raise ValueError("give the temperature as one of the transforms")
    target = ~given if target is None else target
    gap_end = model.config.gap_end_token_id
    may_end = open_targets(InfillBatch(tokens, given, target), gap_end)
    if turn is not None and may_end.any():
        raise ValueError("gaps of unknown length are decoded in ascending position: give no turn")
    is_end = tokens == (-1 if gap_end is None else gap_end)
    absent = may_end & later_in_gap(may_end & is_end, given)
    target = target & ~absent
    order = rank_order(given, target, turn)
    logits, targets, positions, ranks = _target_logits(model, tokens, order, may_end)
    if transforms is None:
        log_probs = torch.log_softmax(logits / temperature, dim=-1)
    else:
        rows = torch.arange(len(tokens), device=tokens.device)[:, None]
        here = None if allowed is None else allowed.expand(len(tokens), -1, -1)[rows, positions]
        ranked = tokens.gather(1, order.order)
        log_probs = transforms.log_probs(logits, ranked, order.order, positions, ranks, here, gap_end)
    scores = _at_targets(log_probs.gather(-1, targets[..., None])[..., 0], positions, target)
    return scores.masked_fill(absent & ~is_end, float("-inf"))


@torch.inference_mode()
def log_prob_and_best(
    model: DecodingModel, tokens: torch.Tensor, given: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`log_prob` (at temperature 1), and whether each target is the most probable token there: [B, N] bool.

    A row whose targets all are is what greedy decoding would give.
    """
    may_end = open_targets(InfillBatch(tokens, given, target), model.config.gap_end_token_id)
    logits, targets, positions, _ = _target_logits(model, tokens, rank_order(given, target), may_end)
    log_probs = torch.log_softmax(logits, dim=-1)
    best = (log_probs.argmax(-1) == targets).float()
    scores = log_probs.gather(-1, targets[..., None])[..., 0]
    return _at_targets(scores, positions, target), _at_targets(best, positions, target) > 0


def _target_logits(
    model: DecodingModel, tokens: torch.Tensor, order: RankOrder, may_end: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [B, S, V] float32 at a range of S ranks that includes all targets, and tokens, positions, ranks [B, S].

    Where prompts differ in length, the range includes some prompt tokens and padding, too. may_end: [B, N] bool, where
    the text of a gap may end.
    """
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
    positions = order.order[:, first:total]  # [B, S]
    logits = exclude_gap_end(logits.float(), may_end.gather(1, positions), model.config.gap_end_token_id)
    return logits, ranked[:, first:total], positions, ranks


def _at_targets(values: torch.Tensor, positions: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Values [B, S] float of positions [B, S] in position order [B, N], 0 where there is no target."""
    return torch.zeros(target.shape, device=values.device).scatter(1, positions, values).masked_fill(~target, 0.0)
