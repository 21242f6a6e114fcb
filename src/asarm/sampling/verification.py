"""Verification rules: which drafts are accepted and how the first rejection is resampled.

Every rule returns tokens with exactly the target distribution, whatever distributions the drafts were drawn from.

    accepted, next_tokens = rule(window, log_p, rng, tolerance)

window: the drafts. log_p: [B, K, V] float32, target log-probs at the window's positions, each given all tokens before.
tolerance: of `residual` only. accepted: [B] int64, how many of the first drafts are kept. next_tokens: [B] int64, the
token after those, ignored where all K columns were accepted.

Shapes: B rows, W drafts of the window, K verified columns (W, or one more), V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from asarm.sampling.counter_rng import REPLACEMENT, VERDICT, CounterRNG, TokenSampler, inverse_cdf


@dataclass
class DraftWindow:
    """The drafts of one iteration, for the next positions of each row, and the distributions they were drawn from.

    tokens: [B, W] int64. Only the first size [B] (int64) of a row are drafts; tokens after them are ignored.
    log_q: [B, W, V] float32, log-probs of the distribution that each draft was drawn from, given all tokens before.
    positions: [B, K] int64, of the tokens in their sequence. Where K is W + 1 the last column never has a draft: if all
        drafts are accepted, the next token is drawn from the target.
    sampler: what the drafts were drawn with.
    """

    tokens: torch.Tensor
    size: torch.Tensor
    log_q: torch.Tensor
    positions: torch.Tensor
    sampler: TokenSampler

    @property
    def columns(self) -> int:
        """K."""
        return self.positions.shape[1]

    def log_ratio(self, log_p: torch.Tensor) -> torch.Tensor:
        """log p / q of the drafts [B, W]; past a row's size, anything."""
        drafts = self.tokens[..., None]
        return (log_p.gather(-1, drafts) - self.log_q.gather(-1, drafts))[..., 0]


Verdict = tuple[torch.Tensor, torch.Tensor]  # accepted [B], next_tokens [B]


def residual(window: DraftWindow, log_p: torch.Tensor, rng: CounterRNG, tolerance: float) -> Verdict:
    """Accept with min(1, p / q), else draw from normalise(max(0, p - q)) (speculative sampling, arXiv 2211.17192).

    tolerance: accept with min(1, p / q + tolerance) instead; exact at 0 only.
    """
    drafts = window.tokens.shape[1]
    if drafts == 0:
        return window.size, _draw_replacement(log_p[:, 0].exp(), window, window.size, rng)
    chance = window.log_ratio(log_p[:, :drafts]).exp_()
    if tolerance > 0:
        chance += tolerance
    accepted = _count_leading(rng.uniform(window.positions[:, :drafts], VERDICT) < chance, window.size)
    p = _at_column(log_p, accepted).exp()  # [B, V]
    q = _at_column(window.log_q, accepted).exp_().mul_((accepted < window.size)[:, None])
    rest = (p - q).clamp_(min=0)
    # Where nothing is left, p and q differ by rounding only.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)
    return accepted, _draw_replacement(rest, window, accepted, rng)


def block(window: DraftWindow, log_p: torch.Tensor, rng: CounterRNG, tolerance: float) -> Verdict:
    """Accept the longest prefix of the drafts that passes, even if a shorter one does not (block verification,
    arXiv 2403.10444). On average this accepts at least as many as `residual`, and as many as any exact rule that sees
    a single path of drafts.

    With w_0 = 1 and w_i = min(1, w_{i-1} p_i / q_i) for the i-th draft, the first i drafts pass with probability
    s_i / (s_i + 1 - w_i), where s_i is the sum of max(0, w_i p - q) over the tokens of the next column. Where that has
    no draft, q is 0 and the probability is w_i. The next token is drawn from max(0, w_i p - q).

    Whether a prefix passes depends on drafts that may then be discarded, so that their random numbers must not be used
    again: see `TabledRNG.fold_in`.
    """
    drafts, columns = window.tokens.shape[1], window.columns
    has_draft = torch.arange(columns, device=window.size.device) < window.size[:, None]  # [B, K]
    ratio = F.pad(window.log_ratio(log_p[:, :drafts]), (0, columns - drafts)).where(has_draft, 0.0)
    walk = F.pad(ratio.cumsum(1), (1, 0))  # [B, K + 1]
    weight = (walk - walk.cummax(1).values).exp()  # [B, K + 1], w_0 .. w_K
    q = F.pad(window.log_q.exp(), (0, 0, 0, columns - drafts)).masked_fill(~has_draft[..., None], 0.0)
    rest = (weight[:, :-1, None] * log_p.exp() - q).clamp(min=0)  # [B, K, V], after 0 .. K - 1 drafts
    # Columns without a draft: q is 0, so that the sum is w_i, here without rounding. After the last column: w_K.
    mass = F.pad(torch.where(has_draft, rest.sum(-1), weight[:, :-1]), (0, 1))
    mass[:, -1] = weight[:, -1]
    chance = torch.where(weight < 1, mass / (mass + 1 - weight), 1.0)[:, 1:]  # [B, K], of the first 1 .. K drafts
    passed = (rng.uniform(window.positions, VERDICT) < chance) & has_draft
    accepted = (passed * torch.arange(1, passed.shape[1] + 1, device=passed.device)).amax(1)
    rest, p = _at_column(rest, accepted), _at_column(log_p, accepted).exp()
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)  # where nothing is left p and q differ by rounding only
    return accepted, _draw_replacement(rest, window, accepted, rng)


def gumbel(window: DraftWindow, log_p: torch.Tensor, rng: CounterRNG, tolerance: float) -> Verdict:
    """Accept while the target chooses the same token with the same noise, else take its token (arXiv 2408.07978).

    For drafts drawn with `GumbelSampler`. The result is that of the sequential sampler with the same seed, token for
    token.
    """
    choices = window.sampler.draw(log_p)  # [B, K]
    accepted = _count_leading(choices[:, : window.tokens.shape[1]] == window.tokens, window.size)
    return accepted, _at_column(choices, accepted)


# By the value of `SamplerConfig.coupling`.
VERIFICATION_RULES: dict[str, Callable[[DraftWindow, torch.Tensor, CounterRNG, float], Verdict]] = {
    "residual": residual,
    "block": block,
    "gumbel": gumbel,
}


def _count_leading(accept: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """How many of the first size [B] columns come before the first false one: accept [B, W] bool -> [B] int64."""
    return accept.cumprod(1, dtype=torch.long).sum(1).minimum(size)


def _at_column(values: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """values [B, K, ...] at one column [B] a row (the last one where it is past the end): a copy [B, ...]."""
    return values[torch.arange(len(values), device=values.device), column.clamp(max=values.shape[1] - 1)]


def _draw_replacement(
    weights: torch.Tensor, window: DraftWindow, accepted: torch.Tensor, rng: CounterRNG
) -> torch.Tensor:
    """The tokens [B] after the accepted [B] drafts, drawn with weights [B, V] (not normalised)."""
    position = _at_column(window.positions, accepted)[:, None]
    return inverse_cdf(weights, rng.uniform(position, REPLACEMENT)[:, 0])
