"""Fused decoding with windows that are as long as it pays on this machine, with this model, on texts like these.

What a call with windows of k drafts costs is measured once, how often drafts are accepted is counted on the way, and k
is what makes the most tokens a second by both. Neither depends on drafts that are not yet judged, so the law stays
exact; where drafting does not pay, nothing is drafted and each call is one of the sequential sampler's.
"""

import time
from dataclasses import replace
from itertools import islice
from weakref import WeakKeyDictionary

import numpy as np
import torch

from asarm.sampling.config import SamplerConfig
from asarm.sampling.fused import start, steps

FIRST_GUESS = 0.7  # what is assumed of all drafts before any was judged: hopeful, or else none would be
PRIOR_JUDGED = 8.0  # drafts at an index, as good as those at the index before, that are counted in beforehand
MEMORY = 0.995  # weight of a count after one more call: texts change
MEASURED = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # lengths of windows; between them costs are interpolated
REPEATS, REHEARSALS = 3, 2  # calls of a length in a rehearsal; the first one has the window before, and is not counted
SETTLED = 8  # calls after which k is chosen anew, and between two choices


_plans: WeakKeyDictionary = WeakKeyDictionary()  # model -> shape and settings -> AdaptivePlan


def adaptive_plan(model, batch: int, length: int, config: SamplerConfig) -> "AdaptivePlan":
    """The plan for batches of texts of about that length: made the first time, and kept with what it has learned."""
    plans = _plans.setdefault(model, {})
    key = (batch.bit_length(), length.bit_length(), config.k, config.coupling, config.draft, torch.get_num_threads())
    if key not in plans:
        plans[key] = AdaptivePlan(measured_seconds(model, batch, length, config))
    return plans[key]


def measured_seconds(model, batch: int, length: int, config: SamplerConfig) -> np.ndarray:
    """Seconds of a call for a batch of texts of that length, with windows of 0..k drafts: [k + 1] float64."""
    sizes = [k for k in MEASURED if k < config.k] + [config.k]
    rehearsals = [_rehearse(model, batch, length, sizes, config) for _ in range(REHEARSALS)]
    return np.interp(np.arange(config.k + 1), sizes, np.min(rehearsals, axis=0))


class _Rehearsal:
    """A plan that goes through windows of all sizes."""

    def __init__(self, sizes: list[int]):
        self.most, self.schedule = max(sizes), iter(np.repeat(sizes, REPEATS + 1).tolist())
        self.k = next(self.schedule)

    def learn(self, size: torch.Tensor, accepted: torch.Tensor) -> None:
        self.k = next(self.schedule, 0)


@torch.inference_mode()
def _rehearse(model, batch: int, length: int, sizes: list[int], config: SamplerConfig) -> list[float]:
    """Seconds of a call on random tokens, for each size of the window: the fastest of some."""
    plan = _Rehearsal(sizes)
    targets = (REPEATS + 1) * sum(sizes) + (REPEATS + 2) * len(sizes)  # as many as may be accepted, and some more
    length = max(length, targets + 1)
    tokens = torch.randint(model.config.vocab_size, (batch, length), device=model.device)
    target = (torch.arange(length, device=model.device) >= length - targets).expand(batch, -1)
    config = replace(config, adaptive=False)
    state = start(plan, model, tokens, ~target, target, config, range(batch), trace=False)
    times, before = [], time.perf_counter()
    for _ in islice(steps(state, plan, config), (REPEATS + 1) * len(sizes)):
        times.append(time.perf_counter() - before)
        before = time.perf_counter()
    return np.reshape(times, (len(sizes), REPEATS + 1))[:, 1:].min(1).tolist()


class AdaptivePlan:
    """Windows of the k drafts that make the most tokens a second, by the seconds of calls and the acceptance so far.

    A call lands one token and, for each j <= k, another one with the chance that the first j drafts are accepted.
    """

    def __init__(self, seconds: np.ndarray):
        """seconds: of a call with windows of 0..most drafts, [most + 1]."""
        self.seconds, self.most = seconds, len(seconds) - 1
        self.judged, self.accepted = np.zeros((2, self.most))  # by index; judged: those before which all were accepted
        self.calls, self.k = 0, self.best()

    def learn(self, size: torch.Tensor, accepted: torch.Tensor) -> None:
        self.judged, self.accepted = MEMORY * self.judged, MEMORY * self.accepted
        for drafts, kept in zip(size.tolist(), accepted.tolist(), strict=True):
            self.judged[: min(drafts, kept + 1)] += 1
            self.accepted[:kept] += 1
        self.calls += 1
        if self.calls % SETTLED == 0:
            self.k = self.best()

    def best(self) -> int:
        """The best k by what is known. Later drafts are judged rarely: each index begins where the one before it is."""
        share, tokens, landed = FIRST_GUESS, [1.0], 1.0
        for judged, accepted in zip(self.judged, self.accepted, strict=True):
            share = (accepted + PRIOR_JUDGED * share) / (judged + PRIOR_JUDGED)
            landed *= share
            tokens.append(tokens[-1] + landed)
        return int((np.array(tokens) / self.seconds).argmax())
