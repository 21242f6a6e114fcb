"""The distribution of every sampler against the enumerated joint, on a vocabulary of four tokens."""

import pytest
import torch

from asarm.objective.loss import log_prob
from asarm.sampling.config import SamplerConfig
from asarm.sampling.fused import sample_fused
from asarm.tokenization.batch import InfillBatch
from support.enumeration import (
    EXACT,
    VOCABULARY,
    chi_square_p,
    enumerated,
    fit_p_value,
    open_problem,
    ragged_problem,
)  # fmt: skip
from support.models import tiny_gpt2, tiny_llama, tiny_xlnet

pytestmark = pytest.mark.usefixtures("fixed_latency")


@pytest.fixture(scope="module")
def problem():
    return ragged_problem(tiny_gpt2(VOCABULARY + 1, draft_head=8))


def cases(settings: list[dict], *quick: dict) -> list:
    """Settings as parameters of a test; all but the quick ones are marked slow."""
    return [
        pytest.param(some, marks=() if some in quick else pytest.mark.slow, id="-".join(map(str, some.values())))
        for some in settings
    ]


@pytest.mark.parametrize("settings", cases(EXACT, EXACT[0], EXACT[1], EXACT[6], EXACT[15]))
def test_exact_samplers_have_the_enumerated_distribution(problem, settings):
    model, *rows = problem
    p_values = chi_square_p(model, rows, SamplerConfig(temperature=0.7, **settings))
    assert min(p_values) > 0.001, p_values


@pytest.mark.parametrize("settings", cases([EXACT[0], EXACT[4], EXACT[7]]))
def test_exact_samplers_at_temperature_1(problem, settings):
    model, *rows = problem
    p_values = chi_square_p(model, rows, SamplerConfig(**settings))
    assert min(p_values) > 0.001, p_values


@pytest.mark.parametrize("settings", cases([EXACT[2], EXACT[6], EXACT[10], EXACT[15]], EXACT[6], EXACT[15]))
@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])
def test_exact_samplers_with_recurrent_heads(backbone, settings):
    """On all backbones; the head drafts three of the four tokens only."""
    check_recurrent_head(backbone, settings)


@pytest.mark.parametrize("settings", cases([EXACT[7], EXACT[8], EXACT[16], EXACT[17]]))
def test_other_rules_with_recurrent_heads(settings):
    check_recurrent_head(tiny_gpt2, settings)


def check_recurrent_head(backbone, settings):
    model, *rows = ragged_problem(backbone(VOCABULARY + 1, draft_head=8, draft_recurrent=True, draft_vocabulary=3))
    p_values = chi_square_p(model, rows, SamplerConfig(temperature=0.7, **settings), samples=40_000)
    assert min(p_values) > 0.001, p_values


class ErraticWindow:
    """A window policy whose lengths jump about with what was accepted before."""

    max_k = 3

    def __init__(self):
        self.k = 0

    def update(self, size: torch.Tensor, accepted: torch.Tensor) -> None:
        self.k = (self.k + int(accepted.sum()) + 2 * int((accepted < size).sum())) % (self.max_k + 1)


@pytest.mark.slow
@pytest.mark.parametrize("coupling", ["residual", "block"])
def test_window_lengths_may_depend_on_what_was_accepted(problem, coupling):
    """Small batches, so that a row's own outcomes set the lengths of its windows."""
    model, tokens, given, target = problem
    row, rows, batches = 0, 8, 2500
    config = SamplerConfig(sampler="fused", coupling=coupling, temperature=0.7)
    target = target & (torch.arange(8) < 5)
    inputs = InfillBatch(*(x[row : row + 1].expand(rows, -1) for x in (tokens, given, target)))
    counts = torch.zeros(VOCABULARY ** int(target[row].sum()), dtype=torch.long)
    with torch.inference_mode():
        for batch in range(batches):
            seeds = range(batch * rows, (batch + 1) * rows)
            outcome = sample_fused(model, inputs, config, seeds, False, ErraticWindow()).tokens[:, target[row]]
            powers = VOCABULARY ** torch.arange(outcome.shape[1] - 1, -1, -1)
            counts += torch.bincount((outcome * powers).sum(1), minlength=len(counts))
    expected = enumerated(model, tokens[row], given[row], target[row], 0.7) * counts.sum()
    assert fit_p_value(counts, expected) > 0.001


def test_the_parallel_sampler_is_not_exact(problem):
    model, *rows = problem
    assert max(chi_square_p(model, rows, SamplerConfig(sampler="parallel", steps=1))) < 1e-6


@pytest.mark.slow
def test_tolerance_is_not_exact(problem):
    model, *rows = problem
    assert min(chi_square_p(model, rows, SamplerConfig(k=3, tolerance=0.3))) < 1e-6


BACKBONES = pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])


@BACKBONES
def test_log_prob_is_the_product_of_single_conditionals(backbone):
    """Chain rule by one query at a time, with the content laid out by hand."""
    model, tokens, given, target = ragged_problem(backbone(VOCABULARY + 1))
    scores = log_prob(model, tokens, given, target)
    for row in range(3):
        known = given[row].nonzero()[:, 0].tolist()
        prompt = len(known)
        for position in target[row].nonzero()[:, 0].tolist():
            seen = torch.tensor([known])
            context = torch.arange(1, len(known) + 1).clamp(min=prompt)[None]
            query = torch.tensor([[position]])
            logits = model(tokens[row][seen], seen, context, query, torch.tensor([[len(known)]]))
            expected = torch.log_softmax(logits, -1)[0, 0, tokens[row, position]]
            assert abs(float(expected - scores[row, position])) < 1e-5
            known.append(position)


@BACKBONES
def test_any_subset_given_any_other_is_a_distribution(backbone):
    """Targets and prompt that leave positions out: the distribution over the targets still sums to one."""
    model, tokens, _, _ = ragged_problem(backbone(VOCABULARY + 1))
    given = torch.tensor([False, False, True, False, False, False, True, False])
    target = torch.tensor([True, False, False, False, True, False, False, True])
    assert abs(float(enumerated(model, tokens[0], given, target, 1.0).sum()) - 1) < 1e-5


@pytest.mark.parametrize("settings", cases(EXACT, EXACT[0], EXACT[1], EXACT[7], EXACT[15]))
def test_gaps_that_end_have_the_enumerated_distribution(settings):
    model, *rows = open_problem(tiny_gpt2)
    p_values = chi_square_p(model, rows, SamplerConfig(temperature=0.7, **settings), samples=40_000)
    assert min(p_values) > 0.001, p_values


@pytest.mark.slow
@pytest.mark.parametrize("settings", [EXACT[2], EXACT[7], EXACT[15]], ids=str)
@pytest.mark.parametrize("backbone", [tiny_xlnet, tiny_llama])
def test_gaps_that_end_on_other_backbones(backbone, settings):
    model, *rows = open_problem(backbone)
    p_values = chi_square_p(model, rows, SamplerConfig(**settings), samples=40_000)
    assert min(p_values) > 0.001, p_values


@BACKBONES
def test_what_follows_the_end_of_a_gap_is_absent(backbone):
    """By hand: the density of a text that ends early is that of a row in which the rest of its gap is hidden."""
    model, *rows = open_problem(backbone)
    end, (tokens, given, target) = VOCABULARY - 1, (one[2:].repeat(4, 1) for one in rows)
    tokens[:, 1:3] = torch.tensor([[end, end], [end, 0], [0, end], [0, 1]])
    scores = log_prob(model, tokens, given, target)
    assert scores[:, 2].isneginf().tolist() == [False, True, False, False]
    assert scores[0, 2] == 0
    hidden = target.clone()
    hidden[0, 2] = False
    torch.testing.assert_close(log_prob(model, tokens[:1], given[:1], hidden[:1]), scores[:1])
    logits = model(  # of the token after the given ones: ranks and positions by hand
        tokens[:1][given[:1]][None], given[0].nonzero().T, torch.tensor([[4, 4, 4, 4]]), torch.tensor([[1]]),
        torch.tensor([[4]]),
    )  # fmt: skip
    torch.testing.assert_close(scores[0, 1], torch.log_softmax(logits, -1)[0, 0, end])


@BACKBONES
def test_gaps_of_known_length_do_not_end(backbone):
    model, tokens, given, target = open_problem(backbone)
    end = VOCABULARY - 1
    assert log_prob(model, tokens.masked_fill(target, end), given, target)[1, 8].isneginf()  # no end follows it
    closed = tokens.masked_fill(given, 0)
    scores = log_prob(model, closed, given, target)
    assert scores[target].isfinite().all()
    assert log_prob(model, closed.masked_fill(target, end), given, target)[target].isneginf().all()
    assert abs(float(enumerated(model, closed[0], given[0], target[0], 1.0).sum()) - 1) < 1e-5
