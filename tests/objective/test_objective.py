"""The joint loss and the draft loss against log-densities taken one by one."""

import torch

from asarm.models.rank_order import rank_order
from asarm.objective.loss import LossConfig, draft_queries, log_prob, training_loss
from asarm.objective.masking import MaskingPattern, random_targets, training_targets
from support.models import tiny_gpt2


def test_training_loss_is_the_mean_log_density():
    model, generator = tiny_gpt2(20), torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 19, (3, 16), generator=generator)
    losses = training_loss(model, tokens, 0.6, LossConfig(), torch.Generator().manual_seed(5))
    target = random_targets(tokens, 0.6, torch.Generator().manual_seed(5))
    assert int(target.sum()) == 3 * 9
    assert losses.draft is None
    expected = -log_prob(model, tokens, ~target).sum() / target.sum()
    torch.testing.assert_close(losses.joint.detach(), expected)


def test_spans_change_the_targets_of_the_loss_alone():
    model, generator = tiny_gpt2(20), torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 19, (3, 16), generator=generator)
    losses = training_loss(model, tokens, 0.6, LossConfig(), torch.Generator().manual_seed(5), MaskingPattern(1.0))
    target = training_targets(tokens, 0.6, MaskingPattern(1.0), torch.Generator().manual_seed(5))
    torch.testing.assert_close(losses.joint.detach(), -log_prob(model, tokens, ~target).sum() / target.sum())


def test_draft_queries_stay_between_prompt_and_rank():
    config = LossConfig(draft_weight=1, draft_window=4, draft_share=1.0)
    target = random_targets(torch.zeros(5, 20), 0.7, torch.Generator().manual_seed(0))
    order = rank_order(~target, target)
    ranks, contexts = draft_queries(order, config, torch.Generator().manual_seed(1))
    assert ranks.shape == (5, 13)  # 14 targets, all but the first
    assert (contexts >= order.prompt_length[:, None]).all()
    assert ((ranks - contexts >= 1) & (ranks - contexts <= 3)).all()
    assert (ranks.sort(1).values == torch.arange(7, 20)).all()


def test_draft_loss_is_the_loss_of_drafted_positions():
    """Against queries whose contexts are cut back by hand."""
    model = tiny_gpt2(20)
    tokens = torch.randint(0, 19, (1, 12), generator=torch.Generator().manual_seed(2))
    config = LossConfig(draft_weight=1.0, draft_window=3, draft_share=0.5)
    losses = training_loss(model, tokens, 0.5, config, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    target = random_targets(tokens, 0.5, generator)
    order = rank_order(~target, target)
    ranks, contexts = draft_queries(order, config, generator)
    ranked = tokens.gather(1, order.order)
    logits = model(ranked, order.order, order.content_context(), order.order.gather(1, ranks), contexts)
    expected = torch.nn.functional.cross_entropy(logits[0], ranked.gather(1, ranks)[0])
    torch.testing.assert_close(losses.draft, expected)
