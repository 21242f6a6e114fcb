"""Samplers: fill the targets of a batch of texts. `sample` is the door to all of them."""

import time
from collections.abc import Sequence

import torch

from asarm.sampling.adaptive_window import adaptive_plan
from asarm.sampling.assd import sample_assd
from asarm.sampling.config import SamplerConfig
from asarm.sampling.fused import sample_fused
from asarm.sampling.parallel import sample_parallel
from asarm.sampling.result import SampleResult, TraceStep
from asarm.sampling.sequential import sample_sequential

SAMPLERS = {
    "sequential": sample_sequential,
    "assd": sample_assd,
    "fused": sample_fused,
    "parallel": sample_parallel,
}

__all__ = ["SampleResult", "TraceStep", "sample"]


@torch.inference_mode()
def sample(
    model,
    tokens: torch.Tensor,
    given: torch.Tensor,
    target: torch.Tensor,
    config: SamplerConfig,
    seeds: Sequence[int],
    trace: bool = False,
) -> SampleResult:
    """Fill the targets of a batch of texts given its visible tokens.

    model: a backbone (`asarm.models`). tokens: [B, N] int64; what stands at targets and at padding is ignored.
    given, target: [B, N] bool, disjoint; places that are neither (padding) are left alone.
    seeds: one integer a row. A row's text is a function of its seed, its prompt and the settings: neither the batch
        it is in nor its place there matters (up to floating-point ties).
    trace: keep every draft and verdict.

    Raises ValueError for shapes that do not fit, or a row with nothing to fill.
    """
    if not tokens.shape == given.shape == target.shape:
        raise ValueError(f"tokens, given and target differ in shape: {tokens.shape}, {given.shape}, {target.shape}")
    if len(seeds) != len(tokens):
        raise ValueError(f"{len(seeds)} seeds for {len(tokens)} rows")
    if not target.any(dim=1).all():
        raise ValueError("a row has no target: there is nothing to fill")
    extra = {}
    if config.adaptive:
        extra["plan"] = adaptive_plan(model, *tokens.shape, config)
    start = _now(model)
    result = SAMPLERS[config.sampler](model, tokens, given, target, config, seeds, trace, **extra)
    result.seconds = _now(model) - start
    return result


def _now(model) -> float:
    """Wall clock in seconds, after what the device still had to do."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter()
