"""Operations that backbones share: linear layers for small batches, recomputation in the backward pass, rotation."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

SMALL_BATCH = 32  # rows
Rotary = tuple[torch.Tensor, torch.Tensor]  # cosine and sine of angles, [B, 1, R, D / 2] each
TILE = 8  # columns that BLAS's kernels take at a time


def small_batch_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`, faster for a few rows on a CPU. x: [..., I], weight: [O, I], bias: [O] or None. Returns [..., O].

    A product of a few rows takes the time of reading the weights. BLAS reads them at full speed only when they are the
    left factor (2 rows of 768 x 3072: 0.8 against 1.4 ms on two cores), so for few rows they are. It also slows down
    for an incomplete last tile, so anything above one tile is padded to whole tiles (10 rows: 1.2 against 1.7 ms).
    All this is of float32; bfloat16 is multiplied by another library, which reads the weights at full speed as it is.
    """
    if torch.compiler.is_compiling():  # compilers choose by themselves, and would recompile for each of our choices
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    is_float32 = x.device.type == "cpu" and weight.dtype == torch.float32
    if not is_float32 or not 0 < rows <= SMALL_BATCH or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1)
    if rows > TILE:
        columns = F.pad(columns, (0, 0, 0, -rows % TILE))
    columns = columns.t()  # [I, rows, padded]
    out = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)  # [O, rows, padded]
    return out.t()[:rows].contiguous().view(*x.shape[:-1], -1)


def recompute_in_backward(function: Callable[..., Any], *arguments: Any, random: bool = False) -> Any:
    """function(*arguments), whose intermediate results are not kept for the backward pass but computed again in it.

    A matrix product at the end of the function is not repeated: recomputation stops once it has the product's input.
    random: the function draws random numbers (dropout), which must be the same the second time.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # compilers choose by themselves what to keep
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random)


def normed_linear(
    norm: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """A linear layer of norm(x), x [..., I] -> [..., O]; norm(x) is computed again in the backward pass, not kept."""
    return recompute_in_backward(lambda x: small_batch_linear(norm(x), weight, bias), x)


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Turn the halves of x [B, H, R, D] by angles."""
    cos, sin = rotary
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x.dtype)
