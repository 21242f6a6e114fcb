"""Parallel sampler: conditionally independent tokens in a few steps, as in masked diffusion. Fast, but NOT exact."""

from collections.abc import Sequence

import torch

from asarm.models.compiled import DecodingModel
from asarm.models.rank_order import rank_order
from asarm.sampling.config import SamplerConfig
from asarm.sampling.counter_rng import TOKEN, VERDICT, CounterRNG
from asarm.sampling.result import SampleResult, TraceStep
from asarm.tokenization.batch import InfillBatch


def sample_parallel(
    model: DecodingModel, batch: InfillBatch, config: SamplerConfig, seeds: Sequence[int], trace: bool
) -> SampleResult:
    """Not exact; NFE = min(steps, targets). Arguments as in `asarm.sampling.sample`.

    In each of `config.steps` steps a random share of the targets is filled, each given what was known before the step
    and independently of the others; then the filled ones belong to the prompt.
    """
    rng = CounterRNG.from_seeds(seeds, batch.tokens.device)
    targets = batch.target.sum(1)  # [B]
    steps = targets.clamp(max=config.steps)  # [B]
    step_of = _assign_steps(batch.target, steps, rng)  # [B, N]
    tokens, known = batch.tokens, batch.given
    history: list[list[TraceStep]] = [[] for _ in seeds]
    for step in range(int(steps.max())):
        filled = step_of == step  # [B, N]
        tokens = _fill(model, InfillBatch(tokens, known, filled), config.temperature, rng)
        known = known | filled
        if trace:
            _record_trace(history, tokens, filled)
    none = torch.zeros(len(tokens), 0, dtype=torch.long)
    return SampleResult(tokens, steps.cpu(), targets.cpu(), none, none, 0.0, history if trace else None)


def _assign_steps(target: torch.Tensor, steps: torch.Tensor, rng: CounterRNG) -> torch.Tensor:
    """The step 0 .. steps [B] - 1 in which each target is filled, -1 elsewhere: target [B, N] bool -> [B, N] int64.

    The targets of a row are shuffled and cut into as many shares, equal but for rounding.
    """
    positions = torch.arange(target.shape[1], device=target.device).expand_as(target)
    shuffled = rng.uniform(positions, VERDICT).masked_fill(~target, 2.0).argsort(1).argsort(1)  # [B, N], targets first
    return torch.where(target, shuffled * steps[:, None] // target.sum(1, keepdim=True), -1)


def _fill(model: DecodingModel, batch: InfillBatch, temperature: float, rng: CounterRNG) -> torch.Tensor:
    """One function evaluation: the tokens [B, N] with the targets drawn, each given the prompt alone."""
    order = rank_order(batch.given, batch.target)
    prompt, first, total = int(order.prompt_length.max()), int(order.prompt_length.min()), int(order.length.max())
    ranked = batch.tokens.gather(1, order.order)
    context = order.prompt_length[:, None].expand(-1, total)  # every content token and every query sees the prompt
    positions = order.order[:, first:total]  # [B, S], those of all targets among them
    logits = model(ranked[:, :prompt], order.order[:, :prompt], context[:, :prompt], positions, context[:, first:])
    log_p = torch.log_softmax(logits.float() / temperature, dim=-1)  # [B, S, V]
    drawn = (log_p + rng.gumbel(positions, log_p.shape[-1], TOKEN)).argmax(-1)
    return torch.where(batch.target, batch.tokens.scatter(1, positions, drawn), batch.tokens)


def _record_trace(history: list[list[TraceStep]], tokens: torch.Tensor, filled: torch.Tensor) -> None:
    """Append the filled [B, N] tokens [B, N] to each row's trace, if it has any in this step."""
    for row, steps in enumerate(history):
        positions = filled[row].nonzero()[:, 0]
        if len(positions) > 0:
            pairs = list(zip(positions.tolist(), tokens[row, positions].tolist(), strict=True))
            steps.append(TraceStep([], [], 0, pairs))
