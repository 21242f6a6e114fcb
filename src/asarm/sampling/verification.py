"""Verification rules: which drafts are accepted and how the first rejection is resampled.

Every rule returns tokens with exactly the target distribution, whatever distributions the drafts were drawn from.

    accepted, next_tokens = rule(window, p, tolerance)

window: the drafts. p: [B, K, V] float32, target probabilities at the window's positions, each given all tokens before
(of `gumbel`, logits: what the window's sampler draws from).
tolerance: of `residual` only. accepted: [B] int64, how many of the first drafts are kept. next_tokens: [B] int64, the
token after those, ignored where all K columns were accepted.

Where a window has alternatives to its drafts, `residual` and `block` draw the token instead of a rejected draft so
that it is likely one of them, and is distributed as without (recursive rejection sampling, arXiv 2402.14160): what
follows them is known from the same function evaluation.

Shapes: B rows, W drafts of the window, K verified columns (W, or one more, which never has a draft: the token after all
drafts is drawn from the target), M alternatives to a draft, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from asarm.sampling.counter_rng import REPLACEMENT, VERDICT, InverseCDFSampler, TokenSampler, at_column, inverse_cdf


@dataclass
class DraftWindow:
    """The drafts of one iteration, for the next positions of each row, and the distributions they were drawn from.

    tokens: [B, W] int64. Only the first size [B] (int64) of a row are drafts; tokens after them are ignored.
    q: [B, W, V] float32, what the sampler drew each draft from, probabilities or logits, given all tokens before; or
        [B, W, D], of the first D tokens, if no others are drafted.
    sampler: what the drafts were drawn with, for all K columns.
    alternatives: [B, M or W, M] int64, to the first drafts; those to the first one count, all but one of those to the
        second, and so on. Drawn from what q is without the draft and the alternatives before. None for none.
    """

    tokens: torch.Tensor
    size: torch.Tensor
    q: torch.Tensor
    sampler: TokenSampler
    alternatives: torch.Tensor | None = None

    @property
    def uniform(self) -> torch.Tensor:
        """Random numbers [streams, B, K] of drafts that were drawn with an `InverseCDFSampler`."""
        assert isinstance(self.sampler, InverseCDFSampler)
        return self.sampler.uniform

    def ratio(self, p: torch.Tensor) -> torch.Tensor:
        """p / q of the drafts [B, W]; past a row's size, anything."""
        drafts = self.tokens[..., None]
        return (p.gather(-1, drafts) / self.q.gather(-1, drafts))[..., 0]


Verdict = tuple[torch.Tensor, torch.Tensor]  # accepted [B], next_tokens [B]


def residual(window: DraftWindow, p: torch.Tensor, tolerance: float) -> Verdict:
    """Accept with min(1, p / q), else draw from normalise(max(0, p - q)) (speculative sampling, arXiv 2211.17192).

    tolerance: accept with min(1, p / q + tolerance) instead; exact at 0 only.
    """
    drafts = window.tokens.shape[1]
    if drafts == 0:
        return _draw_first(window, p)
    chance = window.ratio(p[:, :drafts])
    if tolerance > 0:
        chance += tolerance
    accepted = _count_leading(window.uniform[VERDICT, :, :drafts] < chance, window.size)
    rejected, column = _next_columns(window, p, accepted)
    p, q = at_column(p, column), at_column(window.q, rejected)  # [B, V], [B, V or D]
    return accepted, _draw_next(window, accepted, column, p, q, rest_of(p, q))


def block(window: DraftWindow, p: torch.Tensor, tolerance: float) -> Verdict:
    """Accept the longest prefix of the drafts that passes, even if a shorter one does not (block verification,
    arXiv 2403.10444). On average this accepts at least as many as `residual`, and as many as any exact rule that sees
    a single path of drafts.

    With w_0 = 1 and w_i = min(1, w_{i-1} p_i / q_i) for the i-th draft, the first i drafts pass with probability
    s_i / (s_i + 1 - w_i), where s_i is the sum of max(0, w_i p - q) over the tokens of the next column. Where that has
    no draft, q is 0 and the probability is w_i. The next token is drawn from max(0, w_i p - q).

    Whether a prefix passes depends on drafts that may then be discarded, so that their random numbers must not be used
    again: see `TabledRNG.fold_in`.
    """
    drafts = window.tokens.shape[1]
    if drafts == 0:
        return _draw_first(window, p)
    number = torch.arange(1, drafts + 1, device=p.device)
    is_draft = number <= window.size[:, None]  # [B, W]
    walk = F.pad(torch.where(is_draft, window.ratio(p[:, :drafts]).log(), 0.0).cumsum(1), (1, 0))  # [B, W + 1]
    weight = (walk - walk.cummax(1).values).exp_()  # [B, W + 1], w_0 .. w_W
    rest = rest_of(weight[:, :-1, None] * p[:, :drafts], window.q)  # [B, W, V]
    # s_0 .. s_{W - 1}; in columns without a draft q is 0, so that it is w_i, here without rounding
    mass = torch.where(is_draft, rest.sum(-1), weight[:, :-1])
    mass, weight = torch.cat((mass[:, 1:], weight[:, -1:]), dim=1), weight[:, 1:]  # after 1 .. W drafts
    chance = torch.where(weight < 1, mass / (mass + 1 - weight), 1.0)
    accepted = (number * ((window.uniform[VERDICT, :, :drafts] < chance) & is_draft)).amax(1)
    rejected, column = _next_columns(window, p, accepted)
    p, q = at_column(p, column), at_column(window.q, rejected)  # [B, V], [B, V or D]
    return accepted, _draw_next(window, accepted, column, p, q, at_column(rest, rejected))


def gumbel(window: DraftWindow, p: torch.Tensor, tolerance: float) -> Verdict:
    """Accept while the target chooses the same token with the same noise, else take its token (arXiv 2408.07978).

    For drafts drawn with `GumbelSampler`. The result is that of the sequential sampler with the same seed, token for
    token.
    """
    choices = window.sampler.draw(p)  # [B, K]
    accepted = _count_leading(choices[:, : window.tokens.shape[1]] == window.tokens, window.size)
    return accepted, at_column(choices, accepted.clamp(max=choices.shape[1] - 1))


# By the value of `SamplerConfig.coupling`.
VERIFICATION_RULES: dict[str, Callable[[DraftWindow, torch.Tensor, float], Verdict]] = {
    "residual": residual,
    "block": block,
    "gumbel": gumbel,
}


def rest_of(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """max(0, p - q): p [..., V], q [..., D] of the first D tokens -> [..., V]."""
    if p.shape == q.shape:
        return (p - q).clamp_(min=0)
    rest = p.clone()
    rest[..., : q.shape[-1]].sub_(q)
    return rest.clamp_(min=0)


def _count_leading(accept: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """How many of the first size [B] columns come before the first false one: accept [B, W] bool -> [B] int64."""
    columns = torch.arange(accept.shape[1], device=accept.device)
    return torch.where(accept, size[:, None], columns).amin(1) if len(columns) else size


def _next_columns(window: DraftWindow, p: torch.Tensor, accepted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """After the accepted [B] drafts: the column of the next draft, and that of the next token, [B] int64 each.

    Where there is none, it is the last one.
    """
    drafts = window.tokens.shape[1]
    of_draft = accepted.clamp(max=drafts - 1)
    return of_draft, accepted if p.shape[1] > drafts else of_draft


def _draw_first(window: DraftWindow, p: torch.Tensor) -> Verdict:
    """The verdict on a window without drafts, from p [B, 1, V]."""
    return window.size, inverse_cdf(p[:, 0], window.uniform[REPLACEMENT, :, 0])


def _draw_next(
    window: DraftWindow,
    accepted: torch.Tensor,
    column: torch.Tensor,
    p: torch.Tensor,
    q: torch.Tensor,
    rest: torch.Tensor,
) -> torch.Tensor:
    """The tokens [B] at column [B], after the accepted [B] drafts: where one was rejected with weights rest [B, V] (not
    normalised), elsewhere from p [B, V]. q: [B, V or D], what the rejected draft was drawn from."""
    is_rejected = (accepted < window.size) & (rest.sum(-1) > 0)  # where nothing is left p and q differ by rounding only
    weights, uniform = torch.where(is_rejected[:, None], rest, p), at_column(window.uniform[REPLACEMENT], column)
    if window.alternatives is None:
        return inverse_cdf(weights, uniform)
    columns = window.alternatives.shape[1]  # with alternatives
    candidates = torch.cat((window.tokens[:, :columns, None], window.alternatives), dim=-1)  # [B, columns, 1 + M]
    first = column.clamp(max=columns - 1)
    number = torch.arange(candidates.shape[2] - 1, device=column.device)
    counts = is_rejected[:, None] & (number + column[:, None] < len(number))  # [B, M]
    return draw_candidate(weights, q, at_column(candidates, first), counts, uniform)


def draw_candidate(
    weights: torch.Tensor, q: torch.Tensor, candidates: torch.Tensor, counts: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Tokens [B] int64 with probabilities proportional to weights [B, V], which are candidates if possible.

    q: [B, V or D], what the first of the candidates [B, 1 + M] was drawn from. It is out of question; each of the
    others was drawn from what q is without those before, and counts [B, M] bool or not. uniform: [B] in [0, 1); what
    is left of a number after a decision is a number in [0, 1) again.
    """
    weights = weights.clone()
    reduced, total = weights[:, : q.shape[1]], weights.sum(-1, keepdim=True)  # the part that candidates are of, a view
    done, token = torch.zeros_like(counts[:, 0]), candidates[:, 0]
    for number in range(counts.shape[1]):
        before, one, may_be = candidates[:, number], candidates[:, number + 1], counts[:, number]
        q = q.scatter(-1, before[:, None], 0.0)
        q = q / q.sum(-1, keepdim=True).clamp(min=torch.finfo(q.dtype).tiny)
        mass = total * q
        wanted, drawn_with = (part.gather(-1, one[:, None])[:, 0].double() for part in (reduced, mass))
        may_be = may_be & (drawn_with > 0)
        chance = torch.where(may_be, (wanted / drawn_with).clamp(max=1.0), 0.0)
        is_taken = ~done & (uniform < chance)
        token, done = torch.where(is_taken, one, token), done | is_taken
        uniform = torch.where(uniform < chance, uniform, (uniform - chance) / (1 - chance))
        rest = (reduced - mass).clamp_(min=0)
        left = total - (reduced - rest).sum(-1, keepdim=True)
        is_tried = may_be[:, None] & (left > 0)  # where nothing is left the two differ by rounding only
        reduced.copy_(torch.where(is_tried, rest, reduced))
        total = torch.where(is_tried, left, total)
    return torch.where(done, token, inverse_cdf(weights, uniform))
