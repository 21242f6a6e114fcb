"""Fused decoding with windows that are as long as it pays on this machine, with this model, on this text.

What a call costs is measured once, how often drafts are accepted is counted on the way, and together they make a small
decision problem that is solved exactly. Neither depends on drafts that are not yet judged, so the law stays exact;
where drafting does not pay, nothing is drafted and each call is one of the sequential sampler's.
"""

import time
from functools import lru_cache
from itertools import islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from asarm.config import SamplerConfig
from asarm.sampling.fused import start, steps

PRIOR_JUDGED, PRIOR_ACCEPTED = 2.0, 1.2  # what is assumed of each draft before any was judged: a hopeful guess
REPLAN, SWEEPS = 32, 8  # calls between two looks at the counts, and iterations of the solution then


class Costs(NamedTuple):
    """Seconds of a call: call + draft * (drafts verified) + query * (drafting queries) + drafting (if there are)."""

    call: float
    draft: float
    query: float
    drafting: float


_measured: WeakKeyDictionary = WeakKeyDictionary()  # model -> shape and coupling -> Costs


def measured_costs(model, batch: int, length: int, coupling: str) -> Costs:
    """Costs of calls for a batch of texts of that length, measured the first time that a size like it is asked for."""
    table = _measured.setdefault(model, {})
    key = (batch.bit_length(), length.bit_length(), coupling, torch.get_num_threads())
    if key not in table:
        table[key] = _measure(model, batch, length, coupling)
    return table[key]


class _Rehearsal:
    """A plan that goes through windows of several lengths and notes each call's drafts, queries and time."""

    SCHEDULE = (0, 0, 0, 1, 1, 1, 1, 3, 3, 3, 3, 6, 6, 6, 0, 6, 3)
    most = max(SCHEDULE)

    def __init__(self):
        self.shapes = []  # of each call: drafts verified, drafting queries

    def depths(self, width: int) -> list[int]:
        depth = self.SCHEDULE[len(self.shapes)]
        self.shapes.append((width, depth * (width + 1)))
        return [depth] * (width + 1)

    def learn(self, size: torch.Tensor, accepted: torch.Tensor) -> None:
        pass


@torch.inference_mode()
def _measure(model, batch: int, length: int, coupling: str) -> Costs:
    """Costs that fit the calls of a rehearsal on random tokens, the fastest call of each shape counted."""
    plan = _Rehearsal()
    targets = sum(plan.SCHEDULE) + len(plan.SCHEDULE)  # as many as may be accepted, and some for what is drafted last
    length = max(length, targets + 1)
    tokens = torch.randint(model.config.vocab_size, (batch, length), device=model.device)
    target = (torch.arange(length, device=model.device) >= length - targets).expand(batch, -1)
    config = SamplerConfig(sampler="fused", coupling=coupling)
    state = start(plan, model, tokens, ~target, target, config, range(batch), trace=False)
    times, before = [], time.perf_counter()
    for _ in islice(steps(state, plan, config), len(plan.SCHEDULE)):
        times.append(time.perf_counter() - before)
        before = time.perf_counter()
    fastest: dict[tuple[int, int], float] = {}
    for shape, seconds in list(zip(plan.shapes, times, strict=True))[1:]:  # the first one reads the prompt
        fastest[shape] = min(seconds, fastest.get(shape, seconds))
    features = np.array([(1, drafts, queries, queries > 0) for drafts, queries in fastest], dtype=float)
    fitted = np.linalg.lstsq(features, np.array(list(fastest.values())), rcond=None)[0]
    return Costs(fitted[0], *fitted[1:].clip(0))


class AdaptivePlan:
    """Windows that make the most tokens a second, by the costs of calls and the acceptance by index so far.

    State w is a window of w drafts. A call in it lands one token and, for each j <= w, another one with the chance
    that the first j drafts are accepted; it leads to a window of d drafts if a were accepted, d being what was drafted
    for a. With `rate` the tokens a second that can be had, time has a price, and the best d for each w and a solve

        value(w) = tokens(w) - rate * seconds(w) + sum over a of max over d of (chance(a | w) value(d) - rate * query d)

    with value(0) = 0 (an average-reward Markov decision process). It is solved by iteration, from where it stood.
    """

    def __init__(self, costs: Costs, most: int):
        self.costs, self.most = costs, most
        self.judged = np.full(most, PRIOR_JUDGED)  # [most] by index: drafts before which all were accepted
        self.accepted = np.full(most, PRIOR_ACCEPTED)
        self.calls = 0
        self.rate, self.value, self.table = _before_any_draft(costs, most)

    def depths(self, width: int) -> list[int]:
        return self.table[width]

    def learn(self, size: torch.Tensor, accepted: torch.Tensor) -> None:
        for drafts, kept in zip(size.tolist(), accepted.tolist(), strict=True):
            self.judged[: min(drafts, kept + 1)] += 1
            self.accepted[:kept] += 1
        self.calls += 1
        if self.calls % REPLAN == 0 or self.calls & (self.calls - 1) == 0:  # often at first: 1, 2, 4, ...
            share = np.append(self.accepted / self.judged, 0.0)
            self.rate, self.value, self.table = solve(self.costs, share, self.rate, self.value, SWEEPS)


@lru_cache
def _before_any_draft(costs: Costs, most: int):
    """What `solve` returns for the acceptance that is assumed at first."""
    share = np.append(np.full(most, PRIOR_ACCEPTED / PRIOR_JUDGED), 0.0)
    return solve(costs, share, 1 / costs.call, np.zeros(most + 1), 10 * SWEEPS)


def solve(costs: Costs, share: np.ndarray, rate: float, value: np.ndarray, sweeps: int):
    """Improve rate and value [K + 1] of `AdaptivePlan` for windows of 0..K drafts, and find the depths that they mean.

    share: [K + 1], of each index in the window, the share of the drafts judged there that is accepted; 0 at the end.
    Returns rate, value and, for each window and number of accepted drafts, how many to draft.
    """
    numbers = np.arange(len(share))
    reach = np.append(1.0, share[:-1].cumprod())  # the chance that the first j drafts are accepted
    tokens = reach.cumsum()
    chance = np.tril(np.broadcast_to(reach * (1 - share), (len(reach),) * 2), -1) + np.diag(reach)  # [W, A]
    for _ in range(sweeps):
        gain = chance[:, :, None] * value - rate * costs.query * numbers  # [W, A, D]
        drafting = np.tril(gain.max(-1)).sum(-1) - rate * costs.drafting  # [W]; not to draft is worth value[0]
        better = tokens - rate * (costs.call + costs.draft * numbers) + drafting.clip(value[0])
        rate += (better[0] - value[0]) / (2 * costs.call)
        value = (value + better - better[0]) / 2
    depths = gain.argmax(-1) * (drafting > value[0])[:, None]
    return rate, value, [row[: width + 1] for width, row in enumerate(depths.tolist())]
