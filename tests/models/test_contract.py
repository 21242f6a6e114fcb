"""What every backbone computes: what each row may see, that the cache changes nothing, that rows are independent."""

import pytest
import torch

from asarm.models.rank_order import rank_order
from support.models import random_batch, tiny_gpt2, tiny_llama, tiny_xlnet

BACKBONES = pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])


def full_logits(model, ranked, order, contexts=None):
    """All queries, under the joint if no contexts are given, without a cache: [B, N, V]."""
    contexts = torch.arange(ranked.shape[1]).expand(len(ranked), -1) if contexts is None else contexts
    return model(ranked, order.order, order.content_context(), order.order, contexts)


@BACKBONES
@pytest.mark.parametrize("cut", [0, 1, 3, 99])
@torch.inference_mode()
def test_a_query_sees_its_context_and_nothing_else(backbone, cut):
    """Under the joint, and as drafts that lack the last tokens."""
    model = backbone(20)
    tokens, given, target = random_batch(4, 10, 20, seed=0)
    order = rank_order(given, target)
    ranked, prompt = tokens.gather(1, order.order), order.prompt_length[:, None]
    contexts = torch.maximum(torch.arange(10) - cut, prompt)  # [B, N]
    before = full_logits(model, ranked, order, contexts)[..., :-1]
    compared = (torch.arange(10) >= prompt) & (torch.arange(10) < order.length[:, None])
    for rank in range(10):
        changed = ranked.clone()
        changed[:, rank] = (changed[:, rank] + 1) % 19
        moved = (full_logits(model, changed, order, contexts)[..., :-1] - before).abs().amax(-1) > 1e-6  # [B, N]
        assert torch.equal(moved[compared], (rank < contexts)[compared]), rank


@BACKBONES
@torch.inference_mode()
def test_cached_logits_through_random_histories(backbone):
    """200 random histories of drafting, committing and rolling back, ragged, against a fresh pass without cache."""
    model = backbone(20)
    worst = 0.0
    for history in range(200):
        generator = torch.Generator().manual_seed(history)
        tokens, given, target = random_batch(3, 14, 20, seed=history)
        order = rank_order(given, target)
        ranked, contexts = tokens.gather(1, order.order), order.content_context()
        cache, committed = model.new_cache(3, 14, 14), order.prompt_length.clone()
        while (committed < order.length).any():
            ahead = torch.randint(0, 4, (3,), generator=generator)
            upto = torch.minimum(committed + ahead, order.length)
            new = int((upto - cache.lengths).max())
            index = (cache.lengths[:, None] + torch.arange(new)).clamp(max=13)
            ranks = (upto[:, None] - torch.arange(3)).clamp(min=0).minimum(order.length[:, None] - 1)
            cached = model(
                ranked.gather(1, index), order.order.gather(1, index), contexts.gather(1, index).minimum(upto[:, None]),
                order.order.gather(1, ranks), ranks, cache,
            )  # fmt: skip
            fresh = model(ranked, order.order, contexts, order.order.gather(1, ranks), ranks)
            compared = (ranks >= order.prompt_length[:, None])[..., None].expand_as(fresh[..., :-1])
            worst = max(worst, float((cached - fresh)[..., :-1][compared].abs().max()))
            # Some of the drafts are kept; the others are dropped and drawn again.
            kept = (torch.rand(3, generator=generator) * (upto - committed + 1)).long()
            cache.set_lengths(committed + kept)
            redrawn = torch.arange(14) >= (committed + kept)[:, None]
            ranked = torch.where(redrawn, torch.randint(0, 19, ranked.shape, generator=generator), ranked)
            committed = committed + kept
    assert worst < 1e-4, worst


@BACKBONES
@torch.inference_mode()
def test_rows_may_see_one_more_rank(backbone):
    """Other tokens than those of the ranks 5 and 6, in the slots 9 and 10, and queries that see one of them each."""
    model = backbone(20)
    tokens, given, target = random_batch(3, 12, 20, seed=5)
    order = rank_order(given, target)
    ranked, prompt = tokens.gather(1, order.order), torch.full((3,), 4)
    contexts = torch.arange(1, 13).clamp(min=4).expand(3, -1)
    cache = model.new_cache(3, 14, 14)
    first = slice(0, 4)
    model(ranked[:, first], order.order[:, first], contexts[:, first], order.order[:, 4:5], prompt[:, None], cache)
    cache.set_lengths(prompt)
    others, instead = (ranked[:, 5:7] + 3) % 19, torch.tensor([[5, 6]]).expand(3, -1)
    new = slice(4, 9)
    none, slots = torch.full((3, 1), -1), torch.tensor([[9, 10]]).expand(3, -1)
    found = model(
        torch.cat((ranked[:, new], others), dim=1),
        torch.cat((order.order[:, new], order.order[:, 5:7]), dim=1),
        torch.cat((contexts[:, new], instead), dim=1),
        order.order[:, 6:9],
        torch.cat((instead, torch.full((3, 1), 8)), dim=1),
        cache,
        torch.cat((none.expand(-1, 5), slots, slots, none), dim=1),
    )
    for column in range(3):  # the last query sees neither
        changed = ranked.clone()
        if column < 2:
            changed[:, 5 + column] = others[:, column]
        query = slice(6 + column, 7 + column)
        seen = torch.full((3, 1), 6 + column)
        expected = model(changed, order.order, contexts, order.order[:, query], seen)
        torch.testing.assert_close(found[:, column], expected[:, 0], atol=1e-5, rtol=0)


@BACKBONES
@torch.inference_mode()
def test_rows_of_a_batch_do_not_see_each_other(backbone):
    model = backbone(20)
    tokens, given, target = random_batch(5, 12, 20, seed=3)
    order = rank_order(given, target)
    together = full_logits(model, tokens.gather(1, order.order), order)
    for row in range(5):
        here = slice(0, int(order.length[row]))
        alone = rank_order(given[row : row + 1], target[row : row + 1])
        alone.order = alone.order[:, here]
        logits = full_logits(model, tokens[row : row + 1].gather(1, alone.order), alone)
        span = slice(int(order.prompt_length[row]), int(order.length[row]))
        torch.testing.assert_close(logits[0, span], together[row, span], atol=1e-5, rtol=0)


@BACKBONES
@torch.inference_mode()
def test_a_query_with_nothing_to_see_has_a_distribution(backbone):
    """No content at all, and a query with context 0 beside others: finite, and the same."""
    model = backbone(20)
    none, position, zero = torch.zeros(1, 0, dtype=torch.long), torch.tensor([[4]]), torch.tensor([[0]])
    alone = model(none, none, none, position, zero)
    tokens, positions = torch.tensor([[1, 2]]), torch.tensor([[0, 2]])
    beside = model(tokens, positions, torch.tensor([[2, 2]]), position, zero)
    cached = model(none, none, none, position, zero, model.new_cache(1, 3, 64))
    assert alone[..., :-1].isfinite().all()
    assert alone[0, 0, -1] == -torch.inf
    torch.testing.assert_close(alone, beside)
    torch.testing.assert_close(alone, cached)


@BACKBONES
@torch.inference_mode()
def test_only_relative_positions_count(backbone):
    model = backbone(20)
    tokens, given, target = random_batch(3, 10, 20, seed=4)
    order = rank_order(given, target)
    ranked = tokens.gather(1, order.order)
    here = full_logits(model, ranked, order)
    order.order = order.order + 17
    torch.testing.assert_close(full_logits(model, ranked, order), here, atol=1e-4, rtol=0)
