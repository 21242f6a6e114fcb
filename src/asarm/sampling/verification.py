"""How drafts meet the target law: which drafts are accepted, and what replaces the first rejected one.

All couplings return a text with exactly the target law, whatever the drafts' laws were.
Shapes: B rows, K places in the window, V vocabulary; size [B] says how many of a row's places have a draft.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from asarm.sampling.counter_rng import REPLACEMENT, VERDICT, CounterRNG, GumbelSampler, InverseCDFSampler, inverse_cdf


@dataclass
class Window:
    """The drafts of one iteration and the two laws of each of them.

    log_p, log_q: [B, K, V] float32, log of the target's and the draft's law, each given all tokens before. At a place
        without a draft log_q is -inf, if log_p holds the target's law there.
    drafts: [B, K] int64. size: [B] int64. positions: [B, K] int64, places in the text.
    choice: what the drafts were drawn with.
    """

    log_p: torch.Tensor
    log_q: torch.Tensor
    drafts: torch.Tensor
    size: torch.Tensor
    positions: torch.Tensor
    choice: GumbelSampler | InverseCDFSampler

    def has_draft(self) -> torch.Tensor:
        """Which places have a draft: [B, K] bool."""
        return torch.arange(self.drafts.shape[1], device=self.size.device) < self.size[:, None]

    def log_ratio(self) -> torch.Tensor:
        """log p / q of the drafts [B, K]; 0 where there is none."""
        chosen = self.drafts[..., None]
        ratio = (self.log_p.gather(-1, chosen) - self.log_q.gather(-1, chosen))[..., 0]
        return torch.where(self.has_draft(), ratio, 0.0)


def leading(accept: torch.Tensor) -> torch.Tensor:
    """How many drafts [B] stand before the first that is not accepted: accept [B, K] bool."""
    return accept.long().cumprod(1).sum(1)


def at_index(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values [B, K, ...] at index [B] of the second axis (the last where the index is past the end): [B, ...]."""
    return values[torch.arange(len(values), device=values.device), index.clamp(max=values.shape[1] - 1)]


def replacement(rest: torch.Tensor, p: torch.Tensor, window: Window, accepted: torch.Tensor, noise: CounterRNG):
    """The token [B] that follows the accepted [B] drafts, drawn from rest [B, V] (not normalised).

    Where nothing is left, p and q differ by rounding only; then p [B, V] itself is the law.
    """
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)
    place = at_index(window.positions, accepted)[:, None]
    return inverse_cdf(rest, noise.uniform(place, REPLACEMENT)[:, 0])


def residual(window: Window, noise: CounterRNG, tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Accept with min(1, p / q), else take a token from normalise(max(0, p - q)) (speculative sampling, 2211.17192).

    tolerance: accept with min(1, p / q + tolerance); the law is exact at 0 only.
    Returns accepted [B] and the token that follows them [B]; the latter is void where nothing follows in the window.
    """
    verdict = noise.uniform(window.positions, VERDICT) < window.log_ratio().exp() + tolerance
    accepted = leading(verdict & window.has_draft())
    p, q = at_index(window.log_p, accepted).exp(), at_index(window.log_q, accepted).exp()  # [B, V]
    return accepted, replacement((p - q).clamp(min=0), p, window, accepted, noise)


def block(window: Window, noise: CounterRNG, tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Accept the longest prefix of the drafts that passes, even if a shorter one does not (block verification,
    arXiv 2403.10444): on average no fewer than `residual`, and no exact rule that sees one draft path takes more.

    With w_0 = 1 and w_i = min(1, w_{i-1} p_i / q_i) of the i-th draft, the first i drafts pass with the chance
    s_i / (s_i + 1 - w_i), where s_i = sum of max(0, w_i p - q) over the tokens of the next place; where that has no
    draft, q is 0 and the chance w_i. What follows is drawn from max(0, w_i p - q).

    The verdict depends on drafts that are thrown away, so their random numbers must not be used again: see
    `CounterRNG.fold_in`.
    Returns as `residual`; tolerance is not used.
    """
    has_draft = window.has_draft()
    walk = F.pad(window.log_ratio().cumsum(1), (1, 0))  # [B, K + 1]
    weight = (walk - walk.cummax(1).values).exp()  # [B, K + 1], w_0 .. w_K
    q = window.log_q.exp().masked_fill(~has_draft[..., None], 0.0)
    rest = (weight[:, :-1, None] * window.log_p.exp() - q).clamp(min=0)  # [B, K, V], behind 0 .. K - 1 drafts
    # Rounding aside this is the sum at places without draft too; and behind the last place there is none.
    mass = F.pad(torch.where(has_draft, rest.sum(-1), weight[:, :-1]), (0, 1))
    mass[:, -1] = weight[:, -1]
    chance = torch.where(weight < 1, mass / (mass + 1 - weight), 1.0)[:, 1:]  # [B, K], of the first 1 .. K drafts
    passed = (noise.uniform(window.positions, VERDICT) < chance) & has_draft
    accepted = (passed * torch.arange(1, passed.shape[1] + 1, device=passed.device)).amax(1)
    p = at_index(window.log_p, accepted).exp()
    return accepted, replacement(at_index(rest, accepted), p, window, accepted, noise)


def gumbel(window: Window, noise: CounterRNG, tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Accept while the target law picks the same token under the same noise, else take its token (arXiv 2408.07978).

    The text is then that of the sequential sampler with the same seed, token for token. Returns as `residual`.
    """
    picks = window.choice.tokens(window.log_p)  # [B, K]
    accepted = leading((picks == window.drafts) & window.has_draft())
    return accepted, at_index(picks, accepted)


VERIFICATION_RULES = {"residual": residual, "block": block, "gumbel": gumbel}
