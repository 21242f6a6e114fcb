"""The draft head: it changes no distribution and no likelihood, is saved with the model, and learns to be accepted."""

import pytest
import torch

from asarm.models.load import load
from asarm.objective.loss import log_prob
from asarm.sampling import sample
from asarm.sampling.config import SamplerConfig
from asarm.tokenization.batch import InfillBatch
from asarm.training.draft_head import DraftHeadConfig, distillation_batch, log_acceptance, own_writing, train_draft_head
from asarm.utils.config import from_options
from asarm.utils.errors import InputError
from support.models import random_batch, tiny_gpt2, tiny_llama, tiny_xlnet
from support.paths import EVAL_DATASETS

TEXT = EVAL_DATASETS / "sample_text.txt"
BACKBONES = pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_llama])
KINDS = pytest.mark.parametrize("kind", [{}, {"draft_recurrent": True, "draft_vocabulary": 7}], ids=["", "recurrent"])


@BACKBONES
@KINDS
def test_the_head_is_used_by_drafts_only(backbone, kind):
    plain, model = backbone(12, scale=0.9), backbone(12, scale=0.9, draft_head=8, **kind)
    model.load_state_dict(plain.state_dict(), strict=False)
    batch = random_batch(8, 30, 12, seed=3)
    seeds = range(8)
    assert torch.equal(log_prob(plain, *batch[:2]), log_prob(model, *batch[:2]))
    blind = [SamplerConfig(sampler, "blind") for sampler in ("assd", "fused")]
    for config in (SamplerConfig(sampler="sequential"), SamplerConfig(draft="ngram"), *blind):
        assert torch.equal(sample(plain, *batch, config, seeds).tokens, sample(model, *batch, config, seeds).tokens)
    for config in (SamplerConfig("assd"), SamplerConfig("fused")):
        assert not torch.equal(sample(plain, *batch, config, seeds).tokens, sample(model, *batch, config, seeds).tokens)


@BACKBONES
@KINDS
@pytest.mark.parametrize("sampler", ["assd", "fused"])
def test_a_draft_is_given_its_left_neighbour_and_the_state_it_was_drawn_from(backbone, kind, sampler):
    model = backbone(12, scale=0.9, draft_head=8, **kind)
    calls, verifying = [], []
    follow, hidden = model.follow, model.hidden

    def recorded(states, left, previous):
        calls.append((states, left, previous.clone(), follow(states, left, previous)))
        return calls[-1][-1]

    def recorded_hidden(*arguments):
        verifying.append(hidden(*arguments))
        return verifying[-1]

    model.follow, model.hidden = recorded, recorded_hidden
    tokens = random_batch(1, 20, 12, seed=4).tokens
    target = torch.arange(20)[None] >= 5  # each is the left neighbour of the next
    result = sample(model, tokens, ~target, target, SamplerConfig(sampler, coupling="gumbel", k=3), [0], trace=True)
    drafted = [step for step in result.trace[0] if step.drafts]
    sequence = result.tokens[0]
    # Before the first call of the network a recurrent head knows a given token alone.
    is_first = sampler == "fused" and "draft_recurrent" in kind
    assert bool(result.trace[0][0].drafts) == (sampler == "assd" or is_first)
    remaining = iter(calls[is_first:])
    for step in drafted:
        drafts = dict(zip(step.positions, step.drafts, strict=True))
        before = torch.zeros(1, 1, 16) if is_first else None
        is_first = False
        for position in step.positions[sampler == "assd" :]:  # whose first draft is the target's own
            _, left, previous, moved = next(remaining)
            assert int(left) == drafts.get(position - 1, int(sequence[position - 1]))
            known = torch.cat([states[0] for states in verifying]) if before is None else before[0]
            assert (known == previous[0]).all(-1).any()
            before = moved
    assert next(remaining, None) is None


@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])
def test_tokens_that_are_drafted(backbone):
    """The first ones and the end of a gap, and never the mask token; all others have no probability."""
    model = backbone(12, draft_head=8, draft_recurrent=True, draft_vocabulary=5, gap_end_token_id=9)
    states = torch.randn(2, 3, 16)
    logits, all_logits = model.draft_logits(states), model.logits(states)
    drafted = [0, 1, 2, 3, 4, 9]
    assert torch.allclose(logits[..., drafted], all_logits[..., drafted], atol=1e-6)
    assert logits.isfinite().sum() == 2 * 3 * len(drafted)
    within = model.draft_logits(states, every_id=False)
    assert torch.equal(within, logits[..., :5])
    for size in (0, 12, 50):  # all, as in a vocabulary that has no more
        model.config.draft_vocabulary = size
        assert torch.equal(model.draft_logits(states), all_logits)


def test_the_log_of_the_acceptance():
    """Finite where the acceptance itself is 0 in float32."""
    log_p, log_q = torch.randn(2, 5, 9).log_softmax(-1)
    torch.testing.assert_close(log_acceptance(log_p, log_q).exp(), torch.minimum(log_p.exp(), log_q.exp()).sum(-1))
    apart = torch.tensor([0.0, -300.0])
    assert log_acceptance(apart, apart.flip(0)) == pytest.approx(-300 + torch.log(torch.tensor(2.0)).item())


@pytest.mark.parametrize("gap_end", [None, 9])
@pytest.mark.parametrize("backbone", [tiny_gpt2, tiny_xlnet, tiny_llama])
def test_own_writing_is_what_the_model_samples(backbone, gap_end):
    """And of a gap that ended early the rest is neither given nor a target."""
    model = backbone(12, scale=0.3, gap_end_token_id=gap_end)
    tokens = random_batch(6, 40, 12, seed=5).tokens
    given = (torch.arange(40) % 8 == 0).expand(6, -1).clone()
    tokens[given] = 9
    target = ~given
    target[:, 3] = False  # absent
    batch = InfillBatch(tokens, given, target)
    found = own_writing(model, batch, seed=7)
    sampled = sample(model, *batch, SamplerConfig(sampler="sequential"), range(7, 13))
    assert torch.equal(found.tokens, sampled.tokens)
    assert torch.equal(found.given, given)
    assert found.target.sum(1).tolist() == sampled.nfe.tolist()
    assert (found.target.sum() < target.sum()) == (gap_end is not None)
    windows = distillation_batch(model, found, window=3)
    assert windows.is_draft[:, 0].all()
    at_left = InfillBatch(*(part.roll(1, 1) for part in found))
    for part in at_left:
        part[:, 0] = False
    begins_gap = windows.begins_gap
    assert int((~begins_gap).sum()) == int((found.target & at_left.target).sum())
    gaps = found.target & at_left.given
    assert int(begins_gap.sum()) == int(gaps.sum()) > 0
    assert windows.left[begins_gap, 0].sort().values.equal(at_left.tokens[gaps].sort().values)


@pytest.mark.slow
@pytest.mark.parametrize("own_share", [0.0, 1.0])
def test_training(tmp_path, own_share):
    """More drafts are accepted on held-out text, the rest of the model is as it was, and the folder loads."""
    output = tmp_path / "headed"
    config = from_options(
        DraftHeadConfig, model="tiny-text", train_files=[str(TEXT)], output_dir=str(output), max_steps=150, batches=20,
        block_size=64, hidden=64, batch_size=6, learning_rate=4e-3, own_share=own_share, windows=100,
        line_share=0.2, cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    results = train_draft_head(config)
    assert [len(values) for values in results.values()] == [4, 4]
    assert min(results["acceptance"]) > 0.3, results
    assert results["acceptance_at_start"][0] > 0.15, results  # of a token to the left alone
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
        {"acceptance_share": 1.5},
        {"own_share": -0.1},
        {"line_share": 0.6},
        {"windows": 0},
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
