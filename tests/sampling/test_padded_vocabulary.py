"""A vocabulary with more rows than the tokenizer has tokens: samples, densities and losses are those without them."""

import copy

import pytest
import torch

from asarm.models.compiled import compiled_for_decoding
from asarm.objective.loss import LossConfig, log_prob, training_loss
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from support.models import random_batch, tiny_gpt2, tiny_xlnet

TOKENS, ROWS = 9, 13  # the mask token is the last of the tokens
CONFIGS = [
    SamplerConfig(sampler="sequential"),
    SamplerConfig(sampler="parallel", steps=3),
    *(SamplerConfig(draft=d, coupling=c, k=4) for d in ("self", "ngram") for c in ("residual", "gumbel")),
    SamplerConfig(draft="ngram", k=4, tolerance=0.3),
    SamplerConfig(sampler="fused", k=4),
]


@pytest.fixture(params=[tiny_gpt2, tiny_xlnet], ids=["gpt2", "xlnet"])
def models(request):
    """A padded model, whose padding would be drawn often, and the same one without it."""
    padded = request.param(ROWS, scale=0.9, n_tokens=TOKENS, draft_head=8)
    padded.config.mask_token_id = TOKENS - 1
    with torch.no_grad():
        padded.output_layer()[0][TOKENS:] *= 5
    config = copy.deepcopy(padded.config)
    config.vocab_size, config.n_tokens = TOKENS, None
    plain = type(padded)(config)
    weights = {name: value[:TOKENS] if len(value) == ROWS else value for name, value in padded.state_dict().items()}
    plain.load_state_dict(weights)
    return padded, plain.eval()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.sampler}-{c.draft}-{c.coupling}-{c.tolerance}")
def test_samples_and_densities(models, config):
    inputs = random_batch(8, 24, TOKENS, seed=3)
    padded, plain = (sample(model, *inputs, config, range(8)) for model in models)
    assert torch.equal(padded.tokens, plain.tokens)
    assert torch.equal(padded.nfe, plain.nfe)
    assert padded.tokens[inputs.target].max() < TOKENS - 1
    ours, theirs = (log_prob(model, padded.tokens, inputs.given, inputs.target) for model in models)
    torch.testing.assert_close(ours, theirs)


def test_what_is_never_sampled_has_no_probability(models):
    padded, plain = models
    tokens, given, target = random_batch(4, 10, TOKENS, seed=4)
    for never in (TOKENS - 1, TOKENS, ROWS - 1):
        scores = log_prob(padded, tokens.masked_fill(target, never), given, target)
        assert scores[target].isneginf().all()
    assert compiled_for_decoding(padded, "on").never_sampled() == [slice(8, 9), slice(9, 13)]
    assert plain.never_sampled() == [slice(8, 9)]


def test_losses_and_gradients(models):
    tokens = torch.randint(0, TOKENS - 1, (3, 12), generator=torch.Generator().manual_seed(5))
    gradients = []
    for model in models:
        losses = training_loss(model, tokens, 0.6, LossConfig(draft_weight=1.0), torch.Generator().manual_seed(6))
        (losses.joint + losses.draft).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    padded, plain = gradients
    assert padded.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(padded[name][: len(value)], value)
        assert (padded[name][len(value) :] == 0).all()
