"""Transforms against those of `transformers`; every sampler against the enumerated transformed joint; greedy texts."""

import pytest
import torch
from transformers.generation import logits_process

from asarm.objective.loss import log_prob
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.sampling.decode_state import DecodeState
from asarm.tokenization.transforms import TokenIds, Transforms, completing
from asarm.utils.errors import InputError
from support.enumeration import EXACT, VOCABULARY, WHOLE_GRID, chi_square_p, open_problem, ragged_problem
from support.models import random_batch, tiny_gpt2, tiny_llama, tiny_xlnet

pytestmark = pytest.mark.usefixtures("fixed_latency")

TRANSFORMS = {
    "greedy": {"temperature": 0},
    "top_k": {"top_k": 2},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.3},
    "repetition_penalty": {"repetition_penalty": 2.5},
    "bad_words_ids": {"bad_words_ids": [[2], [1, 0], [0, 3, 0]]},
    "allowed": {},
    "all": {"temperature": 0.8, "top_k": 3, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.5,
            "bad_words_ids": [[1, 1]], "suppress_tokens": [3]},
}  # fmt: skip
WITH_MASK = ("allowed", "all")
FEW = 100_000 if WHOLE_GRID else 8_000


def allowed_mask(target: torch.Tensor) -> torch.Tensor:
    """Some tokens at each position, at least the first: [B, N, V] bool."""
    mask = torch.rand(*target.shape, VOCABULARY + 1, generator=torch.Generator().manual_seed(4)) < 0.6
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize(
    ("settings", "theirs"),
    [
        ({"top_k": 5}, logits_process.TopKLogitsWarper(5)),
        ({"top_p": 0.6}, logits_process.TopPLogitsWarper(0.6)),
        ({"min_p": 0.2}, logits_process.MinPLogitsWarper(0.2)),
        ({"temperature": 0.3}, logits_process.TemperatureLogitsWarper(0.3)),
        ({"repetition_penalty": 1.7}, logits_process.RepetitionPenaltyLogitsProcessor(1.7)),
        ({"suppress_tokens": [7, 3, 4]}, logits_process.SuppressTokensLogitsProcessor([7, 3, 4])),
        ({"bad_words_ids": [[3], [7, 1]]}, logits_process.NoBadWordsLogitsProcessor([[3], [7, 1]], eos_token_id=None)),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_transforms_are_those_of_transformers(settings, theirs):
    """From left to right, where nothing is known on the right."""
    generator = torch.Generator().manual_seed(0)
    logits, tokens = 3 * torch.randn(6, 12, generator=generator), torch.randint(0, 12, (6, 9), generator=generator)
    tokens[::2, -1] = 7
    positions = torch.arange(10).expand(6, -1)
    at = known = torch.full((6, 1), 9)
    padded = torch.nn.functional.pad(tokens, (0, 1), value=11)  # a rank that the query does not know
    ours = Transforms(**settings).log_probs(logits[:, None].clone(), padded, positions, at, known)[:, 0]
    torch.testing.assert_close(ours, torch.log_softmax(theirs(tokens, logits.clone()), -1))


def test_words_are_found_around_a_query():
    """The query at position 2 of `a b _ d`, where d is known or not; words with their ends before, at and after it."""
    tokens, positions = torch.tensor([[0, 1, 3, 9]]), torch.tensor([[0, 1, 3, 2]])
    words = [[0, 1, 5], [1, 6, 3], [7, 3], [1, 0, 8], [2, 2], [4]]
    for known, expected in ((3, [4, 5, 6, 7]), (2, [4, 5])):
        found = completing(words, tokens, positions, torch.tensor([[2]]), torch.tensor([[known]]), 10)
        assert found[0, 0].nonzero()[:, 0].tolist() == expected


def test_what_forbids_everything_that_is_left_forbids_nothing():
    logits = torch.tensor([[[0.0, 1.0, float("-inf")]]])
    none = torch.zeros(1, 1, dtype=torch.long)
    only_last = torch.tensor([[[False, False, True]]])
    found = Transforms().log_probs(logits, none, none, none, none, allowed=only_last)
    torch.testing.assert_close(found, torch.log_softmax(logits, -1))


def cases() -> list:
    """Every transform with a quarter of the samplers, in turn, and a penalty with all; or the whole grid. Most are
    slow."""
    quick = [("top_p", EXACT[1]), ("repetition_penalty", EXACT[6]), ("all", EXACT[6])]
    return [
        pytest.param(
            name,
            settings,
            marks=() if (name, settings) in quick else pytest.mark.slow,
            id="-".join(map(str, (name, *settings.values()))),
        )
        for number, name in enumerate(TRANSFORMS)
        for column, settings in enumerate(EXACT)
        if WHOLE_GRID or name == "repetition_penalty" or (name, settings) in quick or (number + column) % 4 == 0
    ]


def problem_with(name: str, settings: dict, backbone=tiny_gpt2, make=None):
    """A model, rows and the config of a case, and its mask of allowed tokens or None."""
    model, *rows = make(backbone) if make else ragged_problem(backbone(VOCABULARY + 1, draft_head=8))
    config = SamplerConfig(**{"temperature": 0.7} | settings | TRANSFORMS[name])
    return model, rows, config, allowed_mask(rows[2]) if name in WITH_MASK else None


@pytest.mark.parametrize(
    ("name", "settings"), cases(), ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x.values()))
)
def test_samplers_have_the_enumerated_transformed_distribution(name, settings):
    model, rows, config, allowed = problem_with(name, settings)
    samples = 100_000 if settings == EXACT[3] and name == "repetition_penalty" else FEW
    assert min(chi_square_p(model, rows, config, samples=samples, allowed=allowed)) > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TRANSFORMS)[:: 1 if WHOLE_GRID else 2])
@pytest.mark.parametrize("settings", [EXACT[2], EXACT[7], EXACT[8]], ids=str)
def test_gaps_that_end_have_the_enumerated_transformed_distribution(name, settings):
    model, rows, config, allowed = problem_with(name, settings, make=open_problem)
    assert min(chi_square_p(model, rows, config, samples=FEW, allowed=allowed)) > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("name", ["repetition_penalty", "all"])
@pytest.mark.parametrize("settings", [EXACT[1], EXACT[6]], ids=str)
@pytest.mark.parametrize("backbone", [tiny_xlnet, tiny_llama])
def test_transformed_distributions_of_other_backbones(backbone, settings, name):
    model, rows, config, allowed = problem_with(name, settings, backbone)
    assert min(chi_square_p(model, rows, config, samples=FEW, allowed=allowed)) > 0.001


@pytest.mark.parametrize("name", ["top_p", "repetition_penalty", "allowed"])
def test_a_sampler_that_transforms_only_the_target_is_not_exact(monkeypatch, name):
    """ASSD takes its first draft for one of the target distribution, which it then is not."""

    def untransformed(state, states, ranks, by_head=False):
        logits = state.model.logits(states).float() / state.config.temperature
        return torch.log_softmax(logits, dim=-1)

    monkeypatch.setattr(DecodeState, "draft_logits", untransformed)
    model, rows, config, allowed = problem_with(name, {"sampler": "assd", "draft": "blind", "k": 3})
    assert min(chi_square_p(model, rows, config, samples=FEW, allowed=allowed, forbidden=True)) < 1e-6


def test_a_penalty_that_ignores_drafts_is_not_exact(monkeypatch):
    """Verification must penalise the drafts before each column, too."""
    whole = DecodeState._transformed

    def decided_only(state, logits, ranks, temperature, known):
        return whole(state, logits, ranks, temperature, state.decoded[:, None].expand_as(ranks))

    monkeypatch.setattr(DecodeState, "_transformed", decided_only)
    model, rows, config, _ = problem_with("repetition_penalty", {"sampler": "assd", "coupling": "residual", "k": 3})
    assert min(chi_square_p(model, rows, config, samples=20_000)) < 1e-6


GREEDY = [{"sampler": "sequential"}, {"sampler": "assd", "draft": "ngram"}] + [
    {"sampler": sampler, "coupling": coupling, "draft": draft}
    for sampler in ("assd", "fused")
    for coupling in ("residual", "block", "gumbel")
    for draft in ("self", "blind")
]


def greedy_by_hand(model, tokens: torch.Tensor, given: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The likeliest token at one position after the other, by `log_prob` of every token there: one row, [N]."""
    for position in target.nonzero()[:, 0].tolist():
        tried = tokens.repeat(model.config.vocab_size - 1, 1)
        tried[:, position] = torch.arange(len(tried))
        scores = log_prob(model, tried, given.expand_as(tried), target.expand_as(tried))[:, position]
        tokens = tried[scores.argmax()]
    return tokens


@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])
def test_greedy_is_the_argmax_by_hand_under_every_sampler(backbone):
    model = backbone(12, scale=0.9, draft_head=4)
    inputs = random_batch(3, 10, 12, seed=1)
    expected = torch.stack([greedy_by_hand(model, *row) for row in zip(*inputs, strict=True)])
    for index, settings in enumerate(GREEDY):
        config = SamplerConfig(**settings, temperature=0, k=1 + index % 5)
        assert torch.equal(sample(model, *inputs, config, range(3)).tokens, expected), settings


@pytest.mark.slow
@pytest.mark.parametrize("settings", GREEDY[1::2], ids=lambda x: "-".join(x.values()))
def test_greedy_texts_are_those_of_the_sequential_sampler(settings):
    """500 texts (6,000 over all settings), on three backbones, with several k and sizes of batches."""
    for number, backbone in enumerate((tiny_gpt2, tiny_xlnet, tiny_llama)):
        model = backbone(24, scale=0.5, draft_head=4)
        for batch, k in ((1, 3), (16, 2), (50, 4), (100, 7)):
            inputs = random_batch(batch, 24, 24, seed=number)
            expected = sample(model, *inputs, SamplerConfig(sampler="sequential", temperature=0), range(batch))
            found = sample(model, *inputs, SamplerConfig(**settings, temperature=0, k=k), range(9, 9 + batch))
            assert torch.equal(found.tokens, expected.tokens), (backbone, batch)


def test_drafts_at_their_own_temperature_leave_greedy_texts_alone():
    model, inputs = tiny_gpt2(12), random_batch(8, 20, 12, seed=2)
    expected = sample(model, *inputs, SamplerConfig(sampler="sequential", temperature=0), range(8)).tokens
    for draft_temperature in (0, 1.0):
        config = SamplerConfig(temperature=0, draft_temperature=draft_temperature)
        assert torch.equal(sample(model, *inputs, config, range(8)).tokens, expected)


def test_log_prob_of_greedy_text_is_0():
    model, (tokens, given, target) = tiny_gpt2(12), random_batch(4, 20, 12, seed=2)
    config = SamplerConfig(temperature=0)
    text = sample(model, tokens, given, target, config, range(4)).tokens
    assert (log_prob(model, text, given, target, transforms=config) == 0).all()
    other = torch.where(target, (text + 1) % 11, text)
    assert log_prob(model, other, given, target, transforms=config).sum(1).isneginf().all()


def test_parallel_writes_allowed_tokens_only():
    model, (tokens, given, target) = tiny_gpt2(12), random_batch(6, 20, 12, seed=3)
    allowed = torch.zeros(1, 20, 12, dtype=torch.bool)
    allowed[..., 2:5] = True
    config = SamplerConfig(sampler="parallel", steps=3, bad_words_ids=["3"], repetition_penalty=2.0)
    written = sample(model, tokens, given, target, config, range(6), allowed=allowed).tokens[target]
    assert set(written.tolist()) == {2, 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"top_p": 0.0}, "top_p must lie above 0"),
        ({"top_p": 1.1}, "top_p must lie above 0 and be at most 1, not 1.1"),
        ({"min_p": 1.5}, "min_p must lie in"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must lie in"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must lie in"),
        ({"bad_words_ids": [[]]}, "bad_words_ids has"),
        ({"bad_words_ids": ["-3"]}, "bad_words_ids has"),
        ({"suppress_tokens": [-1]}, "suppress_tokens must be ids"),
    ],
    ids=str,
)
def test_transforms_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        SamplerConfig(**settings)


def test_nothing_left_is_one_line():
    model, (tokens, given, target) = tiny_gpt2(12), random_batch(2, 10, 12, seed=4)
    allowed = torch.ones(1, 10, 12, dtype=torch.bool)
    allowed[:, 3] = False
    target[:, 3], given[:, 3] = True, False
    with pytest.raises(InputError, match="no token is allowed at position 3 of text 0"):
        sample(model, tokens, given, target, SamplerConfig(), [0, 1], allowed=allowed)
    allowed[:, 3, 11] = True  # the mask token, which is never sampled
    with pytest.raises(InputError, match="no token is allowed at position 3"):
        sample(model, tokens, given, target, SamplerConfig(), [0, 1], allowed=allowed)
    words = [[token] for token in range(11)]
    with pytest.raises(InputError, match="no token is allowed at position 0 of text 0"):
        sample(model, tokens, given, target, SamplerConfig(bad_words_ids=words), [0, 1])
    with pytest.raises(InputError, match=r"bad_words_ids has 12, but ids lie in 0\.\.11"):
        sample(model, tokens, given, target, SamplerConfig(bad_words_ids=[[12]]), [0, 1])
    with pytest.raises(InputError, match=r"suppress_tokens has 12, but ids lie in 0\.\.11"):
        sample(model, tokens, given, target, SamplerConfig(suppress_tokens=[12]), [0, 1])
    with pytest.raises(InputError, match="no token is allowed at position"):
        sample(model, tokens, given, target, SamplerConfig(suppress_tokens=list(range(12))), [0, 1])
    with pytest.raises(ValueError, match="allowed has shape"):
        sample(model, tokens, given, target, SamplerConfig(), [0, 1], allowed=allowed[:, :4])


def test_ids_as_text_and_as_lists():
    assert SamplerConfig(bad_words_ids=["17", "4,23", [5]]).bad_words_ids == [[17], [4, 23], [5]]
    assert TokenIds("1,2") == [1, 2]


def test_log_prob_takes_a_temperature_once():
    model, inputs = tiny_gpt2(12), random_batch(2, 10, 12, seed=4)
    with pytest.raises(ValueError, match="as one of the transforms"):
        log_prob(model, *inputs, temperature=0.5, transforms=SamplerConfig())
    with pytest.raises(ValueError, match="allowed tokens need transforms"):
        log_prob(model, *inputs, allowed=torch.ones(1, 10, 12, dtype=torch.bool))
