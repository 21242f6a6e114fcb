"""Conditionally independent tokens in a few steps, as masked diffusion decodes: fast, and NOT the joint law."""

import torch

from asarm.models.rank_order import rank_order
from asarm.sampling.counter_rng import TOKEN, VERDICT, CounterRNG
from asarm.sampling.result import SampleResult, TraceStep


def sample_parallel(model, tokens, given, target, config, seeds, trace) -> SampleResult:
    """Not exact; NFE = min(steps, targets). Arguments as in `asarm.sampling.sample`.

    In each of `config.steps` steps a random share of the open places is filled, each place given what was known
    before the step and independently of the others; then all that is known becomes the prompt.
    """
    noise = CounterRNG(torch.tensor(list(seeds), dtype=torch.long, device=tokens.device))
    batch, length = tokens.shape
    places = torch.arange(length, device=tokens.device).expand(batch, -1)
    # A random number for each target decides in which step it is filled.
    turn = noise.uniform(places, VERDICT).masked_fill(~target, 2.0).argsort(1).argsort(1)  # [B, N]
    targets = target.sum(1)
    steps = targets.clamp(max=config.steps)  # [B]
    turn = torch.where(target, turn * steps[:, None] // targets[:, None], -1)  # [B, N] step of each target
    tokens, known = tokens.clone(), given.clone()
    history = [[] for _ in range(batch)]
    for step in range(int(steps.max())):
        now = turn == step
        order = rank_order(known, now)
        seen, total = int(order.prompt_length.max()), int(order.length.max())
        first = int(order.prompt_length.min())
        ranked = tokens.gather(1, order.order)
        context = order.prompt_length[:, None].expand(-1, total)
        logits = model(
            ranked[:, :seen],
            order.order[:, :seen],
            context[:, :seen],
            order.order[:, first:total],
            context[:, first:],
        )  # [B, S, V]
        log_p = torch.log_softmax(logits.float() / config.temperature, dim=-1)
        spots = order.order[:, first:total]
        draws = (log_p + noise.gumbel(spots, log_p.shape[-1], TOKEN)).argmax(-1)
        tokens = torch.where(now, tokens.scatter(1, spots, draws), tokens)
        known = known | now
        for row in range(batch):
            if trace and now[row].any():
                spot = now[row].nonzero()[:, 0]
                pairs = list(zip(spot.tolist(), tokens[row, spot].tolist(), strict=True))
                history[row].append(TraceStep([], [], 0, pairs))
    none = torch.zeros(batch, 0, dtype=torch.long)
    return SampleResult(tokens, steps.cpu(), targets.cpu(), none, none, 0.0, history if trace else None)
