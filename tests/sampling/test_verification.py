"""Couplings on tables of laws: the law of what is settled, and how much of the drafts is accepted."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare

from asarm.sampling.counter_rng import TOKEN, CounterRNG, GumbelSampler, InverseCDFSampler
from asarm.sampling.verification import VERIFICATION_RULES, Window, block, gumbel, residual

V, ROWS = 3, 300_000
KINDS = {"residual": InverseCDFSampler, "block": InverseCDFSampler, "gumbel": GumbelSampler}


def random_laws(places: int, sharpness: float, seed: int) -> list[torch.Tensor]:
    """For each place its log-law for every prefix of tokens before it: [V^place, V]."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(V**place, V, generator=generator, dtype=torch.float64) for place in range(places)]
    return [torch.log_softmax(sharpness * x, -1) for x in draws]


def prefixes(tokens: torch.Tensor) -> list[torch.Tensor]:
    """For each place of tokens [B, K] the number [B] of the prefix before it."""
    number, out = torch.zeros(len(tokens), dtype=torch.long), []
    for place in range(tokens.shape[1] + 1):
        out.append(number)
        if place < tokens.shape[1]:
            number = number * V + tokens[:, place]
    return out


def drafted(coupling: str, p_laws, q_laws, size: torch.Tensor, noise: CounterRNG, behind: bool) -> Window:
    """Windows of as many places as there are draft laws, and one without draft if `behind`."""
    places = len(q_laws)
    positions = torch.arange(places + behind).expand(len(size), -1)
    choice = KINDS[coupling](noise, positions, V, TOKEN)
    drafts, log_q = torch.zeros(len(size), 0, dtype=torch.long), []
    for place in range(places):
        log_q.append(q_laws[place][prefixes(drafts)[-1]])
        drafts = torch.cat((drafts, choice.tokens(log_q[-1][:, None], slice(place, place + 1))), dim=1)
    log_q = torch.stack(log_q, 1)
    log_p = torch.stack([p_laws[place][number] for place, number in enumerate(prefixes(drafts))][: places + behind], 1)
    if behind:
        drafts = F.pad(drafts, (0, 1))
        log_q = F.pad(log_q, (0, 0, 0, 1), value=float("-inf"))
        none = torch.arange(places + 1) >= size[:, None]
        log_q = log_q.masked_fill(none[..., None], float("-inf"))
    return Window(log_p.float(), log_q.float(), drafts, size, positions, choice)


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("sharpness", [0.5, 2.0])
@pytest.mark.parametrize("coupling", list(VERIFICATION_RULES))
def test_law_of_what_is_settled(coupling, sharpness, behind):
    """Ragged windows; what one call leaves open is drawn from the target's laws, as later calls do."""
    p_laws, q_laws = random_laws(4, sharpness, 1), random_laws(3, sharpness, 2)
    size = torch.arange(ROWS) % 4 if behind else torch.arange(ROWS) % 3 + 1
    noise = CounterRNG(torch.arange(ROWS))
    window = drafted(coupling, p_laws, q_laws, size, noise, behind)
    accepted, following = VERIFICATION_RULES[coupling](window, noise, 0.0)
    assert (accepted <= size).all()
    added = torch.ones_like(size) if behind else (accepted < size).long()
    text = torch.where(torch.arange(4) < accepted[:, None], F.pad(window.drafts, (0, 4 - window.drafts.shape[1])), -1)
    text = torch.where((torch.arange(4) == accepted[:, None]) & (added[:, None] > 0), following[:, None], text)
    generator = torch.Generator().manual_seed(3)
    for place in range(4):
        law = p_laws[place][prefixes(text[:, :place])[-1]].exp()
        fresh = torch.multinomial(law, 1, generator=generator)[:, 0]
        text[:, place] = torch.where(text[:, place] < 0, fresh, text[:, place])
    outcomes = torch.cartesian_prod(*[torch.arange(V)] * 4)
    joint = sum(p_laws[place][number, outcomes[:, place]] for place, number in enumerate(prefixes(outcomes)[:4])).exp()
    for drafts in size.unique():
        rows = size == drafts
        counts = torch.bincount(prefixes(text[rows])[-1], minlength=V**4)
        expected = joint * rows.sum()
        rare = expected < 5
        seen = torch.cat((counts[~rare], counts[rare].sum()[None]))
        wanted = torch.cat((expected[~rare], expected[rare].sum()[None]))
        if wanted[-1] < 5:
            seen, wanted = seen[:-1], wanted[:-1]
        p_value = chisquare(seen.numpy(), (wanted * seen.sum() / wanted.sum()).numpy()).pvalue
        assert p_value > 1e-4, (int(drafts), p_value)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_block_verification_accepts_more(sharpness):
    """On average never fewer drafts than token by token; clearly more where draft and target differ somewhat."""
    for seed in range(4):
        p_laws, q_laws = random_laws(5, sharpness, seed), random_laws(4, sharpness, seed + 100)
        noise, size = CounterRNG(torch.arange(ROWS)), torch.full((ROWS,), 4)
        means = {}
        for rule in (residual, block):
            window = drafted("residual", p_laws, q_laws, size, noise, behind=True)
            means[rule] = float(rule(window, noise, 0.0)[0].double().mean())
        error = 2 * 4 / ROWS**0.5  # above three standard errors of the difference
        assert means[block] > means[residual] - error / 3
        if sharpness == 1.0:
            assert means[block] > means[residual] + error


def test_block_verification_by_hand():
    """Two places, two tokens: q is uniform, p takes the first token always, then the second always."""
    log = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).log()
    half = torch.full((1, 2, 2), 0.5).log()
    positions = torch.tensor([[0, 1]])
    for drafts, expected in (([0, 1], 2), ([0, 0], 1), ([1, 1], 0), ([1, 0], 0)):
        for seed in range(20):
            noise = CounterRNG(torch.tensor([seed]))
            window = Window(log, half, torch.tensor([drafts]), torch.tensor([2]), positions, None)
            accepted, following = block(window, noise, 0.0)
            assert int(accepted) == expected
            assert expected == 2 or int(following) == expected


def test_equal_laws_are_always_accepted():
    laws = random_laws(4, 1.0, 0)
    noise, size = CounterRNG(torch.arange(1000)), torch.full((1000,), 3)
    for rule, name in ((residual, "residual"), (block, "block"), (gumbel, "gumbel")):
        window = drafted(name, laws, laws[:3], size, noise, behind=True)
        assert (rule(window, noise, 0.0)[0] == 3).all()
