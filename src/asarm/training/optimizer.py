"""Optimisers: AdamW, and Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for matrices.

`torch.optim.Muon` does the same in bfloat16 on every device, which took sixty times as long on a CPU without bfloat16
instructions.
"""

from collections.abc import Callable
from typing import Any

import torch

from asarm.models.gpt2 import AnyOrderGPT2
from asarm.training.config import TrainingConfig
from asarm.utils.errors import InputError

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration, by Jordan
STEPS = 5
MOMENTUM = 0.95
ADAM_RMS = (
    0.2  # the usual root mean square of AdamW's updates; Muon's have the same (Liu et al. 2025, arXiv 2502.16982)
)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Approximately U V^T of a matrix U S V^T: [m, n] float. Its singular values are in about [0.7, 1.2]."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(torch.optim.AdamW):
    """Muon for the parameter groups in which `orthogonal` is true, AdamW for those in which it is false.

    Learning rates mean the same for both.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"] if group["orthogonal"] else []:
                if matrix.grad is not None:
                    self._update(matrix, group)
                    matrix.grad = None  # so that AdamW skips it
        return super().step(closure)

    def _update(self, matrix: torch.Tensor, group: dict) -> None:
        state, grad = self.state[matrix], matrix.grad
        assert grad is not None
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
            state["step"] = torch.zeros(())  # AdamW needs one to load a state
        state["momentum"].lerp_(grad, 1 - MOMENTUM)
        update = orthogonal(grad.lerp(state["momentum"], MOMENTUM))  # Nesterov's
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(update, alpha=-group["lr"] * ADAM_RMS * max(matrix.shape) ** 0.5)


def new_optimizer(loss: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices only, as GPT-2's trainers do; or Muon for the matrices of the blocks and AdamW for the
    rest. Raises InputError for Muon with another backbone."""
    trained = [p for p in loss.parameters() if p.requires_grad]
    vectors = [p for p in trained if p.ndim < 2]
    orthogonal = []
    if config.optimizer == "muon":
        if not isinstance(loss.model, AnyOrderGPT2):
            raise InputError("optimizer muon is for the gpt2 backbone: use adamw")
        orthogonal = [p for p in loss.model.blocks.parameters() if p.ndim == 2]
    inner = set(map(id, orthogonal))
    matrices = [p for p in trained if p.ndim >= 2 and id(p) not in inner]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    rate, betas = config.learning_rate, (0.9, config.adam_beta2)
    if not orthogonal:
        return torch.optim.AdamW(groups, lr=rate, betas=betas)
    groups.append({"params": orthogonal, "weight_decay": config.weight_decay})
    for group in groups:
        group["orthogonal"] = group["params"] is orthogonal
    return Muon(groups, lr=rate, betas=betas)
