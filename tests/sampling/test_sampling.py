"""Samplers on random models: equal outcomes under the gumbel coupling, costs, independence of the batch, traces."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from asarm import sampling
from asarm.sampling import sample
from asarm.sampling.adaptive_window import AdaptiveWindow
from asarm.sampling.assd import NO_TOKEN, BigramTable
from asarm.sampling.config import SamplerConfig
from asarm.sampling.counter_rng import TOKEN, VERDICT, CounterRNG
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.transforms import HIGHEST_TEMPERATURE, LOWEST_TEMPERATURE
from asarm.utils.errors import InputError
from support.enumeration import EXACT
from support.models import random_batch, tiny_gpt2, tiny_llama, tiny_xlnet

ALL = [
    SamplerConfig(sampler="sequential"),
    SamplerConfig(sampler="parallel", steps=3),
    *(SamplerConfig(draft=d, coupling=c, k=4) for d in ("self", "ngram") for c in ("residual", "block", "gumbel")),
    *(
        SamplerConfig(sampler="fused", coupling=c, k=4, alternatives=a)
        for c in ("residual", "block", "gumbel")
        for a in (0, 3)
    ),
    *(SamplerConfig(sampler=s, k=4, draft_temperature=0.5) for s in ("assd", "fused")),
]


@pytest.fixture(scope="module")
def model():
    return tiny_gpt2(12, scale=0.9, n_embd=32)


@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet])
@pytest.mark.parametrize(("sampler", "draft"), [("assd", "self"), ("assd", "ngram"), ("fused", "self")])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 15])
def test_gumbel_gives_the_sequential_tokens(backbone, sampler, draft, k):
    model = backbone(12, scale=0.9)
    rejected = 0
    for seed in range(4):
        inputs = random_batch(6, 40, 12, seed)
        seeds = range(100 * seed, 100 * seed + 6)
        base = sample(model, *inputs, SamplerConfig(sampler="sequential"), seeds)
        ours = sample(model, *inputs, SamplerConfig(sampler=sampler, draft=draft, coupling="gumbel", k=k), seeds)
        assert torch.equal(base.tokens, ours.tokens)
        rejected += int(ours.proposed.sum() - ours.accepted.sum())
    assert rejected > 0 or (sampler, draft, k) == ("assd", "self", 1)


@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])
@pytest.mark.parametrize("coupling", ["residual", "block", "gumbel"])
def test_a_recurrent_head_drafts_before_the_first_call(backbone, coupling):
    """As far as the gap goes, but not where nothing is to its left; each row as by itself."""
    model = backbone(12, scale=0.9, draft_head=8, draft_recurrent=True)
    tokens = random_batch(6, 12, 12, seed=2).tokens
    target = torch.zeros(6, 12, dtype=torch.bool)
    gaps = ([4, 5, 6, 7], [0, 1, 2], [10, 11], [4, 6, 7], [1], [0, 5])
    for row, gap in enumerate(gaps):
        target[row, gap] = True
    config = SamplerConfig(sampler="fused", coupling=coupling, k=3, alternatives=2)
    result = sample(model, tokens, ~target, target, config, range(6), trace=True)
    assert [len(steps[0].drafts) for steps in result.trace] == [3, 0, 2, 1, 1, 0]
    absent = InfillBatch(tokens[:1], ~target[:1], target[:1])
    absent.given[0, 3] = False  # nor where the token there is absent
    assert not sample(model, *absent, config, [0], trace=True).trace[0][0].drafts
    for row in range(6):
        here = slice(row, row + 1)
        alone = sample(model, tokens[here], ~target[here], target[here], config, [row])
        assert torch.equal(alone.tokens[0], result.tokens[row])
        assert alone.nfe[0] == result.nfe[row]
    if coupling == "gumbel":
        sequential = sample(model, tokens, ~target, target, SamplerConfig(sampler="sequential"), range(6))
        assert torch.equal(sequential.tokens, result.tokens)


@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])
@pytest.mark.parametrize("head", [{}, {"draft_head": 8, "draft_recurrent": True, "draft_vocabulary": 9}])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_alternatives_save_evaluations(backbone, head, k):
    """The text of the gumbel coupling is the same, by fewer of them; by few fewer, if the model is sharp."""
    model, inputs = backbone(12, scale=0.9, **head), random_batch(60, 40, 12, seed=0)
    texts, nfe = [], []
    for alternatives in (0, 1, 3):
        config = SamplerConfig(sampler="fused", coupling="gumbel", k=k, alternatives=alternatives)
        result = sample(model, *inputs, config, range(60))
        texts.append(result.tokens)
        nfe.append(int(result.nfe.sum()))
    assert all(torch.equal(text, texts[0]) for text in texts)
    assert nfe[0] >= nfe[1] >= nfe[2]
    assert nfe[0] > nfe[2]


@pytest.mark.parametrize("settings", EXACT, ids=str)
@pytest.mark.usefixtures("fixed_latency")
def test_windows_are_counted(model, settings):
    config = SamplerConfig(**settings)
    result = sample(model, *random_batch(6, 40, 12, seed=3), config, range(6))
    sizes = torch.arange(result.windows.shape[1])
    calls = torch.where(sizes > 1, 2, 1) if config.sampler == "assd" and config.draft != "ngram" else 1
    assert torch.equal((calls * result.windows).sum(1), result.nfe)
    assert torch.all((sizes * result.windows).sum(1) >= result.proposed.sum(1))
    if config.sampler != "sequential":
        assert torch.equal(result.windows[:, 1:].sum(1), result.proposed[:, 0])  # some draft of each is verified


@pytest.mark.parametrize("fastest", [0, 1, 3, 6])
@pytest.mark.parametrize(("sampler", "draft"), [("fused", "self"), ("assd", "self"), ("assd", "ngram")])
def test_adaptive_windows_do_not_change_the_text(monkeypatch, model, sampler, draft, fastest):
    """Whatever window is the fastest, at the beginning and after some steps, the text is that of `sequential`."""
    latency = [1.0 if k == fastest else 99.0 for k in range(7)]
    window = AdaptiveWindow(
        np.array(latency), shortest=int(sampler == "assd"), certain=int((sampler, draft) == ("assd", "self"))
    )
    monkeypatch.setattr(sampling, "adaptive_window_for", lambda *arguments: window)
    for seed in range(4):
        inputs, seeds = random_batch(6, 40, 12, seed), range(100 * seed, 100 * seed + 6)
        base = sample(model, *inputs, SamplerConfig(sampler="sequential"), seeds)
        ours = sample(model, *inputs, SamplerConfig(sampler=sampler, draft=draft, adaptive=True), seeds)
        assert torch.equal(base.tokens, ours.tokens)
        window.latency = np.roll(window.latency, 1)


def test_the_temperature_of_drafts_changes_their_acceptance_only(model):
    """Drafts from a colder or hotter distribution than the target's are accepted less often."""
    inputs = random_batch(400, 30, 12, seed=3)
    rates = []
    for draft_temperature in (None, 1.0, 0.2, 5.0):
        config = SamplerConfig(k=4, draft_temperature=draft_temperature)
        result = sample(model, *inputs, config, range(400))
        assert torch.equal(result.accepted[:, 0], result.proposed[:, 0])  # the first draft is drawn from the joint
        rates.append(float(result.accepted[:, 1:].sum() / result.proposed[:, 1:].sum()))
    assert rates[0] == rates[1]
    assert max(rates[2:]) < rates[0] - 0.05, rates


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": value}, "temperature must lie in") for value in (-1.0, 1e-38, 1e10, math.inf, math.nan)
    ]
    + [
        ({"draft_temperature": 1e-12}, "draft_temperature must lie in"),
        ({"sampler": "fused", "adaptive": True, "coupling": "block"}, "the text would depend on the clock"),
        ({"alternatives": 17}, "alternatives must lie in 0..16, not 17"),
        ({"sampler": "parallel", "adaptive": True}, "adaptive is for samplers that draft, assd and fused"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        SamplerConfig(**settings)


@pytest.mark.parametrize("sampler", ["sequential", "assd", "fused", "parallel"])
@pytest.mark.parametrize("temperature", [0, LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE])
@pytest.mark.parametrize("coupling", ["residual", "block", "gumbel"])
def test_extreme_temperatures_give_the_best_tokens_or_uniform_ones(model, sampler, temperature, coupling):
    inputs = random_batch(200, 12, 12, seed=5)
    target = inputs[2]
    config = SamplerConfig(sampler=sampler, coupling=coupling, temperature=temperature)
    texts = [sample(model, *inputs, config, range(seed, seed + 200)).tokens for seed in (0, 1000)]
    if temperature == HIGHEST_TEMPERATURE:
        counts = torch.bincount(torch.cat(texts)[target.repeat(2, 1)], minlength=12)
        assert counts[11] == 0
        assert chisquare(counts[:11].numpy()).pvalue > 0.001
    elif sampler != "parallel":
        assert torch.equal(*texts)


@pytest.mark.parametrize("config", ALL, ids=lambda c: f"{c.sampler}-{c.draft}-{c.coupling}")
def test_a_row_does_not_depend_on_its_batch(model, config):
    tokens, given, target = random_batch(5, 30, 12, seed=7)
    together = sample(model, tokens, given, target, config, [10, 11, 12, 13, 14])
    for row in (0, 3, 4):
        here = slice(row, row + 1)
        alone = sample(model, tokens[here], given[here], target[here], config, [10 + row])
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert alone.nfe[0] == together.nfe[row]
        assert torch.equal(alone.accepted[0], together.accepted[row])


@pytest.mark.parametrize("config", ALL, ids=lambda c: f"{c.sampler}-{c.draft}-{c.coupling}")
def test_costs_and_untouched_positions(model, config):
    """On 1,200 ragged rows: NFE <= targets, prompts and padding as they were, no mask token, counts that add up."""
    tokens, given, target = random_batch(1200, 16, 12, seed=8)
    result = sample(model, tokens, given, target, config, range(1200))
    assert (result.nfe <= target.sum(1)).all()
    assert (result.nfe >= 1).all()
    assert torch.equal(result.targets, target.sum(1))
    assert torch.equal(result.tokens[~target], tokens[~target])
    assert (result.tokens != 11).all()
    assert (result.accepted <= result.proposed).all()
    if config.sampler == "sequential":
        assert torch.equal(result.nfe, result.targets)
    if config.sampler == "assd" and config.draft == "self":
        assert torch.equal(result.accepted[:, 0], result.proposed[:, 0])  # the first draft is drawn from the joint


@pytest.mark.parametrize("config", ALL, ids=lambda c: f"{c.sampler}-{c.draft}-{c.coupling}")
def test_the_trace_replays_to_the_result(model, config):
    tokens, given, target = random_batch(4, 25, 12, seed=9)
    result = sample(model, tokens, given, target, config, range(4), trace=True)
    for row, steps in enumerate(result.trace):
        sequence = tokens[row].clone().masked_fill(target[row], -1)
        for step in steps:
            pairs = list(zip(step.positions, step.drafts, strict=True))
            for position, token in pairs[: step.accepted] + step.added:
                assert sequence[position] == -1
                sequence[position] = token
        assert torch.equal(sequence[target[row]], result.tokens[row, target[row]])


def test_temperature_near_zero_takes_the_likeliest(model):
    inputs = random_batch(3, 20, 12, seed=10)
    cold = [sample(model, *inputs, SamplerConfig(temperature=1e-4), range(s, s + 3)).tokens for s in (0, 50)]
    assert torch.equal(*cold)


def test_tolerance_accepts_more(model):
    inputs = random_batch(64, 30, 12, seed=11)
    strict, loose = (sample(model, *inputs, SamplerConfig(tolerance=t), range(64)) for t in (0.0, 0.5))
    assert loose.nfe.sum() < strict.nfe.sum()


def test_invalid_input(model):
    tokens, given, target = random_batch(2, 10, 12, seed=12)
    with pytest.raises(ValueError, match="differ in shape"):
        sample(model, tokens, given[:, :5], target, SamplerConfig(), [0, 1])
    with pytest.raises(ValueError, match="seeds"):
        sample(model, tokens, given, target, SamplerConfig(), [0])
    with pytest.raises(ValueError, match="no target"):
        sample(model, tokens, given, torch.zeros_like(target), SamplerConfig(), [0, 1])
    with pytest.raises(ValueError, match="both given and a target"):
        sample(model, tokens, given | target, target, SamplerConfig(), [0, 1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "k must be at least 1"),
        ({"sampler": "magic"}, "unknown sampler"),
        ({"draft": "none"}, "unknown draft"),
        ({"coupling": "none"}, "unknown coupling"),
        ({"temperature": -0.1}, "temperature"),
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": 0.1, "coupling": "gumbel"}, "residual"),
        ({"steps": 0}, "steps"),
    ],
)
def test_invalid_settings(wrong, message):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**wrong)


def test_random_numbers_have_their_distributions_and_depend_on_every_key():
    positions = torch.arange(200).expand(50, -1)
    rng = CounterRNG(torch.arange(50))
    gumbel = rng.gumbel(positions, 7, TOKEN)
    assert kstest(gumbel.flatten().numpy(), "gumbel_r").pvalue > 0.01
    assert kstest(rng.uniform(positions)[VERDICT].flatten().numpy(), "uniform").pvalue > 0.01
    for axis in range(3):
        left, right = gumbel.narrow(axis, 0, gumbel.shape[axis] - 1), gumbel.narrow(axis, 1, gumbel.shape[axis] - 1)
        correlation = torch.corrcoef(torch.stack((left.flatten(), right.flatten())))[0, 1]
        assert abs(correlation) < 4 / left.numel() ** 0.5
    assert torch.equal(CounterRNG(torch.tensor([3])).gumbel(positions[:1, 5:6], 7, TOKEN)[0, 0], gumbel[3, 5])


def test_ngram_table_by_hand():
    sequence = torch.tensor([[1, 2, 1, 3, 1, 2, 0]])
    known = torch.tensor([[True, True, True, True, True, False, True]])
    table = BigramTable(sequence, known, 5)
    torch.testing.assert_close(table.after(torch.tensor([1])), torch.tensor([[0.0, 0.0, 0.5, 0.5, 0.0]]))
    for left in (4, NO_TOKEN):
        torch.testing.assert_close(table.after(torch.tensor([left])), torch.tensor([[1 / 6, 3 / 6, 1 / 6, 1 / 6, 0.0]]))
    uniform = BigramTable(sequence, torch.zeros_like(known), 5).after(torch.tensor([1]))
    torch.testing.assert_close(uniform, torch.full((1, 5), 0.2))


@pytest.mark.parametrize(
    "settings",
    [{"draft": "self"}, {"draft": "ngram"}, {"sampler": "fused"}, {"sampler": "parallel"}, {"coupling": "block"}],
)
def test_more_drafts_or_steps_than_tokens_change_nothing(model, settings):
    """However many there are, beyond what tensors can hold, too."""
    inputs = random_batch(4, 20, 12, seed=5)
    enough = sample(model, *inputs, SamplerConfig(**settings, k=20, steps=20), range(4))
    far_more = sample(model, *inputs, SamplerConfig(**settings, k=10**30, steps=10**30), range(4))
    assert torch.equal(enough.tokens, far_more.tokens)
    assert torch.equal(enough.nfe, far_more.nfe)
