"""One token a function evaluation, in rank order: the yardstick that every other exact sampler must agree with."""

import torch

from asarm.sampling.counter_rng import TOKEN
from asarm.sampling.decode_state import DecodeState
from asarm.sampling.result import SampleResult


def sample_sequential(model, tokens, given, target, config, seeds, trace) -> SampleResult:
    """Exact; NFE = targets. Arguments as in `asarm.sampling.sample`."""
    state = DecodeState(model, tokens, given, target, config, seeds, window=1, trace=trace)
    while state.unfinished:
        ranks = state.next_ranks(1)
        log_p = state.log_probs(state.decoded, ranks, ranks)  # [B, 1, V]
        noise = state.noise.gumbel(state.positions.gather(1, ranks), log_p.shape[-1], TOKEN)
        state.place(ranks, (log_p + noise).argmax(-1))
        none, one = torch.zeros_like(state.decoded), torch.ones_like(state.decoded)
        state.record(ranks, none, none, one)
        state.settle(none, one, one)
    result = state.result
    result.proposed, result.accepted = result.proposed[:, :0], result.accepted[:, :0]
    return result
