"""One-pass any-subset speculative decoding: one function evaluation verifies a window and drafts the next one.

Which window comes next depends on how many drafts will be accepted, so the call asks for the next window of each such
number a: the ranks behind rank n + a, seen from n + a ranks. Their laws lack the token at rank n + a only, which is
drawn when the call is back. A draft's law depends on nothing but tokens that are settled when it is drawn, so accepting
or replacing it returns a token with exactly the target law.
"""

import torch

from asarm.sampling.coupling import COUPLINGS, Window, at_index
from asarm.sampling.noise import TOKEN
from asarm.sampling.result import SampleResult
from asarm.sampling.state import Decoding


def sample_fused(model, tokens, given, target, config, seeds, trace) -> SampleResult:
    """Exact when tolerance is 0; NFE <= targets. Arguments as in `asarm.sampling.sample`."""
    state = Decoding(model, tokens, given, target, config, seeds, config.k, trace, ahead=2 * config.k + 1)
    nothing = torch.full((len(tokens), 1, model.config.vocab_size), float("-inf"), device=tokens.device)  # log 0
    log_q = nothing[:, :0]  # [B, W, V] laws of the drafts for the next ranks; before the first call there are none
    while state.unfinished:
        left = state.total - state.decoded  # [B]
        width = min(log_q.shape[1], int(left.max()))
        size = left.clamp(max=width)  # [B]
        ranks = state.next_ranks(width + 1)  # [B, W + 1], the window and the rank behind it
        positions = state.positions.gather(1, ranks)
        noise = state.noise.gumbel(positions, model.config.vocab_size, TOKEN)
        # Behind the window stands a draft that nobody made: its law is 0, and what replaces it has the target law.
        log_q = torch.cat((log_q[:, :width], nothing[: len(left)]), dim=1)
        drafts = (log_q + noise).argmax(-1)
        state.place(ranks[:, :width], drafts[:, :width])
        verifying, drafting = _evaluate(state, ranks, size, min(config.k, int(left.max()) - 1))
        log_p = state.laws(verifying)  # [B, W + 1, V]
        window = Window(log_p, log_q, drafts, size, positions, noise)
        accepted, following = COUPLINGS[config.coupling](window, state.noise, config.tolerance)
        log_q = state.laws(at_index(drafting, accepted))
        one = torch.ones_like(size)
        log_q = log_q[state.settle_window(drafts[:, :width], size, accepted, following, accepted < left, one)]
    return state.result


def _evaluate(state: Decoding, ranks, size, ahead: int) -> tuple[torch.Tensor, torch.Tensor]:
    """States [B, W + 1, E] that verify the tokens at ranks [B, W + 1], and states [B, W + 1, A, E] that draft for the A
    ranks behind each of them, blind to its token."""
    behind = ranks[..., None] + torch.arange(1, ahead + 1, device=ranks.device)  # [B, W + 1, A]
    asked = torch.cat((ranks, behind.flatten(1)), dim=1)
    contexts = torch.cat((ranks, ranks[..., None].expand_as(behind).flatten(1)), dim=1)
    states = state.states(state.decoded + size, asked, contexts)
    count = ranks.shape[1]
    return states[:, :count], states[:, count:].unflatten(1, (count, ahead))
