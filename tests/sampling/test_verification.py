"""Verification rules on tables of probabilities: the distribution of their tokens, and how many drafts they accept."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chisquare

from asarm.sampling.counter_rng import CounterRNG, GumbelSampler, InverseCDFSampler
from asarm.sampling.verification import VERIFICATION_RULES, DraftWindow, block, draw_candidate, gumbel, residual

V, ROWS = 3, 300_000
KINDS = {"residual": InverseCDFSampler, "block": InverseCDFSampler, "gumbel": GumbelSampler}


def random_tables(length: int, sharpness: float, seed: int) -> list[torch.Tensor]:
    """For each position its log-probs for every prefix of tokens before it: [V^position, V]."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(V**position, V, generator=generator, dtype=torch.float64) for position in range(length)]
    return [torch.log_softmax(sharpness * x, -1) for x in draws]


def prefixes(tokens: torch.Tensor) -> list[torch.Tensor]:
    """For each position of tokens [B, K], and the one after them, the number [B] of the prefix before it."""
    number, out = torch.zeros(len(tokens), dtype=torch.long), []
    for position in range(tokens.shape[1] + 1):
        out.append(number)
        if position < tokens.shape[1]:
            number = number * V + tokens[:, position]
    return out


def drafted(
    coupling: str, p_tables, q_tables, size: torch.Tensor, rng: CounterRNG, extra: bool
) -> tuple[DraftWindow, torch.Tensor]:
    """Windows with a column for each draft table, and one without a draft if `extra`; and their p [B, K, V]."""
    length = len(q_tables)
    positions = torch.arange(length + extra).expand(len(size), -1)
    sampler = KINDS[coupling](rng, positions, V)
    drafts, q = torch.zeros(len(size), 0, dtype=torch.long), []
    for column in range(length):
        q.append(sampler.weights(q_tables[column][prefixes(drafts)[-1]]))
        drafts = torch.cat((drafts, sampler.draw(q[-1][:, None], column)), dim=1)
    log_p = torch.stack([p_tables[at][number] for at, number in enumerate(prefixes(drafts))][: length + extra], 1)
    return DraftWindow(drafts, size, torch.stack(q, 1).float(), sampler), sampler.weights(log_p).float()


@pytest.mark.parametrize("extra", [True, False])
@pytest.mark.parametrize("sharpness", [0.5, 2.0])
@pytest.mark.parametrize("coupling", list(VERIFICATION_RULES))
def test_distribution_of_accepted_and_next_tokens(coupling, sharpness, extra):
    """Ragged windows; what one iteration leaves open is drawn from the target, as later iterations do."""
    p_tables, q_tables = random_tables(4, sharpness, 1), random_tables(3, sharpness, 2)
    size = torch.arange(ROWS) % 4 if extra else torch.arange(ROWS) % 3 + 1
    rng = CounterRNG(torch.arange(ROWS))
    window, p = drafted(coupling, p_tables, q_tables, size, rng, extra)
    accepted, next_tokens = VERIFICATION_RULES[coupling](window, p, 0.0)
    assert (accepted <= size).all()
    added = torch.ones_like(size) if extra else (accepted < size).long()
    tokens = F.pad(window.tokens, (0, 4 - window.tokens.shape[1]))
    tokens = torch.where(torch.arange(4) < accepted[:, None], tokens, -1)
    tokens = torch.where((torch.arange(4) == accepted[:, None]) & (added[:, None] > 0), next_tokens[:, None], tokens)
    generator = torch.Generator().manual_seed(3)
    for position in range(4):
        probs = p_tables[position][prefixes(tokens[:, :position])[-1]].exp()
        fresh = torch.multinomial(probs, 1, generator=generator)[:, 0]
        tokens[:, position] = torch.where(tokens[:, position] < 0, fresh, tokens[:, position])
    outcomes = torch.cartesian_prod(*[torch.arange(V)] * 4)
    log_joint = sum(p_tables[at][number, outcomes[:, at]] for at, number in enumerate(prefixes(outcomes)[:4]))
    for drafts in size.unique():
        rows = size == drafts
        counts = torch.bincount(prefixes(tokens[rows])[-1], minlength=V**4)
        expected = log_joint.exp() * rows.sum()
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
        p_tables, q_tables = random_tables(5, sharpness, seed), random_tables(4, sharpness, seed + 100)
        rng, size = CounterRNG(torch.arange(ROWS)), torch.full((ROWS,), 4)
        means = {}
        for rule in (residual, block):
            window, p = drafted("residual", p_tables, q_tables, size, rng, extra=True)
            means[rule] = float(rule(window, p, 0.0)[0].double().mean())
        error = 2 * 4 / ROWS**0.5  # above three standard errors of the difference
        assert means[block] > means[residual] - error / 3
        if sharpness == 1.0:
            assert means[block] > means[residual] + error


@pytest.mark.parametrize("drafted_ids", [4, 7])
@pytest.mark.parametrize("seed", range(4))
def test_candidates_do_not_change_the_distribution(seed, drafted_ids):
    """Of a token drawn with any weights; it is a candidate more often than by chance."""
    generator, vocabulary = torch.Generator().manual_seed(seed), 7
    weights = torch.rand(vocabulary, generator=generator) ** 3
    q = torch.softmax(2 * torch.randn(drafted_ids, generator=generator), 0)
    first = torch.multinomial(q, 1, generator=generator)
    rest, candidates = q.expand(ROWS, -1).clone(), [first.expand(ROWS)]
    for _ in range(2):
        rest.scatter_(1, candidates[-1][:, None], 0.0)
        candidates.append(torch.multinomial(rest, 1, generator=generator)[:, 0])
    uniform = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    found = {}
    for counting in (True, False):
        counts = torch.full((ROWS, 2), counting)
        chosen = torch.stack(candidates, 1)
        tokens = draw_candidate(weights.expand(ROWS, -1), q.expand(ROWS, -1), chosen, counts, uniform)
        expected = (weights / weights.sum()).double() * ROWS
        seen = torch.bincount(tokens, minlength=vocabulary)
        assert chisquare(seen.numpy(), (expected * ROWS / expected.sum()).numpy()).pvalue > 1e-4
        found[counting] = float((tokens[:, None] == chosen[:, 1:]).any(1).double().mean())
    assert found[True] > found[False] + 0.01


def test_block_verification_by_hand():
    """Two positions, two tokens: q is uniform, p takes the first token always, then the second always."""
    p = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    half = torch.full((1, 2, 2), 0.5)
    positions = torch.tensor([[0, 1]])
    for drafts, expected in (([0, 1], 2), ([0, 0], 1), ([1, 1], 0), ([1, 0], 0)):
        for seed in range(20):
            rng = CounterRNG(torch.tensor([seed]))
            sampler = InverseCDFSampler(rng, positions, 2)
            window = DraftWindow(torch.tensor([drafts]), torch.tensor([2]), half, sampler)
            accepted, next_tokens = block(window, p, 0.0)
            assert int(accepted) == expected
            assert expected == 2 or int(next_tokens) == expected


def test_drafts_from_the_target_are_always_accepted():
    tables = random_tables(4, 1.0, 0)
    rng, size = CounterRNG(torch.arange(1000)), torch.full((1000,), 3)
    for rule, name in ((residual, "residual"), (block, "block"), (gumbel, "gumbel")):
        window, p = drafted(name, tables, tables[:3], size, rng, extra=True)
        assert (rule(window, p, 0.0)[0] == 3).all()
