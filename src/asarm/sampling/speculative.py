"""Any-subset speculative decoding (ASSD; Guo & Ermon, arXiv 2504.20456, algorithm 1): draft k tokens, verify them in
one function evaluation, keep those that the joint accepts."""

import torch

from asarm.sampling.coupling import COUPLINGS, Window
from asarm.sampling.drafts import ngram_drafts
from asarm.sampling.result import SampleResult
from asarm.sampling.state import Decoding


def sample_speculative(model, tokens, given, target, config, seeds, trace) -> SampleResult:
    """Exact when tolerance is 0; NFE <= targets. Arguments as in `asarm.sampling.sample`."""
    state = Decoding(model, tokens, given, target, config, seeds, window=config.k, trace=trace)
    while state.unfinished:
        size = (state.total - state.decoded).clamp(max=config.k)  # [B]
        ranks = state.next_ranks(int(size.max()))  # [B, K]
        positions = state.positions.gather(1, ranks)
        choice = state.choice(positions)
        draft_and_verify = _self_window if config.draft == "self" else _ngram_window
        drafts, log_q, log_p, evaluations = draft_and_verify(state, ranks, size, choice)
        window = Window(log_p, log_q, drafts, size, positions, choice)
        accepted, following = COUPLINGS[config.coupling](window, state.noise, config.tolerance)
        state.settle_window(drafts, size, accepted, following, accepted < size, evaluations)
    return state.result


def _self_window(state: Decoding, ranks, size, choice):
    """Drafts by the model itself: k places in parallel, then the joint law of all but the first.

    The first place's draft law is its joint law, so it is accepted whatever happens, and the last draft's content is
    read by nobody yet: verifying takes k - 1 tokens and k - 1 queries, and none at all when one target is left.
    """
    log_q = state.log_probs(state.decoded, ranks, state.decoded[:, None].expand_as(ranks))
    drafts = choice.tokens(log_q)
    state.place(ranks, drafts)
    log_p = log_q[:, :1]
    if ranks.shape[1] > 1:
        later = state.log_probs(state.decoded + size - 1, ranks[:, 1:], ranks[:, 1:])
        log_p = torch.cat((log_p, later), dim=1)
    return drafts, log_q, log_p, 1 + (size > 1).long()


def _ngram_window(state: Decoding, ranks, size, choice):
    """Drafts from the row's own text, which cost no function evaluation."""
    drafts, log_q = ngram_drafts(state, choice, ranks)
    state.place(ranks, drafts)
    log_p = state.log_probs(state.decoded + size - 1, ranks, ranks)
    return drafts, log_q, log_p, torch.ones_like(size)
