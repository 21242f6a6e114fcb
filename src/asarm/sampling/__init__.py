"""Samplers: fill the targets of a batch of sequences. `sample` calls the one that the config names."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from asarm.models.compiled import DecodingModel
from asarm.sampling.adaptive_window import adaptive_window_for
from asarm.sampling.assd import sample_assd
from asarm.sampling.config import SamplerConfig
from asarm.sampling.fused import sample_fused
from asarm.sampling.parallel import sample_parallel
from asarm.sampling.result import SampleResult, TraceOption, TraceStep
from asarm.sampling.sequential import sample_sequential
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.transforms import check_possible
from asarm.utils.errors import first_line

SAMPLERS: dict[str, Callable[..., SampleResult]] = {
    "sequential": sample_sequential,
    "assd": sample_assd,
    "fused": sample_fused,
    "parallel": sample_parallel,
}

__all__ = ["SampleResult", "TraceStep", "sample", "synchronised_time"]


@torch.inference_mode()
def sample(
    model: DecodingModel,
    tokens: torch.Tensor,
    given: torch.Tensor,
    target: torch.Tensor,
    config: SamplerConfig,
    seeds: Sequence[int],
    trace: TraceOption = False,
    allowed: torch.Tensor | None = None,
) -> SampleResult:
    """Fill the targets of a batch of sequences, given their visible tokens.

    model: a backbone, or a compiled one (`asarm.models.compiled`).
    tokens: [B, N] int64; values at targets and at padding are ignored.
    given, target: [B, N] bool, disjoint; positions that are neither (padding) are left alone. A gap followed by a given
        `gap_end` is of unknown length, and the model ends its text (see `asarm.tokenization.open_gaps`).
    Rows with the same prompt share the reading of it: that is one call of the network before the first token, which is
        not counted as a function evaluation.
    seeds: one integer a row. The outcome of a row is a function of its seed, its prompt and the settings: it depends
        neither on the other rows of the batch nor on its index there (up to rounding). With adaptive windows
        its text is; its cost depends on the clock, too.
    trace: whether to keep all drafts and what became of them; or a function that gets the index of a row and each of
        its steps as they come (an exception that it raises ends the decoding).
    allowed: [1 or B, N, V] bool, the tokens that may be written at each position; None for all. Like the transforms of
        the config it changes the conditionals that are sampled from, and the samples are exactly theirs.

    Raises ValueError for shapes that do not fit, a position that is both given and a target, or a row without targets,
    InputError where no token is allowed, and MemoryError, with the batch size to try, where the device has too little
    memory.
    """
    if not tokens.shape == given.shape == target.shape:
        raise ValueError(f"tokens, given and target differ in shape: {tokens.shape}, {given.shape}, {target.shape}")
    if len(seeds) != len(tokens):
        raise ValueError(f"{len(seeds)} seeds for {len(tokens)} rows")
    if not target.any(dim=1).all():
        raise ValueError("a row has no target: there is nothing to fill")
    batch, length = tokens.shape
    inputs, vocab_size, gap_end = (
        InfillBatch(tokens, given, target),
        model.config.vocab_size,
        model.config.gap_end_token_id,
    )
    check_possible(config, allowed, model.never_sampled(), vocab_size, inputs, gap_end)
    # More drafts or steps than tokens change nothing, but would need memory.
    config = replace(config, k=min(config.k, length), steps=min(config.steps, length))
    extra: dict[str, Any] = {}
    if config.adaptive:
        extra["policy"] = adaptive_window_for(model, batch, length, config)
    start = synchronised_time(model.device)
    try:
        result = SAMPLERS[config.sampler](model, inputs, config, seeds, trace, allowed=allowed, **extra)
    except torch.OutOfMemoryError as error:
        advice = f"a batch of {batch} sequences is too much: try {batch // 2}" if batch > 1 else "for one sequence"
        raise MemoryError(f"{first_line(error)[:100]}; {advice}") from error
    result.seconds = synchronised_time(model.device) - start
    return result


def synchronised_time(device: torch.device) -> float:
    """Wall clock in seconds, once the device has finished what was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
