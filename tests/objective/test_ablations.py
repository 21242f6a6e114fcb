"""The paper's ablations against enumerations and conditionals taken one by one: random orders, the parallel objective,
scaled losses, and texts of different lengths."""

import itertools

import pytest
import torch
from scipy.stats import chisquare

from asarm.models.rank_order import RankOrder, rank_order
from asarm.objective.loss import LossConfig, draft_queries, log_prob, query_nll, random_turns, training_loss
from asarm.objective.masking import ANYWHERE, MaskingPattern, training_targets
from asarm.tokenization.batch import PADDING
from asarm.utils.errors import InputError
from support.models import tiny_gpt2, tiny_xlnet

BACKBONES = pytest.mark.parametrize("make", [tiny_gpt2, tiny_xlnet], ids=["gpt2", "xlnet"])
RANDOM, PARALLEL = LossConfig(order="random"), LossConfig(objective="parallel")
# A prompt, three targets, and a position that is neither.
GIVEN = torch.tensor([False, True, False, False, True, False])
TARGET = torch.tensor([True, False, False, True, False, True])
TURNS = []  # one for each order of the targets, ascending first
for positions in itertools.permutations(TARGET.nonzero()[:, 0].tolist()):
    TURNS.append(torch.arange(6))
    TURNS[-1][TARGET] = torch.tensor(positions)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@BACKBONES
def test_under_every_order_the_joint_is_a_distribution_of_its_own(make):
    model, outcomes = make(4), torch.tensor(list(itertools.product(range(3), repeat=3)))
    tokens = torch.ones(len(outcomes), 6, dtype=torch.long)
    tokens[:, TARGET] = outcomes
    given, target = GIVEN.expand_as(tokens), TARGET.expand_as(tokens)
    densities = [log_prob(model, tokens, given, target, turn=turn.expand_as(tokens)).sum(1) for turn in TURNS]
    for density in densities:
        assert float(density.exp().sum()) == pytest.approx(1, abs=1e-5)
    for left, right in itertools.combinations(densities, 2):
        assert (left - right).abs().max() > 1e-3
    assert torch.equal(densities[0], log_prob(model, tokens, given, target).sum(1))


@pytest.mark.parametrize("turn", [torch.arange(6)[None] - 1, torch.zeros(1, 6, dtype=torch.long), torch.arange(6)])
def test_turns_are_permutations(turn):
    with pytest.raises(ValueError, match=r"a permutation of 0\.\.5 in each of 1 rows"):
        rank_order(GIVEN[None], TARGET[None], turn)


@BACKBONES
@pytest.mark.parametrize("turn", TURNS[1:])
def test_the_density_under_an_order_is_the_product_of_its_conditionals(make, turn):
    """One query at a time, with the content laid out by hand."""
    model, tokens = make(20), torch.randint(0, 19, (6,), generator=seeded(0))
    scores = log_prob(model, tokens[None], GIVEN[None], TARGET[None], turn=turn[None])[0]
    known = GIVEN.nonzero()[:, 0].tolist()
    for position in sorted(TARGET.nonzero()[:, 0].tolist(), key=turn.tolist().__getitem__):
        seen = torch.tensor([known])
        context = torch.arange(1, len(known) + 1).clamp(min=2)[None]
        logits = model(tokens[seen], seen, context, torch.tensor([[position]]), torch.tensor([[len(known)]]))
        expected = torch.log_softmax(logits, -1)[0, 0, tokens[position]]
        torch.testing.assert_close(expected.detach(), scores[position])
        known.append(position)


@BACKBONES
def test_the_loss_under_random_orders_is_the_mean_over_all_of_them(make):
    """Of four tokens three are targets: with the prompt there are 4! orders. Each is drawn as often as the others, and
    the loss is the mean of their NLLs, weighted by how often they were drawn."""
    model, copies = make(20), 2400
    tokens = torch.randint(0, 19, (1, 4), generator=seeded(1)).expand(copies, -1)
    loss = training_loss(model, tokens, 0.75, RANDOM, seeded(2)).joint.detach()
    generator = seeded(2)
    target = training_targets(tokens, 0.75, ANYWHERE, generator)
    drawn = rank_order(~target, target, random_turns(tokens, generator)).order  # [copies, 4]
    orders, counts = drawn.unique(dim=0, return_counts=True)
    assert orders.tolist() == [list(order) for order in itertools.permutations(range(4))]
    assert chisquare(counts.numpy()).pvalue > 0.001
    turns = orders.argsort(1)
    nll = -log_prob(model, tokens[:24], turns == 0, turns > 0, turn=turns).sum(1) / 3  # [orders]
    torch.testing.assert_close(loss, (counts * nll).sum() / copies)
    torch.testing.assert_close(loss, nll.mean(), rtol=0, atol=float(4 * nll.std() / copies**0.5))
    assert nll.std() > 0.1


@BACKBONES
def test_the_parallel_loss_is_that_of_each_target_given_the_prompt_alone(make):
    model, tokens = make(20), torch.randint(0, 19, (3, 10), generator=seeded(3))
    loss = training_loss(model, tokens, 0.6, PARALLEL, seeded(4)).joint.detach()
    target = training_targets(tokens, 0.6, ANYWHERE, seeded(4))
    alone = [
        -log_prob(model, tokens[row : row + 1], ~target[row : row + 1], torch.arange(10)[None] == position).sum()
        for row, position in target.nonzero().tolist()
    ]
    assert len(alone) == 18
    torch.testing.assert_close(loss, torch.stack(alone).mean())
    joint = training_loss(model, tokens, 0.6, LossConfig(), seeded(4)).joint.detach()
    assert abs(float(joint - loss)) > 1e-3


def test_the_loss_is_scaled_by_the_masking_rate():
    joint, draft = torch.tensor(3.0), torch.tensor(5.0)
    for name, scale in (("none", 1), ("rate", 0.8), ("snr", 4)):
        config = LossConfig(loss_scale=name, draft_weight=0.5)
        assert float(config.total(joint, None, 0.8)) == pytest.approx(3 * scale)
        assert float(config.total(joint, draft, 0.8)) == pytest.approx(5.5 * scale)


LENGTHS = [12, 5, 2, 9, 1]


def nll_alone(model, text: torch.Tensor, order: RankOrder, ranks: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
    """NLL [n] of one text [N] at some ranks [n] that see `contexts` [n] ranks of it."""
    ranked = text[order.order]  # [1, N]
    arguments = (order.order, order.content_context(), order.order[:, ranks], contexts[None])
    return query_nll(model, ranked, *arguments, targets=ranked[:, ranks])[0]


@BACKBONES
@pytest.mark.parametrize("pattern", [ANYWHERE, MaskingPattern(0.4, 0.4, [0, 1])], ids=["anywhere", "spans and lines"])
@pytest.mark.parametrize(
    "config",
    [LossConfig(), LossConfig(draft_weight=1, draft_share=0.7), LossConfig(order="random", draft_weight=1), PARALLEL],
    ids=["joint", "draft", "random, draft", "parallel"],
)
def test_texts_of_different_lengths_have_the_losses_and_gradients_that_they_have_alone(make, config, pattern):
    model = make(20, 0.3)
    tokens = torch.randint(0, 19, (len(LENGTHS), 14), generator=seeded(5))
    tokens[torch.arange(14) >= torch.tensor(LENGTHS)[:, None]] = PADDING
    losses = training_loss(model, tokens, 0.6, config, seeded(6), pattern)
    generator = seeded(6)
    target = training_targets(tokens, 0.6, pattern, generator)
    assert target.sum(1).tolist() == [7, 3, 1, 5, 1]
    turn = random_turns(tokens, generator) if config.order == "random" else torch.arange(14).expand_as(tokens)
    draft_ranks, draft_contexts = draft_queries(rank_order(~target & (tokens >= 0), target, turn), config, generator)
    joint, draft = [], []
    for row, length in enumerate(LENGTHS):
        text, masked = tokens[row, :length], target[row : row + 1, :length]
        order = rank_order(~masked, masked, turn[row : row + 1, :length].argsort(1).argsort(1))
        ranks = torch.arange(int(order.prompt_length), length)
        contexts = ranks if config.objective == "joint" else ranks[:1].expand_as(ranks)
        joint.append(nll_alone(model, text, order, ranks, contexts))
        drafted = draft_ranks[row] < length
        draft.append(nll_alone(model, text, order, draft_ranks[row, drafted], draft_contexts[row, drafted]))
    assert [len(part) for part in draft] == [round(config.draft_share * (n - 1)) for n in (7, 3, 1, 5, 1)]
    expected = [torch.cat(joint).mean(), torch.cat(draft).mean()]
    torch.testing.assert_close(losses.joint, expected[0])
    if config.draft_weight:
        torch.testing.assert_close(losses.draft, expected[1])
    total = config.total(losses.joint, losses.draft, 0.6)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ours = torch.autograd.grad(total, parameters)
    theirs = torch.autograd.grad(
        config.total(expected[0], expected[1] if config.draft_weight else None, 0.6), parameters
    )
    for mine, alone in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, alone, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "parallel", "draft_weight": 0.5}, "leave draft_weight at 0"),
        ({"objective": "parallel", "order": "random"}, "leave out order random"),
        ({"objective": "serial"}, "unknown objective 'serial': choose from joint, parallel"),
        ({"order": "lattice"}, "unknown order 'lattice': choose from ascending, random"),
        ({"loss_scale": "elbo"}, "unknown loss_scale 'elbo': choose from none, rate, snr"),
    ],
)
def test_settings_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        LossConfig(**options)
