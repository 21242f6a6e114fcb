"""The paper's ablations in whole runs: random orders, the parallel objective, scaled losses and unpacked texts."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asarm.objective.loss import log_prob, training_loss
from asarm.tokenization.batch import PADDING
from asarm.training import validation
from asarm.training.trainer import Trainer
from support.models import tiny_gpt2, tiny_xlnet
from support.training import PROSE, assert_same_weights, die_at, run_config

LENGTHS = [16, 3, 9, 1, 12]


@pytest.fixture
def lines(tmp_path):
    """PROSE in documents that are shorter or longer than 32 tokens."""
    documents = [line * 3 if index % 3 else line[:30] for index, line in enumerate(PROSE.splitlines())]
    rows = [json.dumps({"text": document}) for document in documents]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "all.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return {"train_files": [str(tmp_path / "lines")], "unpacked": True}


def texts(seed: int = 0) -> np.ndarray:
    """Random texts of LENGTHS, padded."""
    blocks = np.random.default_rng(seed).integers(0, 19, (len(LENGTHS), 16))
    return np.where(np.arange(16) < np.array(LENGTHS)[:, None], blocks, PADDING)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_xlnet], ids=["gpt2", "xlnet"])
@pytest.mark.parametrize("rate", validation.RATES)
def test_validation_of_padded_texts_is_that_of_each_alone(make, rate):
    model, blocks = make(20), texts()
    target = validation.masked(blocks, rate, seed=0).target
    assert target.sum(1).tolist() == [max(1, int(rate * length)) for length in LENGTHS]
    alone = [
        -log_prob(model, torch.from_numpy(blocks[row : row + 1, :length]), ~target[row : row + 1, :length]).sum()
        for row, length in enumerate(LENGTHS)
    ]
    nll = validation.masked_nll(model, blocks, rate, seed=0, batch=2)
    torch.testing.assert_close(torch.from_numpy(nll), torch.stack(alone) / target.sum(1))
    mean = validation.mean_masked_nll(model, blocks, rate, seed=0)
    assert mean == pytest.approx(float(torch.stack(alone).sum() / target.sum()), rel=1e-5)
    seen = []

    def score(_, texts, tokens):
        seen.append(tokens.shape)
        return [SimpleNamespace(nll=1.0, entropy=2.0)]

    scores = validation.decoding_scores(model, SimpleNamespace(decode=str), blocks, score)
    assert 0 < scores["assd_nfe_per_token"] <= 1
    assert (scores["gen_perplexity"], scores["gen_entropy"]) == (pytest.approx(np.e), 2.0)
    assert seen == [(1, length) for length in LENGTHS]


def test_baselines_do_not_count_padding():
    """Texts of pairs of tokens: padding has no counts, and changes none."""
    train = np.array([[1, 2, 1, 2], [1, 2, PADDING, PADDING], [3, PADDING, PADDING, PADDING]])
    blocks = np.array([[1, 2, PADDING, PADDING]])
    found = validation.ngram_nll(train, blocks, 0.5, vocab_size=4, seed=0)
    position = int(validation.masked(blocks, 0.5, seed=0).target[0].nonzero())
    unigram = np.array([1, 4, 4, 2]) / 11  # add-one counts of seven tokens
    assert found["unigram"] == pytest.approx(-np.log(unigram[blocks[0, position]]))
    after_1 = (3 - 0.75) / 3 + 0.75 / 3 * unigram[2]
    assert found["bigram"] == pytest.approx(-np.log(unigram[1] if position == 0 else after_1))


@pytest.mark.parametrize("scale", ["rate", "snr"])
def test_the_gradient_is_scaled_and_the_recorded_loss_is_not(tmp_path, scale):
    """At one masking rate, in the first step, the norm of the gradient is that of the unscaled loss times the scale."""
    found = {}
    for name in ("none", scale):
        options = {"max_steps": 1, "eval_decodings": 0, "mask_low": 0.8, "mask_high": 0.8, "logging_steps": 1}
        run = tmp_path / name
        Trainer(run_config(tmp_path, output_dir=str(run), loss_scale=name, **options)).run()
        found[name] = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    factor = {"rate": 0.8, "snr": 4.0}[scale]
    assert found[scale]["grad_norm"] == pytest.approx(factor * found["none"]["grad_norm"], rel=1e-4)
    assert found[scale]["joint"] == found["none"]["joint"]
    assert found[scale]["draft"] == found["none"]["draft"]


@pytest.mark.parametrize(
    "changes",
    [{"order": "random", "loss_scale": "rate"}, {"objective": "parallel", "draft_weight": 0.0}],
    ids=["random", "parallel"],
)
@pytest.mark.parametrize("unpacked", [False, True], ids=["packed", "unpacked"])
def test_a_run_learns_and_resumes(tmp_path, monkeypatch, lines, changes, unpacked):
    changes = changes | {"max_steps": 40, "eval_steps": 40, "save_steps": 20, "mask_low": 0.15}
    changes |= lines if unpacked else {}
    metrics = Trainer(run_config(tmp_path, output_dir=str(tmp_path / "whole"), **changes)).run()
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["joint"] for line in lines if "joint" in line]
    assert losses[-1] < losses[0] - 1
    assert 0 < metrics["assd_nfe_per_token"] <= 1
    trained = metrics["tokens_trained_now"]
    assert (trained < 0.9 * 40 * 8 * 32) if unpacked else (trained == 40 * 8 * 32)
    die_at(Trainer(run_config(tmp_path, **changes)), monkeypatch, 20)
    Trainer(run_config(tmp_path, **changes)).run()
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_unpacked_texts_can_be_streamed(tmp_path, lines):
    stream = {
        "train_files": [],
        "dataset": str(tmp_path / "lines"),
        "streams": 2,
        "num_workers": 0,
        "shuffle_buffer": 50,
    }
    metrics = Trainer(run_config(tmp_path, **lines | stream, max_steps=40)).run()
    assert metrics["nll_0.5"] < 6
    assert metrics["tokens_trained_now"] < 0.9 * 40 * 8 * 32


def test_dry_run_shows_texts_without_their_padding(tmp_path, lines):
    about = Trainer(run_config(tmp_path, **lines)).dry_run()
    assert "training texts" in about
    assert "of up to 32 tokens; 30 steps of up to 256 tokens (8 sequences)" in about
    first = about.split("--- text 1 of the first batch ---\n")[1].split("--- text 2")[0]
    assert first.startswith("The ")
    assert "<pad>" not in about


@pytest.mark.parametrize(
    "changes", [{}, {"draft_weight": 0.0}, {"objective": "parallel", "draft_weight": 0.0}, {"order": "random"}]
)
@pytest.mark.parametrize("rate", [0.15, 0.6, 0.95])
def test_the_cost_model_counts_the_rows_that_are_computed(tmp_path, changes, rate):
    config, model, asked = run_config(tmp_path, **changes), tiny_gpt2(20), {}

    def hidden(*arguments):
        asked["content"], _, asked["sees"], asked["queries"], asked["see"] = arguments
        return model.hidden(*arguments)

    spy = SimpleNamespace(hidden=hidden, output_layer=model.output_layer, never_sampled=model.never_sampled)
    tokens = torch.zeros(2, 32, dtype=torch.long)
    training_loss(spy, tokens, rate, config.loss, torch.Generator().manual_seed(0))
    rows = config.rows(rate, 32)
    assert rows.queries == asked["queries"].shape[1]
    assert rows.total == asked["content"].shape[1] + rows.queries
    seen = float(asked["sees"][0].sum() + asked["see"][0].sum())
    assert rows.seen == pytest.approx(seen, rel=0.06)


def test_a_parallel_run_takes_less_memory_and_its_longest_prompt_counts(tmp_path):
    joint, parallel = (
        run_config(tmp_path, objective=name, draft_weight=0.0, mask_start=0.1, mask_warmup_steps=9).most_rows()
        for name in ("joint", "parallel")
    )
    assert (joint.targets, joint.total) == (31, 31 + 31)
    assert (parallel.targets, parallel.total) == (3, 29 + 3)
