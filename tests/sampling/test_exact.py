"""The law of every sampler against the enumerated joint, on a vocabulary of four tokens."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from asarm import sampling
from asarm.objective.loss import log_prob
from asarm.sampling import sample
from asarm.sampling.adaptive_window import AdaptivePlan
from asarm.sampling.config import SamplerConfig
from asarm.sampling.fused import sample_fused
from support.models import tiny_gpt2, tiny_xlnet

VOCABULARY = 4
SAMPLES = 100_000
#            prompt in the middle and at the ends; 4, 5 and 6 targets; the last row is a whole place shorter
TARGETS = ["1101101.", "11011110", "1111011."]


def three_texts(model):
    """A model and three ragged rows: tokens [3, 8], given, target."""
    generator = torch.Generator().manual_seed(1)
    target = torch.tensor([[c == "1" for c in row] for row in TARGETS])
    given = torch.tensor([[c == "0" for c in row] for row in TARGETS])
    tokens = torch.randint(0, VOCABULARY, target.shape, generator=generator)
    return model, tokens, given, target


@pytest.fixture(scope="module")
def problem():
    return three_texts(tiny_gpt2(VOCABULARY + 1, draft_head=8))


def enumerated(model, tokens, given, target, temperature) -> torch.Tensor:
    """The joint law [4^targets] of one row, outcomes in the order of base-4 numbers, by its conditionals."""
    count = int(target.sum())
    outcomes = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=count)))
    texts = tokens.repeat(len(outcomes), 1)
    texts[:, target] = outcomes
    rows = len(outcomes)
    return log_prob(model, texts, given.expand(rows, -1), target.expand(rows, -1), temperature).sum(1).double().exp()


def fit(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """p-value of the chi-square test; cells with fewer than 5 expected are pooled."""
    rare = expected < 5
    seen = torch.cat((counts[~rare], counts[rare].sum()[None])).double()
    wanted = torch.cat((expected[~rare], expected[rare].sum()[None]))
    if wanted[-1] < 5:
        seen, wanted = seen[:-1], wanted[:-1]
    return float(chisquare(seen.numpy(), (wanted * seen.sum() / wanted.sum()).numpy()).pvalue)


def chi_square_p(model, problem_rows, config, seed=0) -> list[float]:
    """p-value of each row's outcomes against its enumerated joint."""
    tokens, given, target = problem_rows
    copies = SAMPLES // 4
    counts = [torch.zeros(VOCABULARY ** int(row.sum()), dtype=torch.long) for row in target]
    for chunk in range(4):
        seeds = torch.arange(3 * copies) + 3 * copies * (chunk + 4 * seed)
        repeated = [x.repeat(copies, 1) for x in (tokens, given, target)]
        texts = sample(model, *repeated, config, seeds.tolist()).tokens.view(copies, 3, -1)
        for row in range(3):
            outcome = texts[:, row, target[row]]
            powers = VOCABULARY ** torch.arange(outcome.shape[1] - 1, -1, -1)
            counts[row] += torch.bincount((outcome * powers).sum(1), minlength=len(counts[row]))
    result = []
    for row in range(3):
        expected = SAMPLES * enumerated(model, tokens[row], given[row], target[row], config.temperature)
        assert abs(float(expected.sum()) / SAMPLES - 1) < 1e-5
        result.append(fit(counts[row], expected))
    return result


EXACT = [
    {"sampler": "sequential"},
    {"sampler": "assd", "coupling": "residual", "k": 3},
    {"sampler": "assd", "coupling": "block", "k": 3},
    {"sampler": "assd", "coupling": "gumbel", "k": 3},
    {"sampler": "assd", "draft": "ngram", "coupling": "residual", "k": 2},
    {"sampler": "assd", "draft": "ngram", "coupling": "block", "k": 2},
    {"sampler": "fused", "coupling": "residual", "k": 2},
    {"sampler": "fused", "coupling": "block", "k": 3},
    {"sampler": "fused", "coupling": "gumbel", "k": 2},
    {"sampler": "fused", "draft": "blind", "coupling": "block", "k": 2},
    {"sampler": "fused", "coupling": "block", "k": 4, "adaptive": True},
]


@pytest.fixture(autouse=True)
def fixed_costs(monkeypatch):
    """Costs at which windows of different lengths pay, as more or fewer drafts are accepted."""
    plan = AdaptivePlan(np.array([10.0, 13.0, 15.5, 17.5, 19.0]))
    monkeypatch.setattr(sampling, "adaptive_plan", lambda *arguments: plan)


@pytest.mark.parametrize("settings", EXACT, ids=lambda s: "-".join(map(str, s.values())))
def test_exact_samplers_have_the_enumerated_law(problem, settings):
    model, *rows = problem
    p_values = chi_square_p(model, rows, SamplerConfig(temperature=0.7, **settings))
    assert min(p_values) > 0.001, p_values


@pytest.mark.parametrize("settings", [EXACT[0], EXACT[4], EXACT[7]], ids=lambda s: "-".join(map(str, s.values())))
def test_exact_samplers_at_temperature_1(problem, settings):
    model, *rows = problem
    p_values = chi_square_p(model, rows, SamplerConfig(**settings))
    assert min(p_values) > 0.001, p_values


@pytest.mark.parametrize(
    "settings", [EXACT[0], EXACT[2], *EXACT[6:9], EXACT[10]], ids=lambda s: "-".join(map(str, s.values()))
)
def test_exact_samplers_on_xlnet(settings):
    model, *rows = three_texts(tiny_xlnet(VOCABULARY + 1, draft_head=8))
    p_values = chi_square_p(model, rows, SamplerConfig(temperature=0.7, **settings))
    assert min(p_values) > 0.001, p_values


class Moody:
    """A plan that drafts much or little by what was accepted before, as no sensible plan would."""

    most = 3

    def __init__(self):
        self.k = 0

    def learn(self, size: torch.Tensor, accepted: torch.Tensor) -> None:
        self.k = (self.k + int(accepted.sum()) + 2 * int((accepted < size).sum())) % (self.most + 1)


@pytest.mark.parametrize("coupling", ["residual", "block"])
def test_windows_may_depend_on_what_was_accepted(problem, coupling):
    """Small batches, so that what happened to a row sets the windows that it gets."""
    model, tokens, given, target = problem
    row, rows, batches = 0, 8, 2500
    config = SamplerConfig("fused", coupling=coupling, temperature=0.7)
    texts = [x[row : row + 1].expand(rows, -1) for x in (tokens, given, target & (torch.arange(8) < 5))]
    counts = torch.zeros(VOCABULARY ** int(texts[2][0].sum()), dtype=torch.long)
    with torch.inference_mode():
        for batch in range(batches):
            seeds = range(batch * rows, (batch + 1) * rows)
            outcome = sample_fused(model, *texts, config, seeds, False, Moody()).tokens[:, texts[2][0]]
            powers = VOCABULARY ** torch.arange(outcome.shape[1] - 1, -1, -1)
            counts += torch.bincount((outcome * powers).sum(1), minlength=len(counts))
    expected = enumerated(model, tokens[row], given[row], texts[2][0], 0.7) * counts.sum()
    assert fit(counts, expected) > 0.001


def test_the_parallel_sampler_is_told_apart(problem):
    model, *rows = problem
    assert max(chi_square_p(model, rows, SamplerConfig(sampler="parallel", steps=1))) < 1e-6


def test_tolerance_is_told_apart(problem):
    model, *rows = problem
    assert min(chi_square_p(model, rows, SamplerConfig(k=3, tolerance=0.3))) < 1e-6


def test_log_prob_is_the_product_of_single_conditionals(problem):
    """Chain rule by one query at a time, with the content laid out by hand."""
    model, tokens, given, target = problem
    scores = log_prob(model, tokens, given, target)
    for row in range(3):
        known = given[row].nonzero()[:, 0].tolist()
        prompt = len(known)
        for place in target[row].nonzero()[:, 0].tolist():
            seen = torch.tensor([known])
            context = torch.arange(1, len(known) + 1).clamp(min=prompt)[None]
            query = torch.tensor([[place]])
            logits = model(tokens[row][seen], seen, context, query, torch.tensor([[len(known)]]))
            expected = torch.log_softmax(logits, -1)[0, 0, tokens[row, place]]
            assert abs(float(expected - scores[row, place])) < 1e-5
            known.append(place)


def test_any_subset_given_any_other_is_a_law(problem):
    """Targets and prompt that leave places out: the law over the targets still sums to one."""
    model, tokens, _, _ = problem
    given = torch.tensor([False, False, True, False, False, False, True, False])
    target = torch.tensor([True, False, False, False, True, False, False, True])
    assert abs(float(enumerated(model, tokens[0], given, target, 1.0).sum()) - 1) < 1e-5
