"""Samplers on a vocabulary of four tokens, whose joint distributions can be enumerated."""

import itertools
import os

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from asarm import sampling
from asarm.objective.loss import log_prob
from asarm.sampling import sample
from asarm.sampling.adaptive_window import AdaptiveWindow

VOCABULARY = 4
WHOLE_GRID = os.environ.get("WHOLE_GRID") == "1"  # 100,000 samples and every transform with every sampler: two hours
SAMPLES = 100_000 if WHOLE_GRID else 40_000
COPIES = 1_000  # of each row in a batch: larger ones leave the processor's cache
# "1" is a target, "0" given, "." absent. Prompts in the middle and at the ends; 5, 6 and 6 targets.
TARGETS = ["1101101.", "11011110", "1111011."]


def ragged_problem(model):
    """A model and three ragged rows: tokens [3, 8], given, target."""
    generator = torch.Generator().manual_seed(1)
    target = torch.tensor([[c == "1" for c in row] for row in TARGETS])
    given = torch.tensor([[c == "0" for c in row] for row in TARGETS])
    tokens = torch.randint(0, VOCABULARY, target.shape, generator=generator)
    return model, tokens, given, target


# "1" is a target, "0" given, "." absent, and "e" the given token that makes the gap before it one of unknown length.
GAPS = ["01111e00.", "11e0110e1", "011e0111e"]


def open_problem(backbone):
    """A model with a token that ends gaps (the last but one), and three rows."""
    model, end = backbone(VOCABULARY + 1, gap_end_token_id=VOCABULARY - 1, draft_head=8), VOCABULARY - 1
    target, given, ends = (torch.tensor([[c in some for c in row] for row in GAPS]) for some in ("1", "0e", "e"))
    tokens = torch.randint(0, end, target.shape, generator=torch.Generator().manual_seed(2)).masked_fill(ends, end)
    return model, tokens, given, target


def enumerated(model, tokens, given, target, temperature=1.0, **transforms) -> torch.Tensor:
    """The joint distribution [4^targets] of one row, outcomes in the order of base-4 numbers, by its conditionals."""
    count = int(target.sum())
    outcomes = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=count)))
    sequences = tokens.repeat(len(outcomes), 1)
    sequences[:, target] = outcomes
    rows = len(outcomes)
    known, wanted = given.expand(rows, -1), target.expand(rows, -1)
    scores = log_prob(model, sequences, known, wanted, temperature, **transforms)  # [outcomes, N]
    return scores.sum(1).double().exp()


def fit_p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """p-value of the chi-square test; cells with fewer than 5 expected are pooled."""
    rare = expected < 5
    seen = torch.cat((counts[~rare], counts[rare].sum()[None])).double()
    wanted = torch.cat((expected[~rare], expected[rare].sum()[None]))
    if wanted[-1] < 5:
        seen, wanted = seen[:-1], wanted[:-1]
    if len(wanted) == 1:  # as at temperature 0
        return 1.0
    return float(chisquare(seen.numpy(), (wanted * seen.sum() / wanted.sum()).numpy()).pvalue)


def chi_square_p(model, problem_rows, config, seed=0, samples=SAMPLES, allowed=None, forbidden=False) -> list[float]:
    """p-value of each row's outcomes against its enumerated joint. No outcome may be one that has no probability.

    allowed: [3, N, V] bool or None. forbidden: such outcomes make the p-value 0 instead.
    """
    tokens, given, target = problem_rows
    counts = [torch.zeros(VOCABULARY ** int(row.sum()), dtype=torch.long) for row in target]
    repeated = [x.repeat(COPIES, 1) for x in (tokens, given, target)]
    mask = None if allowed is None else allowed.repeat(COPIES, 1, 1)
    for first in range(0, samples, COPIES):
        seeds = torch.arange(3 * COPIES) + 3 * (first + samples * seed)
        sequences = sample(model, *repeated, config, seeds.tolist(), allowed=mask).tokens.view(COPIES, 3, -1)
        for row in range(3):
            outcome = sequences[:, row, target[row]]
            powers = VOCABULARY ** torch.arange(outcome.shape[1] - 1, -1, -1)
            counts[row] += torch.bincount((outcome * powers).sum(1), minlength=len(counts[row]))
    result = []
    for row in range(3):
        mask = None if allowed is None else allowed[row : row + 1]
        expected = samples * enumerated(model, tokens[row], given[row], target[row], transforms=config, allowed=mask)
        assert abs(float(expected.sum()) / samples - 1) < 1e-5
        impossible = int(counts[row][expected == 0].sum())
        assert forbidden or impossible == 0
        result.append(0.0 if impossible else fit_p_value(counts[row], expected))
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
    {"sampler": "fused", "k": 4, "adaptive": True},
    {"sampler": "assd", "k": 4, "adaptive": True},
    {"sampler": "assd", "k": 3, "draft_temperature": 0.3},
    {"sampler": "fused", "coupling": "block", "k": 3, "draft_temperature": 2.0},
    {"sampler": "assd", "draft": "blind", "coupling": "residual", "k": 3},
    {"sampler": "fused", "coupling": "residual", "k": 3, "alternatives": 2},
    {"sampler": "fused", "coupling": "block", "k": 2, "alternatives": 1},
    {"sampler": "fused", "coupling": "gumbel", "k": 2, "alternatives": 3},
]


@pytest.fixture
def fixed_latency(monkeypatch):
    """Latencies at which windows of different lengths pay, as more or fewer drafts are accepted."""
    policies = {
        "fused": AdaptiveWindow(np.array([10.0, 13.0, 15.5, 17.5, 19.0])),
        "assd": AdaptiveWindow(np.array([10.0, 20.0, 21.5, 23.0]), shortest=1, certain=1),
    }
    monkeypatch.setattr(sampling, "adaptive_window_for", lambda *arguments: policies[arguments[-1].sampler])
