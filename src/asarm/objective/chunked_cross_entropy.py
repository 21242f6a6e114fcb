"""Cross-entropy straight from final states, by slices of the vocabulary: the logits [Q, V] never exist as a whole.

The forward pass keeps the log normaliser of each query. The backward pass computes each slice of logits again, which
costs one matrix product more than keeping them would, and writes each slice of the weight's gradient once.

Shapes: Q queries, E width, V vocabulary, W width of a slice of the vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch

SLICE_ELEMENTS = 2**23  # of the logits that exist at a time: 32 MB in float32


def cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    excluded: Sequence[slice] = (),
    elements: int = SLICE_ELEMENTS,
) -> torch.Tensor:
    """Negative log-likelihoods [...] (nats, float32) of targets [...] int64 under softmax(hidden weight^T + bias).

    hidden: [..., E]. weight: [V, E]. bias: [V] or None. excluded: tokens whose probability is 0.
    elements: the largest number of logits held at once. Products run in the dtype of autocast where it is on, sums in
    float32.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    flat = hidden.flatten(0, -2)
    width = max(1, elements // max(1, len(flat)))
    return _SlicedCrossEntropy.apply(flat, weight, bias, targets.flatten(), excluded, width).view(targets.shape)


def _slices(size: int, width: int) -> list[slice]:
    return [slice(start, min(start + width, size)) for start in range(0, size, width)]


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, part: slice, excluded: Sequence[slice]
) -> torch.Tensor:
    """Logits [Q, W] (float32) of one slice of the vocabulary."""
    logits = torch.nn.functional.linear(hidden, weight[part], None if bias is None else bias[part]).float()
    for tokens in excluded:
        logits[:, max(0, tokens.start - part.start) : max(0, tokens.stop - part.start)] = float("-inf")
    return logits


def _in_slice(targets: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [Q] of targets [Q] in a slice of the vocabulary, and whether they are in it; if not, any column."""
    column = (targets - part.start).clamp(0, part.stop - part.start - 1)
    return column, (targets >= part.start) & (targets < part.stop)


class _SlicedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        excluded: Sequence[slice],
        width: int,
    ) -> torch.Tensor:
        normaliser = hidden.new_full(targets.shape, float("-inf"), dtype=torch.float32)  # [Q]
        target_logits = torch.zeros_like(normaliser)  # [Q]
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _slices(len(weight), width):
                logits = _logits(hidden, weight, bias, part, excluded)  # [Q, W]
                normaliser = torch.logaddexp(normaliser, logits.logsumexp(1))
                column, inside = _in_slice(targets, part)
                target_logits = torch.where(inside, logits.gather(1, column[:, None])[:, 0], target_logits)
        ctx.save_for_backward(hidden, weight, bias, targets, normaliser)
        ctx.excluded, ctx.width = excluded, width
        return normaliser - target_logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """With p the softmax and y the one-hot target, the gradient of the logits is upstream * (p - y)."""
        hidden, weight, bias, targets, normaliser = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        hidden_grad = torch.zeros_like(hidden, dtype=torch.float32) if for_hidden else None
        weight_grad = torch.empty_like(weight) if for_weight else None
        bias_grad = torch.empty_like(bias) if bias is not None and for_bias else None
        rows = torch.arange(len(targets), device=targets.device)
        with torch.autocast(hidden.device.type, enabled=False):
            for part in _slices(len(weight), ctx.width):
                grad = _logits(hidden, weight, bias, part, ctx.excluded)  # [Q, W], logits at first
                grad.sub_(normaliser[:, None]).exp_()  # the softmax
                column, inside = _in_slice(targets, part)
                grad[rows, column] -= inside.float()
                grad.mul_(upstream[:, None])
                if bias_grad is not None:
                    bias_grad[part] = grad.sum(0)
                grad = grad.to(hidden.dtype)
                if hidden_grad is not None:
                    hidden_grad += grad @ weight[part]
                if weight_grad is not None:
                    torch.mm(grad.t(), hidden, out=weight_grad[part])
        hidden_grad = None if hidden_grad is None else hidden_grad.to(hidden.dtype)
        return hidden_grad, weight_grad, bias_grad, None, None, None
