"""Sequential sampler: one token per function evaluation, in rank order. The reference for all exact samplers."""

from collections.abc import Sequence

import torch

from asarm.models.compiled import DecodingModel
from asarm.sampling.config import SamplerConfig
from asarm.sampling.counter_rng import GumbelSampler
from asarm.sampling.decode_state import DecodeState
from asarm.sampling.result import SampleResult, TraceOption
from asarm.tokenization.batch import InfillBatch


def sample_sequential(
    model: DecodingModel,
    batch: InfillBatch,
    config: SamplerConfig,
    seeds: Sequence[int],
    trace: TraceOption,
    allowed: torch.Tensor | None = None,
) -> SampleResult:
    """Exact; NFE = targets. Arguments as in `asarm.sampling.sample`."""
    state = DecodeState(model, batch, config, seeds, trace, window=0, lookahead=1, allowed=allowed)
    return state.run(sequential_step, most=1)


def sequential_step(state: DecodeState) -> torch.Tensor:
    """Decide one token of each row: an outcome of `DecodeState.commit`."""
    ranks = state.next_ranks(1)  # [B, 1]
    logits = state.query_logits(state.decoded, ranks, ranks, state.uncached)  # [B, 1, V]
    sampler = GumbelSampler(state.rng, state.positions.gather(1, ranks), logits.shape[-1])
    tokens = sampler.draw(logits)  # [B, 1]
    return state.commit(tokens[:, :0], state.zeros, state.zeros, tokens[:, 0], columns=1)
