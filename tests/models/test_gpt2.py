"""The `gpt2` backbone: what each row may see, that the cache changes nothing, saving and loading."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModel

from asarm.models.gpt2 import AnyOrderGPT2, AnyOrderGPT2Config
from asarm.models.load import AsArm, load
from asarm.models.rank_order import rank_order
from asarm.utils.errors import InputError
from support.models import random_batch, tiny_gpt2


def full_logits(model, ranked, order):
    """All queries under the joint, without a cache: [B, N, V]."""
    ranks = torch.arange(ranked.shape[1]).expand(len(ranked), -1)
    return model(ranked, order.order, order.content_context(), order.order, ranks)


@torch.inference_mode()
def test_a_query_sees_its_context_and_nothing_else():
    model = tiny_gpt2(20)
    tokens, given, target = random_batch(4, 10, 20, seed=0)
    order = rank_order(given, target)
    ranked = tokens.gather(1, order.order)
    before = full_logits(model, ranked, order)[..., :-1]
    for rank in range(10):
        changed = ranked.clone()
        changed[:, rank] = (changed[:, rank] + 1) % 19
        moved = (full_logits(model, changed, order)[..., :-1] - before).abs().amax(-1) > 1e-6  # [B, N]
        for row in range(4):
            prompt, total = int(order.prompt_length[row]), int(order.length[row])
            for query in range(prompt, total):
                assert bool(moved[row, query]) == (rank < query), (row, rank, query)


@torch.inference_mode()
def test_cached_logits_through_random_histories():
    """200 random histories of drafting, committing and rolling back, ragged, against a fresh pass without cache."""
    model = tiny_gpt2(20, n_embd=32)
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


@torch.inference_mode()
def test_rows_of_a_batch_do_not_see_each_other():
    model = tiny_gpt2(20)
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


@torch.inference_mode()
def test_a_query_with_nothing_to_see_has_a_distribution():
    """No content at all, and a query with context 0 beside others: finite, and the same."""
    model = tiny_gpt2(20)
    none, position, zero = torch.zeros(1, 0, dtype=torch.long), torch.tensor([[4]]), torch.tensor([[0]])
    alone = model(none, none, none, position, zero)
    tokens, positions = torch.tensor([[1, 2]]), torch.tensor([[0, 2]])
    beside = model(tokens, positions, torch.tensor([[2, 2]]), position, zero)
    cached = model(none, none, none, position, zero, model.new_cache(1, 3, 64))
    assert alone[..., :-1].isfinite().all()
    assert alone[0, 0, -1] == -torch.inf
    torch.testing.assert_close(alone, beside)
    torch.testing.assert_close(alone, cached)


@torch.inference_mode()
def test_only_relative_positions_count():
    model = tiny_gpt2(20)
    tokens, given, target = random_batch(3, 10, 20, seed=4)
    order = rank_order(given, target)
    ranked = tokens.gather(1, order.order)
    here = full_logits(model, ranked, order)
    order.order = order.order + 17
    torch.testing.assert_close(full_logits(model, ranked, order), here, atol=1e-4, rtol=0)


def test_save_and_load(tmp_path):
    model = tiny_gpt2(20)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded = AsArm.from_pretrained(tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=0, rtol=0)
    assert isinstance(AutoModel.from_pretrained(tmp_path), AnyOrderGPT2)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), AnyOrderGPT2Config)
    assert not loaded.training


def test_loading_says_what_is_wrong(tmp_path):
    model = tiny_gpt2(20)
    with pytest.raises(InputError, match="no model folder"):
        AsArm.from_pretrained(tmp_path / "nowhere")
    model.config.save_pretrained(tmp_path / "no_weights")
    with pytest.raises(InputError, match="cannot load"):
        AsArm.from_pretrained(tmp_path / "no_weights")
    model.save_pretrained(tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"damaged|cannot load"):
        AsArm.from_pretrained(tmp_path / "torn")
    bigger = tiny_gpt2(20, n_layer=3)
    model.save_pretrained(tmp_path / "other")
    bigger.config.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match=r"blocks\.2"):
        AsArm.from_pretrained(tmp_path / "other")


def test_a_model_and_its_tokenizer(tiny_folder, tmp_path):
    model, codec = load(tiny_folder)
    assert model.config.mask_token_id == codec.mask_token_id
    with pytest.raises(InputError, match="no model folder"):
        load(tmp_path / "nowhere")
    codec.save_pretrained(tmp_path)
    tiny_gpt2(20).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="does not belong"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_embd": 30, "n_head": 4}, "n_embd=30 must give n_head=4 heads of even width"),
        ({"n_embd": 9, "n_head": 3}, "even width"),
        ({"n_head": 0}, "n_head must be at least 1, not 0"),
        ({"n_layer": -1}, "n_layer must be at least 1, not -1"),
        ({"n_layer": 2.5}, "'n_layer' expected int, got float"),
        ({"n_positions": None}, "'n_positions' expected int, got NoneType"),
        ({"layer_norm_epsilon": -1}, "layer_norm_epsilon must be at least 0"),
        ({"rotary_base": 0}, "rotary_base must be at least 1, not 0"),
        ({"mask_token_id": 20}, "mask_token_id=20 must lie in 0..vocab_size - 1"),
        ({"draft_head": "big"}, "'draft_head' expected int, got str"),
    ],
)
def test_shapes_that_cannot_be(tmp_path, settings, message):
    config = json.loads(tiny_gpt2(20).config.to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(InputError, match=message) as error:
        AsArm.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
