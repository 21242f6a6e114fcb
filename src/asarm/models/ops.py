"""Operations of the backbones: matrix products of a few rows, and recomputation in the backward pass."""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

FEW_ROWS = 32
TILE = 8  # columns that BLAS's kernels take at a time


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., I] times weight [O, I] plus bias [O]: [..., O], as `F.linear`.

    On a CPU a step of a few rows costs what reading the weights costs. BLAS reads them at full speed only when they
    are the left factor (2 rows of 768 x 3072: 0.8 against 1.4 ms on two cores), so for few rows they are; and it
    stumbles over a broken last tile, so more than one tile is filled up with zeros (10 rows: 1.2 against 1.7 ms).
    A compiler makes its own choice, and would compile anew for each of ours.
    """
    if torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    if x.device.type != "cpu" or not 0 < rows <= FEW_ROWS or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1)
    if rows > TILE:
        columns = F.pad(columns, (0, 0, 0, -rows % TILE))
    columns = columns.t()  # [I, rows, or a few more]
    out = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)  # [O, rows or more]
    return out.t()[:rows].contiguous().view(*x.shape[:-1], -1)


def recomputed(function, *arguments, random: bool = False):
    """function(*arguments); what it computes inside is made again in the backward pass instead of being kept.

    A matrix product at the end of the function is not repeated: the pass stops as soon as it has the product's input.
    random: the function draws random numbers (dropout), which must be the same again. Compilers make their own choice
    of what to keep.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random)
