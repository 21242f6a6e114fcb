"""The draft head: it changes no distribution and no likelihood, is saved with the model, and learns to be accepted."""

import pytest
import torch

from asarm.models.load import load
from asarm.objective.loss import log_prob
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.training.draft_head import DraftHeadConfig, train_draft_head
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from support.models import random_batch, tiny_gpt2, tiny_xlnet
from support.paths import EVAL_DATASETS

TEXT = EVAL_DATASETS / "sample_text.txt"
BACKBONES = pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet])


@BACKBONES
def test_the_head_is_used_by_fused_only(backbone):
    plain, model = backbone(12, scale=0.9), backbone(12, scale=0.9, draft_head=8)
    model.load_state_dict(plain.state_dict(), strict=False)
    batch = random_batch(8, 30, 12, seed=3)
    seeds = range(8)
    assert torch.equal(log_prob(plain, *batch[:2]), log_prob(model, *batch[:2]))
    for config in (SamplerConfig(sampler="sequential"), SamplerConfig(), SamplerConfig("fused", "blind")):
        assert torch.equal(sample(plain, *batch, config, seeds).tokens, sample(model, *batch, config, seeds).tokens)
    fused = SamplerConfig("fused")
    assert not torch.equal(sample(plain, *batch, fused, seeds).tokens, sample(model, *batch, fused, seeds).tokens)


@BACKBONES
def test_a_draft_is_given_its_left_neighbour_and_no_other_token(backbone):
    """The token that the head is given is the one to the left of the drafted position."""
    model = backbone(12, scale=0.9, draft_head=8)
    given_tokens = []

    def follow(states, left):
        given_tokens.append(left)
        return states

    model.follow = follow
    tokens, given, target = (x[:1] for x in random_batch(1, 20, 12, seed=4))
    result = sample(model, tokens, given, target, SamplerConfig("fused", coupling="gumbel", k=3), [0], trace=True)
    blind = sample(model, tokens, given, target, SamplerConfig("fused", "blind", "gumbel", k=3), [0], trace=True)
    assert result.trace == blind.trace  # `follow` changed nothing
    drafted = [step for step in result.trace[0] if step.drafts]
    sequence = result.tokens[0]
    calls = iter(given_tokens)
    for step in drafted:
        positions = target[0].nonzero()[:, 0].tolist()
        first = positions.index(step.positions[0])
        left = [int(sequence[positions[first - 1]]), *step.drafts[:-1]]
        assert [int(next(calls)) for _ in step.drafts] == left


@pytest.mark.slow
def test_training(tmp_path):
    """More drafts are accepted on held-out text, the rest of the model is as it was, and the folder loads."""
    output = tmp_path / "headed"
    config = from_options(
        DraftHeadConfig, model="tiny-text", train_files=[str(TEXT)], output_dir=str(output), max_steps=80,
        block_size=64, hidden=64, batch_size=6, learning_rate=4e-3, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    results = train_draft_head(config)
    gains = [new - old for new, old in zip(results["with"], results["without"], strict=True)]
    assert sum(gains) > 0.05 * len(gains), results
    old, (new, _) = load("tiny-text")[0], load(output)
    assert new.config.draft_head == 64
    weights = new.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in old.state_dict().items() if "head" not in name)
    with pytest.raises(InputError, match="is no empty folder"):
        train_draft_head(config)


def test_settings_that_cannot_be(tmp_path):
    for wrong in (
        {"model": ""},
        {"hidden": 0},
        {"span_share": 2.0},
        {"block_size": 1},
        {"seed": -1},
        {"learning_rate": 0.0},
    ):
        settings = {"model": "m", "train_files": ["t"], "output_dir": "o"} | wrong
        with pytest.raises(InputError):
            from_options(DraftHeadConfig, **settings)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"block_size": 600}, InputError, "block_size=600 is over the model's 512 positions"),
        ({"learning_rate": 1e30}, FloatingPointError, "the loss became nan: try a lower learning_rate"),
        ({"output_dir": str(TEXT)}, InputError, "is no empty folder"),
    ],
)
def test_what_cannot_be_trained_writes_nothing(tmp_path, wrong, error, message):
    output = tmp_path / "headed"
    settings = {"output_dir": str(output), "block_size": 16, "max_steps": 4} | wrong
    with pytest.raises(error, match=message):
        train_draft_head(
            from_options(
                DraftHeadConfig, model="tiny-text", train_files=[str(TEXT)], cache_dir=str(tmp_path), **settings
            )
        )
    assert not output.exists()
