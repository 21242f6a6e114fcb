"""Muon, against torch's, and in training runs."""

import pytest
import torch

from asarm.objective.loss import LossConfig
from asarm.objective.masking import MaskingPattern
from asarm.training.distributed import TrainingLoss
from asarm.training.optimizer import Muon, new_optimizer, orthogonal
from asarm.training.trainer import Trainer
from asarm.utils.errors import InputError
from support.models import tiny_xlnet
from support.training import assert_same_weights, die_at, run_config


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_a_matrix_keeps_its_directions_and_loses_its_singular_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    sizes = left.T @ orthogonal(matrix) @ right.T
    off = sizes - sizes.diag().diag()
    assert off.abs().max() < 1e-3
    assert sizes.diag().min() > 0.6
    assert sizes.diag().max() < 1.3


def test_matrices_move_as_with_torch_and_the_rest_as_with_adamw():
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((16, 24), (24, 16), (10, 6))]
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    rates = {"lr": 0.02, "weight_decay": 0.1}
    optimizer = Muon([{"params": ours[:2], "orthogonal": True}, {"params": ours[2:], "orthogonal": False}], **rates)
    references = [
        torch.optim.Muon(theirs[:2], adjust_lr_fn="match_rms_adamw", **rates),
        torch.optim.AdamW(theirs[2:], **rates),
    ]
    for _ in range(5):
        for left, right in zip(ours, theirs, strict=True):
            left.grad = torch.randn(left.shape, generator=generator)
            right.grad = left.grad.clone()
        for one in (optimizer, *references):
            one.step()
    for left, right, begin in zip(ours[:2], theirs[:2], start, strict=False):
        moved = (right - begin).norm()
        assert (left - right).norm() < 0.02 * moved  # torch's iterates in bfloat16
        assert moved > 0.1
    torch.testing.assert_close(ours[2], theirs[2], rtol=0, atol=0)


def test_a_resumed_run_ends_with_the_same_weights(tmp_path, monkeypatch):
    changes = {"optimizer": "muon", "eval_decodings": 0}
    Trainer(run_config(tmp_path, output_dir=str(tmp_path / "whole"), **changes)).run()
    die_at(Trainer(run_config(tmp_path, **changes)), monkeypatch, 20)
    Trainer(run_config(tmp_path, **changes)).run()
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_where_it_does_not_work(tmp_path):
    config = run_config(tmp_path, optimizer="muon").training
    with pytest.raises(InputError, match="for the gpt2 backbone"):
        new_optimizer(TrainingLoss(tiny_xlnet(), LossConfig(), MaskingPattern()), config)
    with pytest.raises(ValueError, match="unknown optimizer 'sgd'"):
        run_config(tmp_path, optimizer="sgd")
