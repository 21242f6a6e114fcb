"""The bundled models on real text: equal samples under the gumbel coupling, fewer evaluations, useful likelihoods."""

import pytest
import torch

from asarm import SamplerConfig, load, log_prob, sample
from asarm.data.packed import pack
from asarm.data.readers import read_text
from asarm.evals.code.data import read_problems
from asarm.evals.code.examples import make_example
from asarm.models.rank_order import rank_order
from asarm.objective.masking import random_targets
from asarm.tokenization.batch import InfillBatch, Role
from support.paths import EVAL_DATASETS, SHARED

WIKITEXT = SHARED / "wikitext-2" / "test.txt"
PASSAGES, LENGTH = 50, 64


@pytest.fixture(scope="module")
def model():
    return load("tiny-text")[0]


@pytest.fixture(scope="module")
def passages():
    """50 passages of WikiText's test part (of the sample text, where there is no WikiText): tokens [50, 64]."""
    codec = load("tiny-text")[1]
    text = read_text(WIKITEXT if WIKITEXT.exists() else EVAL_DATASETS / "sample_text.txt")
    blocks = pack([codec.encode(text)], codec.eos_token_id, LENGTH)
    return torch.from_numpy(blocks[:: max(1, len(blocks) // PASSAGES)][:PASSAGES]).long()


@pytest.fixture(scope="module")
def masked(passages):
    target = random_targets(passages, 0.95, torch.Generator().manual_seed(0))
    return InfillBatch(passages, ~target, target)


@pytest.fixture(scope="module")
def sequential(model, masked):
    return sample(model, *masked, SamplerConfig(sampler="sequential"), range(len(masked.tokens)))


def first_difference(order: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> int:
    """The position that is decoded first among those where two sequences [N] differ."""
    return int(next(position for position in order if left[position] != right[position]))


@torch.inference_mode()
def tie_margin(model, masked, row: int, tokens: torch.Tensor, position: int, seed: int) -> float:
    """By how much the best noisy token at a position beat the second, given all that was decoded before it."""
    from asarm.sampling.counter_rng import TOKEN, CounterRNG

    _, given, target = masked.select([row])
    order = rank_order(given, target)
    rank = int((order.order[0] == position).nonzero())
    ranked = tokens[None].gather(1, order.order)
    query = torch.tensor([[rank]])
    logits = model(ranked, order.order, order.content_context(), order.order[:, rank : rank + 1], query)
    gumbel = CounterRNG(torch.tensor([seed])).gumbel(torch.tensor([[position]]), logits.shape[-1], TOKEN)
    best = (torch.log_softmax(logits, -1) + gumbel)[0, 0].topk(2).values
    return float(best[0] - best[1])


@pytest.mark.parametrize("draft", ["self", "ngram"])
@pytest.mark.parametrize("k", [1, 2, 3, *(pytest.param(k, marks=pytest.mark.slow) for k in (4, 5, 9, 14))])
def test_gumbel_gives_the_sequential_samples(model, masked, sequential, draft, k):
    """Token for token, in batches of 1 to 50 rows; a sequence may part only where the two best tokens are tied."""
    batch = [50, 1, 7, 13, 25][k % 5]
    rows = range(PASSAGES) if batch > 1 else range(0, PASSAGES, 10)
    config = SamplerConfig(draft=draft, coupling="gumbel", k=k)
    ties = 0
    for start in range(0, len(rows), batch):
        here = list(rows)[start : start + batch]
        result = sample(model, *masked.select(here), config, here)
        assert (result.nfe <= result.targets).all()
        for row, tokens in zip(here, result.tokens, strict=True):
            base = sequential.tokens[row]
            if torch.equal(tokens, base):
                continue
            order = rank_order(*masked.select([row])[1:]).order[0].tolist()
            position = first_difference(order, base, tokens)
            assert tie_margin(model, masked, row, base, position, row) < 1e-4, (row, position)
            ties += 1
    print(f"{draft} k={k}: {ties} of {len(rows)} sequences part at a tie")
    assert ties <= 2


def test_fewer_evaluations_than_tokens(model, masked, sequential):
    assert torch.equal(sequential.nfe, sequential.targets)
    result = sample(model, *masked, SamplerConfig(k=5), range(PASSAGES))
    assert (result.nfe <= result.targets).all()
    assert result.nfe.sum() < 0.95 * result.targets.sum()


def test_real_text_is_likelier_than_shuffled_text(model, passages):
    target = random_targets(passages, 0.15, torch.Generator().manual_seed(1))
    shuffled = passages[:, torch.randperm(LENGTH, generator=torch.Generator().manual_seed(2))]
    real, other = (log_prob(model, tokens, ~target).sum() / target.sum() for tokens in (passages, shuffled))
    assert real > other + 1


def test_the_model_takes_512_positions(model):
    assert model.config.n_positions >= 512
    assert 5e6 <= sum(p.numel() for p in model.parameters()) <= 12e6


def test_the_code_model_uses_what_follows_a_gap():
    model, codec = load("tiny-code")
    problems = read_problems(EVAL_DATASETS / "code_single_line.jsonl")
    examples = [make_example(problem, "single-line", codec) for problem in problems]
    rows = [(example.prefix_tokens, example.reference_tokens, example.suffix_tokens) for example in examples]
    count = sum(len(example.reference_tokens) for example in examples)
    with_suffix, without = (
        -float(log_prob(model, *InfillBatch.from_parts(rows, [Role.GIVEN, Role.TARGET, suffix])).sum()) / count
        for suffix in (Role.GIVEN, None)
    )
    assert with_suffix < 3
    assert with_suffix < without - 0.2
