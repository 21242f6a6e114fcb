"""Matrix products for decoding, where a step has only a few rows."""

import torch
import torch.nn.functional as F

FEW_ROWS = 32


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., I] times weight [O, I] plus bias [O]: [..., O], as `F.linear`.

    On a CPU a step of a few rows costs what reading the weights costs. BLAS reads them at full speed only when they
    are the left factor (2 rows of 768 x 3072: 0.8 against 1.4 ms on two cores), so for few rows they are.
    """
    rows = x.shape[:-1].numel()
    if x.device.type != "cpu" or not 0 < rows <= FEW_ROWS or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1).t()  # [I, rows]
    out = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)  # [O, rows]
    return out.t().contiguous().view(*x.shape[:-1], -1)
