"""Objective, schedule, data and the training loop."""

import json

import numpy as np
import pytest
import torch
from models import tiny_gpt2

from asarm import data
from asarm.config import DraftLossConfig, MaskingConfig, ModelConfig, TrainingConfig
from asarm.errors import InputError
from asarm.models.load import load_model
from asarm.objective import draft_queries, log_prob, random_targets, training_loss
from asarm.order import rank_order
from asarm.trainer import Trainer

PROSE = "".join(f"The {n} cats of house {n % 7} sat on mat {n % 5}, and no dog came by.\n" for n in range(700))


def settings(tmp_path, **changes):
    (tmp_path / "prose.txt").write_text(PROSE, encoding="utf-8")
    values = {
        "train_files": [str(tmp_path / "prose.txt")], "output_dir": str(tmp_path / "run"), "block_size": 32,
        "max_steps": 30, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 3e-3,
        "warmup_steps": 5, "eval_steps": 15, "save_steps": 10, "logging_steps": 5, "held_out": 0.1, "eval_blocks": 8,
    }  # fmt: skip
    shape = ModelConfig(vocab_size=400, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    return TrainingConfig(**values | changes), shape, MaskingConfig(mask_low=0.3), DraftLossConfig(draft_weight=0.5)


def test_training_loss_is_the_mean_log_density():
    model, generator = tiny_gpt2(20), torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 19, (3, 16), generator=generator)
    losses = training_loss(model, tokens, 0.6, DraftLossConfig(), torch.Generator().manual_seed(5))
    target = random_targets(3, 16, 0.6, torch.Generator().manual_seed(5))
    assert int(target.sum()) == 3 * 9
    assert losses.draft is None
    expected = -log_prob(model, tokens, ~target).sum() / target.sum()
    torch.testing.assert_close(losses.joint.detach(), expected)


def test_draft_queries_stay_between_prompt_and_rank():
    config = DraftLossConfig(draft_weight=1, draft_window=4, draft_share=1.0)
    target = random_targets(5, 20, 0.7, torch.Generator().manual_seed(0))
    order = rank_order(~target, target)
    ranks, contexts = draft_queries(order, config, torch.Generator().manual_seed(1))
    assert ranks.shape == (5, 13)  # 14 targets, all but the first
    assert (contexts >= order.prompt_length[:, None]).all()
    assert ((ranks - contexts >= 1) & (ranks - contexts <= 3)).all()
    assert (ranks.sort(1).values == torch.arange(7, 20)).all()


def test_draft_loss_is_the_loss_of_drafted_places():
    """One drafted place at a time, against a query with the shortened context by hand."""
    model = tiny_gpt2(20)
    tokens = torch.randint(0, 19, (1, 12), generator=torch.Generator().manual_seed(2))
    config = DraftLossConfig(draft_weight=1.0, draft_window=3, draft_share=0.5)
    losses = training_loss(model, tokens, 0.5, config, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    target = random_targets(1, 12, 0.5, generator)
    order = rank_order(~target, target)
    ranks, contexts = draft_queries(order, config, generator)
    ranked = tokens.gather(1, order.order)
    logits = model(ranked, order.order, order.content_context(), order.order.gather(1, ranks), contexts)
    expected = torch.nn.functional.cross_entropy(logits[0], ranked.gather(1, ranks)[0])
    torch.testing.assert_close(losses.draft, expected)


def test_masking_rates():
    config = MaskingConfig(mask_start=0.2, mask_low=0.6, mask_high=0.8, mask_warmup_steps=10)
    assert config.rate(0, 0.7) == pytest.approx(0.2)
    assert config.rate(5, 0.0) == pytest.approx(0.4)
    assert config.rate(5, 1.0) == pytest.approx(0.5)
    assert config.rate(99, 0.5) == pytest.approx(0.7)
    for wrong in ({"mask_low": 0.0}, {"mask_high": 1.0}, {"mask_low": 0.9, "mask_high": 0.5}):
        with pytest.raises(ValueError, match="mask_"):
            MaskingConfig(**wrong)


def test_learning_rate():
    config = TrainingConfig(train_files=["x"], output_dir="y", max_steps=110, warmup_steps=10, learning_rate=1.0)
    assert config.learning_rate_at(0) == pytest.approx(0.1)
    assert config.learning_rate_at(10) == pytest.approx(1.0)
    assert config.learning_rate_at(60) == pytest.approx(0.5)


def test_packing_loses_nothing_and_closes_documents():
    blocks = data.pack([[5, 6, 7], [8], [9, 10, 11, 12]], eos=0, block_size=5)
    assert blocks.tolist() == [[5, 6, 7, 0, 8], [0, 9, 10, 11, 12]]
    with pytest.raises(InputError, match="less than one block"):
        data.pack([[1]], eos=0, block_size=5)


def test_each_epoch_reads_every_block_once():
    rows = np.concatenate([data.batch_rows(10, index, 4, seed=3) for index in range(5)])
    assert sorted(rows[:10]) == list(range(10))
    assert sorted(rows[10:]) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()


def test_tokenizer_round_trips_any_text():
    tokenizer = data.train_tokenizer([PROSE], 400)
    for text in ("  Tab\t, new\n\n line; émigré 猫 🙂", PROSE[:200]):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len({tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_a_run_learns_and_leaves_its_files(tmp_path):
    config, *rest = settings(tmp_path, max_steps=150, eval_steps=75, save_steps=75)
    metrics = Trainer(config, *rest).run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    joint = [line["joint"] for line in lines if "joint" in line]
    assert joint[-1] < joint[0] - 1
    assert metrics["nll_0.5"] < metrics["unigram_nll_0.5"]
    assert metrics["bigram_nll_0.5"] < metrics["unigram_nll_0.5"]
    for name in ("config.json", "metrics.json", "curve.png", "model/model.safetensors", "model/tokenizer.json"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert load_model(tmp_path / "run" / "model").config.vocab_size <= 400
    with pytest.raises(InputError, match="earlier run"):
        Trainer(config, *rest).run()


def test_a_resumed_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    config, *rest = settings(tmp_path)
    whole = Trainer(config, *rest)
    whole.run()
    config.output_dir = str(tmp_path / "torn")
    torn = Trainer(config, *rest)
    save = torn.save_checkpoint

    def save_then_die():
        save()
        if torn.step == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(torn, "save_checkpoint", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        torn.run()
    config.resume = True
    resumed = Trainer(config, *rest)
    resumed.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_resuming_before_the_first_line_of_metrics(tmp_path):
    """A checkpoint may be older than the first logged step."""
    config, *rest = settings(tmp_path, max_steps=2, logging_steps=50)
    Trainer(config, *rest).run()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    config.resume = True
    Trainer(config, *rest).run()
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("nll_0.5") == 1


def test_training_can_start_from_a_model(tmp_path):
    config, *rest = settings(tmp_path)
    first = Trainer(config, *rest).run()
    config.init_from, config.output_dir = str(tmp_path / "run" / "model"), str(tmp_path / "second")
    config.max_steps, config.warmup_steps, config.learning_rate = 2, 0, 1e-6
    assert Trainer(config, *rest).run()["nll_0.5"] == pytest.approx(first["nll_0.5"], abs=0.02)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"caf\xe9", "not UTF-8"), (b"word", "less than one block")],
)
def test_text_that_cannot_be_trained_on(tmp_path, content, message):
    config, *rest = settings(tmp_path)
    (tmp_path / "prose.txt").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Trainer(config, *rest)
    assert not (tmp_path / "run").exists()
