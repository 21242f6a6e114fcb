"""How drafts meet the target law: which drafts are accepted, and what replaces the first rejected one.

Both couplings return a text with exactly the target law, whatever the drafts' laws were.
Shapes: B rows, K drafts in the window, V vocabulary; window [B] says how many of the K are real.
"""

from dataclasses import dataclass

import torch

from asarm.sampling.noise import REPLACEMENT, VERDICT, Noise


@dataclass
class Window:
    """The drafts of one iteration and the two laws of each of them.

    log_p, log_q: [B, K, V] float32, log of the target's and the draft's law, each given all tokens before.
    drafts: [B, K] int64. size: [B] int64. positions: [B, K] int64, places in the text.
    gumbel: [B, K, V] float32, the noise that the drafts were drawn with.
    """

    log_p: torch.Tensor
    log_q: torch.Tensor
    drafts: torch.Tensor
    size: torch.Tensor
    positions: torch.Tensor
    gumbel: torch.Tensor


def leading(accept: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """How many drafts [B] stand before the first that is not accepted: accept [B, K] bool, size [B]."""
    real = torch.arange(accept.shape[1], device=accept.device) < size[:, None]
    return (accept & real).long().cumprod(1).sum(1)


def at_index(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """values [B, K, ...] at index [B] of the second axis (the last where the index is past the end): [B, ...]."""
    return values[torch.arange(len(values), device=values.device), index.clamp(max=values.shape[1] - 1)]


def residual(window: Window, noise: Noise, tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Accept with min(1, p / q), else take a token from normalise(max(0, p - q)) (speculative sampling, 2211.17192).

    tolerance: accept with min(1, p / q + tolerance); the law is exact at 0 only.
    Returns accepted [B] and the token that follows them [B]; the latter is void where all drafts were accepted.
    """
    chosen = window.drafts[..., None]
    ratio = (window.log_p.gather(-1, chosen) - window.log_q.gather(-1, chosen))[..., 0].exp()  # [B, K]
    accepted = leading(noise.uniform(window.positions, VERDICT) < ratio + tolerance, window.size)
    p, q = at_index(window.log_p, accepted).exp(), at_index(window.log_q, accepted).exp()  # [B, V]
    rest = (p - q).clamp(min=0)
    # Nothing is left where p and q differ by rounding only; then p itself is the law.
    rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)
    place = at_index(window.positions, accepted)[:, None]
    return accepted, (rest.log() + noise.gumbel(place, p.shape[-1], REPLACEMENT)[:, 0]).argmax(-1)


def gumbel(window: Window, noise: Noise, tolerance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Accept while the target law picks the same token under the same noise, else take its token (arXiv 2408.07978).

    The text is then that of the sequential sampler with the same seed, token for token. Returns as `residual`.
    """
    picks = (window.log_p + window.gumbel).argmax(-1)  # [B, K]
    accepted = leading(picks == window.drafts, window.size)
    return accepted, at_index(picks, accepted)


COUPLINGS = {"residual": residual, "gumbel": gumbel}
