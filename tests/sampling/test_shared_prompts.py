"""Rows with the same prompt share the reading of it, and nothing else changes."""

import pytest
import torch

from asarm.models import kv_cache
from asarm.models.compiled import CompiledModel
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from support.models import random_batch, tiny_gpt2, tiny_llama, tiny_xlnet


def two_prompts(copies: int) -> InfillBatch:
    """Two rows of different prompts and lengths, several times each."""
    return InfillBatch(
        *(one.repeat_interleave(copies, dim=0) for one in random_batch(3, 24, 12, seed=3).select([0, 1]))
    )


def content_read(model, batch, config, monkeypatch) -> tuple[torch.Tensor, int]:
    """The texts, and how many rows of content the network was given with more than one token, over all calls."""
    read, hidden = [], type(model).hidden

    def counted(self, tokens, *arguments):
        read.append(tokens.numel() if tokens.shape[1] > 5 else 0)
        return hidden(self, tokens, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "hidden", counted)
        return sample(model, *batch, config, range(len(batch.tokens))).tokens, sum(read)


@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])
@pytest.mark.parametrize("settings", [{"sampler": "sequential"}, {"k": 3}, {"sampler": "fused", "k": 2}], ids=str)
def test_the_texts_are_those_of_prompts_read_alone(backbone, settings, monkeypatch):
    model, batch, config = backbone(12, scale=0.9, draft_head=4), two_prompts(16), SamplerConfig(**settings)
    monkeypatch.setattr(kv_cache, "SHARED_TOKENS", 10**9)
    expected, every = content_read(model, batch, config, monkeypatch)
    monkeypatch.setattr(kv_cache, "SHARED_TOKENS", 64)
    found, shared = content_read(model, batch, config, monkeypatch)
    assert torch.equal(found, expected)
    assert shared * 8 <= every


def test_equal_tokens_at_other_positions_are_another_prompt(monkeypatch):
    monkeypatch.setattr(kv_cache, "SHARED_TOKENS", 1)
    model, (tokens, given, target) = tiny_gpt2(12, scale=0.9), random_batch(3, 24, 12, seed=3).select([0, 0, 0, 0])
    tokens[:], moved = 5, given.roll(1, 1)  # one prompt of fives, at two sets of positions
    given, target = torch.stack([given[0], moved[0]] * 2), torch.stack([target[0], target[0].roll(1)] * 2)
    together = sample(model, tokens, given, target, SamplerConfig(), range(4)).tokens
    for row in range(4):
        here = slice(row, row + 1)
        alone = sample(model, tokens[here], given[here], target[here], SamplerConfig(), [row]).tokens
        assert torch.equal(alone[0], together[row])


def test_a_padded_cache_of_a_compiled_model(monkeypatch):
    """Static caches have more rows than the batch; here without a compiler."""
    model, batch = tiny_gpt2(12, scale=0.9), two_prompts(11)
    expected = sample(model, *batch, SamplerConfig(), range(22)).tokens
    compiled = CompiledModel(model)
    compiled.fails = True
    monkeypatch.setattr(kv_cache, "SHARED_TOKENS", 64)
    assert torch.equal(sample(compiled, *batch, SamplerConfig(), range(22)).tokens, expected)
