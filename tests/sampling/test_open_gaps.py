"""Gaps of unknown length: what they cost, that they depend on nothing but their row, traces, bad input."""

import pytest
import torch
import torch.nn.functional as F

from asarm.models.compiled import compiled_for_decoding
from asarm.objective.loss import log_prob
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from asarm.tokenization.open_gaps import gap_sizes_from, later_in_gap, open_targets
from support.models import random_batch, tiny_gpt2, tiny_llama, tiny_xlnet

TOKENS, END = 8, 6  # the last token is the mask
ALL = [
    SamplerConfig(sampler="sequential"),
    SamplerConfig(sampler="parallel", steps=4),
    *(SamplerConfig(draft=d, coupling=c, k=4) for d in ("self", "ngram") for c in ("residual", "block", "gumbel")),
    *(
        SamplerConfig(sampler="fused", coupling=c, k=4, alternatives=a)
        for c in ("residual", "block", "gumbel")
        for a in (0, 2)
    ),
]
SAMPLERS = pytest.mark.parametrize("config", ALL, ids=lambda c: f"{c.sampler}-{c.draft}-{c.coupling}-{c.alternatives}")


def problem(backbone=tiny_gpt2, rows=6, seed=0):
    """A model that ends gaps often, and ragged rows: many gaps are followed by its token for the end, and many not."""
    model = backbone(TOKENS, scale=0.9, gap_end_token_id=END, draft_head=8)
    inputs = random_batch(rows, 40, END + 1, seed, rate=0.85)
    after = inputs.given & F.pad(inputs.target, (1, 0))[:, :-1] & (torch.arange(40) < 25)
    return model, inputs._replace(tokens=inputs.tokens.masked_fill(after, END))


@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])
@pytest.mark.parametrize("config", [c for c in ALL if c.coupling == "gumbel"], ids=lambda c: f"{c.sampler}-{c.draft}")
def test_gumbel_gives_the_sequential_tokens(backbone, config):
    for seed in range(3):
        model, inputs = problem(backbone, seed=seed)
        base, ours = (sample(model, *inputs, one, range(6)) for one in (SamplerConfig(sampler="sequential"), config))
        assert torch.equal(base.tokens, ours.tokens)
        assert torch.equal(base.targets, ours.targets)


@SAMPLERS
def test_a_row_does_not_depend_on_its_batch(config):
    model, inputs = problem()
    together = sample(model, *inputs, config, range(6))
    for row in range(6):
        here = slice(row, row + 1)
        alone = sample(model, *inputs.select(here), config, [row])
        assert torch.equal(alone.tokens[0], together.tokens[row])
        assert (alone.nfe[0], alone.targets[0]) == (together.nfe[row], together.targets[row])
        assert torch.equal(alone.proposed[0], together.proposed[row])


@SAMPLERS
def test_the_rest_of_a_gap_that_ended_costs_nothing(config):
    model, inputs = problem(rows=300)
    result = sample(model, *inputs, config, range(300))
    ends = (result.tokens == END) & inputs.target
    rest = later_in_gap(ends, inputs.given) & inputs.target
    assert rest.sum() > 300
    assert ends[rest].all()
    assert not ends[inputs.target & ~open_targets(inputs, END)].any()
    drawn = (inputs.target & ~rest).sum(1)
    assert (result.nfe <= result.targets).all()
    if config.sampler == "parallel":  # which may draw what another end then overwrites
        assert (drawn <= result.targets).all()
        assert (result.targets <= inputs.target.sum(1)).all()
    else:
        assert torch.equal(result.targets, drawn)
        assert log_prob(model, result.tokens, *inputs[1:]).isfinite().all()
    if config.sampler == "sequential":
        assert torch.equal(result.nfe, drawn)


@SAMPLERS
def test_the_trace_replays_to_the_result(config):
    model, inputs = problem()
    result = sample(model, *inputs, config, range(6), trace=True)
    for row, steps in enumerate(result.trace):
        sequence = inputs.tokens[row].masked_fill(inputs.target[row], -1)
        for step in steps:
            pairs = list(zip(step.positions, step.drafts, strict=bool(step.drafts)))
            for position, token in pairs[: step.accepted] + step.added:
                assert sequence[position] == -1
                sequence[position] = token
        assert torch.equal(sequence, result.tokens[row].where(inputs.target[row], inputs.tokens[row]))


@SAMPLERS
def test_without_their_marks_gaps_do_not_end(config):
    """The last gap of a row of this batch has no mark, and no other has where the marks are other tokens."""
    model, inputs = problem(rows=100)
    result = sample(model, inputs.tokens.masked_fill(inputs.given, 0), *inputs[1:], config, range(100))
    assert not (result.tokens == END)[inputs.target].any()
    if config.sampler != "parallel":
        assert torch.equal(result.targets, inputs.target.sum(1))


def test_one_evaluation_decides_a_gap_that_ends_at_once():
    """Whatever its capacity: a model of uniform distributions, and a seed with which both gaps are empty."""
    model = tiny_llama(TOKENS, gap_end_token_id=END)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    text = "a" + 40 * "_" + "e" + 20 * "_" + "e"
    target, ends = (torch.tensor([[c == some for c in text]]) for some in "_e")
    inputs = InfillBatch(torch.zeros_like(target, dtype=torch.long).masked_fill(ends, END), ~target, target)
    config = SamplerConfig(sampler="sequential")
    seed = next(seed for seed in range(1000) if sample(model, *inputs, config, [seed]).nfe == 2)
    for sampler in ("sequential", "fused", "assd"):
        result = sample(model, *inputs, SamplerConfig(sampler=sampler, coupling="gumbel"), [seed])
        assert (result.tokens[target] == END).all()
        assert (result.nfe, result.targets) == (2, 2)


def test_gaps_by_hand():
    """x: a target, e: a given end, g: another given token, .: absent, which is in the first gap."""
    text = "x.xxexxgxe"
    target, ends, given = (torch.tensor([[c in some for c in text]]) for some in ("x", "e", "ge"))
    batch = InfillBatch(ends.long() * END, given, target)
    assert open_targets(batch, END).nonzero()[:, 1].tolist() == [0, 2, 3, 8]
    assert not open_targets(batch, None).any()
    assert gap_sizes_from(batch).tolist() == [[3, 0, 2, 1, 0, 2, 1, 0, 1, 0]]
    marked = torch.tensor([[c == "1" for c in "0010010001"]])
    assert later_in_gap(marked, given).nonzero()[:, 1].tolist() == [3, 6]


def test_gaps_of_unknown_length_have_no_other_order():
    model, inputs = problem()
    with pytest.raises(ValueError, match="give no turn"):
        log_prob(model, *inputs, turn=torch.arange(40).expand(6, -1))


def test_a_compiled_model_draws_the_same():
    model, inputs = problem(rows=2)
    compiled = compiled_for_decoding(model, "on")
    compiled.step = None  # the padding, without waiting for the compiler
    config = SamplerConfig(sampler="fused", k=4)
    ours, theirs = (sample(one, *inputs, config, range(2)) for one in (model, compiled))
    assert torch.equal(ours.tokens, theirs.tokens)
