"""Parallel sampler: conditionally independent tokens in a few steps, as in masked diffusion. Fast, but NOT exact."""

from collections.abc import Sequence

import torch

from asarm.models.compiled import DecodingModel
from asarm.models.rank_order import rank_order
from asarm.sampling.config import SamplerConfig
from asarm.sampling.counter_rng import TOKEN, VERDICT, CounterRNG
from asarm.sampling.result import SampleResult, TraceOption, TraceStep, new_traces
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.open_gaps import exclude_gap_end, later_in_gap, open_targets
from asarm.tokenization.transforms import AllowedTokens


def sample_parallel(
    model: DecodingModel,
    batch: InfillBatch,
    config: SamplerConfig,
    seeds: Sequence[int],
    trace: TraceOption,
    allowed: torch.Tensor | None = None,
) -> SampleResult:
    """Not exact; NFE = min(steps, targets), or fewer where gaps end early. Arguments as in `asarm.sampling.sample`.

    In each of `config.steps` steps a random share of the targets is filled, each given what was known before the step
    and independently of the others; then the filled ones belong to the prompt. A gap of unknown length does not end
    before text that it has already; of the ends that it gets in one step the first counts.
    """
    rng = CounterRNG.from_seeds(seeds, batch.tokens.device)
    targets = batch.target.sum(1)  # [B]
    steps = targets.clamp(max=config.steps)  # [B]
    step_of = _assign_steps(batch.target, steps, rng)  # [B, N]
    gap_end = model.config.gap_end_token_id
    may_end = open_targets(batch, gap_end)  # [B, N]
    tokens, known, absent = batch.tokens, batch.given, torch.zeros_like(may_end)
    nfe, drawn = torch.zeros_like(steps), torch.zeros_like(steps)  # [B]
    history = new_traces(trace, len(tokens))
    for step in range(int(steps.max())):
        filled = (step_of == step) & ~absent  # [B, N]
        if not filled.any():
            continue
        tokens = _fill(model, InfillBatch(tokens, known, filled), may_end, config, rng, allowed)
        nfe, drawn = nfe + filled.any(1), drawn + filled.sum(1)
        decided = filled
        if gap_end is not None:
            is_end = tokens == gap_end
            ended = later_in_gap(filled & is_end, batch.given) & batch.target
            decided, absent = filled | (ended & ~absent & ~known), absent | ended
            tokens = tokens.masked_fill(ended, gap_end)
            text = filled & ~ended & ~is_end
            may_end = may_end & ~later_in_gap(text.flip(1), batch.given.flip(1)).flip(1)
        known = (known | filled) & ~absent
        if history is not None:
            _record_trace(history, tokens, decided)
    nfe = nfe.cpu()
    none = torch.zeros(len(tokens), 0, dtype=torch.long)
    return SampleResult(tokens, nfe, drawn.cpu(), none, none, nfe[:, None], 0.0, history)


def _assign_steps(target: torch.Tensor, steps: torch.Tensor, rng: CounterRNG) -> torch.Tensor:
    """The step 0 .. steps [B] - 1 in which each target is filled, -1 elsewhere: target [B, N] bool -> [B, N] int64.

    The targets of a row are shuffled and cut into as many shares, equal but for rounding.
    """
    positions = torch.arange(target.shape[1], device=target.device).expand_as(target)
    shuffled = rng.uniform(positions)[VERDICT].masked_fill(~target, 2.0).argsort(1).argsort(1)  # [B, N], targets first
    return torch.where(target, shuffled * steps[:, None] // target.sum(1, keepdim=True), -1)


def _fill(
    model: DecodingModel,
    batch: InfillBatch,
    may_end: torch.Tensor,
    config: SamplerConfig,
    rng: CounterRNG,
    allowed: torch.Tensor | None,
) -> torch.Tensor:
    """One function evaluation: the tokens [B, N] with the targets drawn, each given the prompt alone.

    may_end: [B, N] bool, where a gap's text may end. allowed: as in `asarm.sampling.sample`.
    """
    order = rank_order(batch.given, batch.target)
    prompt, first, total = int(order.prompt_length.max()), int(order.prompt_length.min()), int(order.length.max())
    ranked = batch.tokens.gather(1, order.order)
    context = order.prompt_length[:, None].expand(-1, total)  # every content token and every query sees the prompt
    positions = order.order[:, first:total]  # [B, S], those of all targets among them
    logits = model(ranked[:, :prompt], order.order[:, :prompt], context[:, :prompt], positions, context[:, first:])
    gap_end = model.config.gap_end_token_id
    logits = exclude_gap_end(logits, may_end.gather(1, positions), gap_end)
    here = None if allowed is None else AllowedTokens(allowed).at(positions)
    logits = config.logits(  # [B, S, V]
        logits, ranked, order.order, positions, context[:, first:], here, gap_end
    )
    drawn = (logits + rng.gumbel(positions, logits.shape[-1], TOKEN)).argmax(-1)
    return torch.where(batch.target, batch.tokens.scatter(1, positions, drawn), batch.tokens)


def _record_trace(history: list[list[TraceStep]], tokens: torch.Tensor, decided: torch.Tensor) -> None:
    """Append the decided [B, N] tokens [B, N] to each row's trace, if it has any in this step."""
    for row, steps in enumerate(history):
        positions = decided[row].nonzero()[:, 0]
        if len(positions) > 0:
            pairs = list(zip(positions.tolist(), tokens[row, positions].tolist(), strict=True))
            steps.append(TraceStep([], [], 0, pairs))
