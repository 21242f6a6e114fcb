"""Adaptive windows: the choice of k by hand, and the probe that measures latencies."""

import os

import numpy as np
import pytest
import torch

from asarm.sampling import adaptive_window
from asarm.sampling.adaptive_window import (
    UPDATE_INTERVAL,
    AdaptiveWindow,
    LatencyProbe,
    adaptive_window_for,
    measure_latency,
)
from asarm.sampling.config import SamplerConfig
from support.models import tiny_gpt2


def updated(window: AdaptiveWindow, size: int, accepted: int, steps: int) -> int:
    """k after a number of iterations with the same outcome."""
    for _ in range(steps):
        window.update(torch.tensor([min(size, accepted + 1)]), torch.tensor([accepted]))
    return window.k


def test_the_first_k_has_the_most_expected_tokens_a_second():
    """Tokens a step at the prior acceptance of 0.7: 1, 1.7, 2.19, 2.533."""
    assert AdaptiveWindow(np.array([1.0, 1.0, 1.0, 1.0])).k == 3  # drafts cost nothing
    assert AdaptiveWindow(np.array([1.0, 1.1, 2.0, 3.0])).k == 1
    assert AdaptiveWindow(np.array([1.0, 1.6, 2.5, 3.5])).k == 0  # 1.06 times as many: too little
    assert AdaptiveWindow(np.array([1.0, 2.0, 3.0, 4.0])).k == 0  # a draft costs as much as a step


def test_the_first_k_of_assd():
    """Its shortest window has one draft, which is always accepted if the model drafts. Tokens a step then: 1, 2, 2.7,
    3.19; of n-gram drafts: 1, 1.7, 2.19, 2.533."""
    latency = np.array([1.0, 1.7, 2.0, 3.0])
    assert AdaptiveWindow(latency, shortest=1, certain=1).k == 3
    assert AdaptiveWindow(np.array([1.0, 1.7, 2.6, 3.2]), shortest=1, certain=1).k == 2
    assert AdaptiveWindow(np.array([1.0, 1.7, 2.6, 3.2]), shortest=1).k == 1
    window = AdaptiveWindow(latency, shortest=1, certain=1)
    assert (window.max_k, updated(window, 4, 1, 10 * UPDATE_INTERVAL)) == (4, 2)


def test_k_follows_the_acceptance():
    latency = np.array([1.0, 1.2, 1.4, 1.6])
    assert updated(AdaptiveWindow(latency), 3, 3, 10 * UPDATE_INTERVAL) == 3
    assert updated(AdaptiveWindow(latency), 3, 0, 10 * UPDATE_INTERVAL) == 0
    assert updated(AdaptiveWindow(latency), 3, 1, 10 * UPDATE_INTERVAL) == 1


def test_drafts_are_counted_by_column():
    window = AdaptiveWindow(np.ones(5))
    window.update(torch.tensor([2, 2, 0]), torch.tensor([1, 2, 0]))
    assert window.verified.tolist() == [2, 2, 0, 0]
    assert window.accepted.tolist() == [2, 1, 0, 0]


def test_the_probe_goes_through_all_sizes():
    probe, none = LatencyProbe([0, 2, 5]), torch.zeros(1)
    found = [probe.k]
    while len(found) < 12:
        probe.update(none, none)
        found.append(probe.k)
    assert found == [0] * 4 + [2] * 4 + [5] * 4


@pytest.mark.parametrize("draft_head", [0, 8])
@pytest.mark.parametrize(
    ("sampler", "draft"), [("fused", "self"), ("fused", "blind"), ("assd", "self"), ("assd", "ngram")]
)
def test_latencies_of_all_window_lengths(sampler, draft, draft_head):
    model = tiny_gpt2(12, n_positions=512, draft_head=draft_head)
    config = SamplerConfig(sampler=sampler, draft=draft, k=5, adaptive=True)
    latency = measure_latency(model, 2, 30, config)
    assert latency.shape == (6 if sampler == "fused" else 5,)
    assert (latency > 0).all()
    policy = adaptive_window_for(model, 2, 30, config)
    assert (policy.max_k, policy.shortest) == (5, int(sampler == "assd"))
    assert adaptive_window_for(model, 2, 30, config) is policy


def test_latencies_are_kept_for_other_processes(monkeypatch, tmp_path):
    """By machine, shape of the model and settings, for a week."""
    measured = []

    def measure(model, batch, length, config):
        measured.append(config.k)
        return np.arange(1.0, config.k + 2)

    monkeypatch.setattr(adaptive_window, "measure_latency", measure)
    monkeypatch.setattr(adaptive_window, "LATENCIES", tmp_path / "latencies")

    def policy(k: int = 4, **shape: int) -> AdaptiveWindow:
        model = tiny_gpt2(12, n_positions=64, **shape)  # another one each time, as in another process
        return adaptive_window_for(model, 2, 30, SamplerConfig(sampler="fused", k=k, adaptive=True))

    assert policy().latency.tolist() == policy().latency.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert measured == [4]
    policy(k=3), policy(draft_head=8), policy()
    assert measured == [4, 3, 4]
    (file,) = [path for path in (tmp_path / "latencies").iterdir() if len(path.read_text().split(",")) == 4]
    for content in ("no numbers", '{"a": 1}', "[1.0]", "[[1.0], 2.0]"):
        file.write_text(content)
        assert policy(k=3).max_k == 3
    assert measured == [4, 3, 4] + [3] * 4
    os.utime(file, (0, 0))
    policy(k=3)
    assert len(measured) == 8


def test_a_cache_that_cannot_be_written_to_is_none(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(adaptive_window, "LATENCIES", tmp_path / "file" / "latencies")
    config = SamplerConfig(sampler="fused", k=2, adaptive=True)
    assert adaptive_window_for(tiny_gpt2(12, n_positions=64), 1, 30, config).max_k == 2
