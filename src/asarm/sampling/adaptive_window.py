"""Adaptive windows for fused and assd: the number of drafts with the highest throughput on this machine.

The latency of a step with windows of k drafts is measured for a model and a shape of batch, and kept in the user's
cache; the share of accepted drafts is tracked while decoding; k is what maximises throughput by both. Neither depends
on drafts yet to be verified, so the distribution stays exact. The windows depend on the clock, and on what was decoded
before in the same process; the text does not, as adaptive windows are verified by the gumbel coupling. What does is the
number of function evaluations. Where drafting does not pay, windows are of no draft (fused) or of one (assd), and a
step costs what one of the sequential sampler does.
"""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from huggingface_hub import constants

from asarm.models.compiled import CompiledModel, DecodingModel
from asarm.sampling.assd import AssdDecoding, step_of
from asarm.sampling.config import SamplerConfig
from asarm.sampling.fused import FusedDecoding, fused_step
from asarm.tokenization.batch import InfillBatch
from asarm.utils.files import sha256_of_text, write_json
from asarm.utils.provenance import device_name, processor_name

LATENCIES = Path(constants.HF_ASSETS_CACHE) / "asarm" / "latencies"
KEPT_SECONDS = 7 * 24 * 3600.0  # machines change, and a measurement may have been disturbed
PRIOR_ACCEPTANCE = 0.7  # of all drafts before any was verified: optimistic, or else none would be tried
PRIOR_WEIGHT = 8.0  # verified drafts that the prior of a column counts for
DECAY = 0.995  # weight of a count after one more step: acceptance changes from sequence to sequence
PROBED_SIZES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # lengths of windows; latencies between them are interpolated
REPEATS = 3  # timed steps of each length, after one that is not: it verifies a window of the previous length
PROBES = 3  # runs through all lengths
UPDATE_INTERVAL = 4  # steps between two choices of k
LEAST_GAIN = 1.1  # of throughput, for drafts to be worth it: latencies are measured, and rows finish at different times

_windows: WeakKeyDictionary = WeakKeyDictionary()  # model -> shape and settings -> AdaptiveWindow


def adaptive_window_for(model: DecodingModel, batch: int, length: int, config: SamplerConfig) -> "AdaptiveWindow":
    """The policy for batches of about that shape: made at the first call, and kept with its counts for later ones."""
    windows = _windows.setdefault(model, {})
    threads = torch.get_num_threads()
    shape = (batch.bit_length(), length.bit_length(), threads)
    key = (*shape, config.sampler, config.k, config.coupling, config.draft, config.alternatives)
    if key not in windows:
        certain = int(config.sampler == "assd" and config.draft != "ngram")
        latency = kept_latency(model, batch, length, config, key)
        windows[key] = AdaptiveWindow(latency, shortest_window(config), certain)
    return windows[key]


def kept_latency(
    model: DecodingModel, batch: int, length: int, config: SamplerConfig, settings: tuple[Any, ...]
) -> np.ndarray:
    """What `measure_latency` returns, or returned on this machine in the last week, in any process, for a model of the
    same shape and the same settings."""
    network = model.model if isinstance(model, CompiledModel) else model
    machine = [processor_name(), device_name(model.device), torch.__version__]
    shape = [network.config.to_diff_dict(), str(network.compute_dtype), getattr(model, "compiles", None)]
    path = LATENCIES / f"{sha256_of_text(json.dumps([machine, shape, settings], default=str, sort_keys=True))}.json"
    try:
        if time.time() - path.stat().st_mtime < KEPT_SECONDS:
            latency = np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float64)
            if latency.shape == (config.k + 1 - shortest_window(config),):
                return latency
    except (OSError, ValueError, TypeError):  # never measured, or not a file of this function's
        pass
    latency = measure_latency(model, batch, length, config)
    with suppress(OSError):  # a cache that cannot be written to is none
        write_json(path, latency.tolist())
    return latency


def shortest_window(config: SamplerConfig) -> int:
    """Drafts of the shortest window: the first draft of assd is the token that sequential decoding draws."""
    return int(config.sampler == "assd")


class AdaptiveWindow:
    """The k with the highest throughput, by the latency of a step and the acceptance so far; the shortest window
    unless another one is faster by a margin.

    A step of fused decides one token and, for each j <= k, another one with the probability that the first j drafts are
    all accepted; one of assd likewise for each j < k.
    """

    def __init__(self, latency: np.ndarray, shortest: int = 0, certain: int = 0):
        """latency: seconds of a step with windows of shortest .. max_k drafts, [max_k - shortest + 1] float64.
        certain: how many drafts of a window are always accepted."""
        self.latency, self.shortest, self.certain = latency, shortest, certain
        self.max_k = shortest + len(latency) - 1
        # By column of the window: drafts up to the first rejection, and accepted drafts.
        self.verified, self.accepted = np.zeros((2, self.max_k))
        self.steps, self.k = 0, self.best_k()

    def update(self, verified: np.ndarray, accepted: np.ndarray) -> None:
        """As in `WindowPolicy`."""
        self.verified, self.accepted = DECAY * self.verified, DECAY * self.accepted
        for drafts, kept in zip(verified.tolist(), accepted.tolist(), strict=True):
            self.verified[:drafts] += 1
            self.accepted[:kept] += 1
        self.steps += 1
        if self.steps % UPDATE_INTERVAL == 0:
            self.k = self.best_k()

    def best_k(self) -> int:
        """The k to be used next. Later columns are verified rarely, so the estimate of the
        column before is the prior of each."""
        rate, tokens, all_accepted = PRIOR_ACCEPTANCE, [1.0], 1.0
        for column in range(len(self.latency) - 1):
            if column >= self.certain:
                rate = (self.accepted[column] + PRIOR_WEIGHT * rate) / (self.verified[column] + PRIOR_WEIGHT)
                all_accepted *= rate
            tokens.append(tokens[-1] + all_accepted)
        throughput = np.array(tokens) / self.latency
        throughput[0] *= LEAST_GAIN
        return self.shortest + int(throughput.argmax())


def measure_latency(model: DecodingModel, batch: int, length: int, config: SamplerConfig) -> np.ndarray:
    """Seconds of a step for a batch of that shape with windows of all lengths up to config.k drafts, from the shortest
    on: float64."""
    shortest = shortest_window(config)
    sizes = [k for k in PROBED_SIZES if shortest <= k < config.k] + [config.k]
    probes = [_probe(model, batch, length, sizes, config) for _ in range(PROBES)]
    return np.interp(np.arange(shortest, config.k + 1), sizes, np.min(probes, axis=0))


class LatencyProbe:
    """A window policy that goes through all sizes, REPEATS + 1 steps each."""

    def __init__(self, sizes: list[int]):
        self.max_k, self.schedule = max(sizes), iter(np.repeat(sizes, REPEATS + 1).tolist())
        self.k = next(self.schedule)

    def update(self, verified: np.ndarray, accepted: np.ndarray) -> None:
        """As in `WindowPolicy`."""
        self.k = next(self.schedule, 0)


@torch.inference_mode()
def _probe(model: DecodingModel, batch: int, length: int, sizes: list[int], config: SamplerConfig) -> list[float]:
    """Seconds of a step on random tokens for each size of the window: the fastest of REPEATS."""
    policy = LatencyProbe(sizes)
    steps = (REPEATS + 1) * len(sizes)
    targets = (REPEATS + 1) * sum(sizes) + (REPEATS + 2) * len(sizes)  # more than all steps can decide
    length = max(length, targets + 1)
    tokens = torch.randint(model.config.vocab_size, (batch, length), device=model.device)
    target = (torch.arange(length, device=model.device) >= length - targets).expand(batch, -1)
    is_fused = config.sampler == "fused"
    decoding_of, step = (FusedDecoding, fused_step) if is_fused else (AssdDecoding, step_of(config))
    decoding = decoding_of(model, InfillBatch(tokens, ~target, target), config, range(batch), False, policy)
    seconds = []
    for _ in range(steps):
        before = time.perf_counter()
        decoding.step(step)
        decoding.look()  # waits for the device
        seconds.append(time.perf_counter() - before)
    return np.reshape(seconds, (len(sizes), REPEATS + 1))[:, 1:].min(1).tolist()
