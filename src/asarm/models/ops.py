"""Operations that backbones share: linear layers with packed weights, recomputation in the backward pass, rotation."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

Rotary = tuple[torch.Tensor, torch.Tensor]  # cosine and signed sine of angles, [B, 1, R, D] each
# Float32 weights are read faster, by up to a third, as they are: for fewer rows of x, or if they are fewer.
FEWEST_ROWS, FEWEST_WEIGHTS = 4, 400_000


class PackedWeights:
    """A parameter's weights, as they are in memory a second time: in the layout that oneDNN multiplies fastest.

    A product of a few rows takes the time of reading the weights, and from this layout they are read up to twice as
    fast as from rows (8 rows of 12 layers x 768, float32, two cores: 14 against 37 ms; bfloat16: 14 against 24), with
    results that differ by rounding at most. Each part of the parameter that is used is packed at its first use, and
    again when it has changed since.
    """

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = weakref.ref(parameter)
        # Versions and the weights of a product, and these packed.
        self.parts: dict[tuple, tuple[list[int], list[torch.Tensor], torch.Tensor]] = {}

    def are_at(self, address: int) -> bool:
        """Whether the parameter still is there. Given other data (`model.to`), it leaves its storage to others."""
        parameter = self.parameter()
        return parameter is not None and parameter.untyped_storage().data_ptr() == address

    def packed(self, *weights: torch.Tensor) -> torch.Tensor:
        """Weights [., I], the first of which is the parameter or a part of it, packed as one [O, I]."""
        key = tuple((weight.data_ptr(), weight.shape, weight.stride(), weight.dtype) for weight in weights)
        versions = [weight._version for weight in weights]
        before, _, packed = self.parts.get(key, (None, None, None))
        if packed is None or before != versions:
            parts = [weight.detach() for weight in weights]
            whole = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
            packed = torch.ops.mkldnn._reorder_linear_weight(whole)
            # With the weights their storage is kept: no others can be at the same addresses.
            self.parts[key] = (versions, parts, packed)
        return packed


_packed_weights: dict[int, PackedWeights] = {}  # by the address of their storage


def pack_weights(model: nn.Module) -> None:
    """Let `packed_linear` keep the weights of a model on a CPU packed, beside the weights themselves, as long as the
    model lives. No change where torch is built without oneDNN.

    It is for models whose weights change as torch counts it: by optimisers, `load_state_dict` and the like, not by FSDP
    nor through `weight.data` (merging with peft), after which this is to be called again. Weights made in inference
    mode have no such count, and are left out.
    """
    if not torch.backends.mkldnn.is_available():
        return
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.dim() > 1 and not parameter.is_inference():
            address = parameter.untyped_storage().data_ptr()
            _packed_weights[address] = PackedWeights(parameter)
            weakref.finalize(parameter, _forget, address, weakref.ref(_packed_weights[address]))


def may_look(x: torch.Tensor) -> bool:
    """Whether values of x can be looked at without making the host wait, or a compiler give up."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _forget(address: int, weights: weakref.ref[PackedWeights]) -> None:
    """The parameter is gone; the packed weights at its address may be those of another one by now."""
    if _packed_weights.get(address) is weights():
        _packed_weights.pop(address, None)


def packed_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    silu: bool = False,
    times: torch.Tensor | None = None,
    plus: torch.Tensor | None = None,
) -> torch.Tensor:
    """`F.linear`, in inference with packed weights if they are of a model that `pack_weights` was told of.

    x: [..., I], weight: [O, I], bias: [O] or None. Returns [..., O].
    silu, times, plus: at most one thing to do with the product: an activation, or another tensor [..., O] that it is
        multiplied with or added to. With packed weights that takes no pass over memory of its own.
    """
    packed = _packed(x, weight)
    if packed is None:
        product = F.linear(x, weight, bias)
        return _then(product, silu, times, plus) if silu or times is not None or plus is not None else product
    operation = torch.ops.mkldnn._linear_pointwise
    if times is not None:
        return operation.binary(x, times, packed, bias, "mul")
    if plus is not None:
        return operation.binary(x, plus, packed, bias, "add")
    return operation(x, packed, bias, "swish" if silu else "none", [], "")


def linear(layer: nn.Module, x: torch.Tensor, silu: bool = False, **then: torch.Tensor) -> torch.Tensor:
    """A layer applied to x [..., I] -> [..., O], by `packed_linear` unless it has an adapter beside it.

    silu, then: as there.
    """
    if isinstance(layer, nn.Linear):
        return packed_linear(x, layer.weight, layer.bias, silu, **then)
    return _then(layer(x), silu, **then)


def linear_together(layers: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor | None:
    """Several layers applied to x [..., I], their results side by side [..., O]: one product in inference with packed
    weights. None where that cannot be had, or would not be faster.
    """
    plain = [layer for layer in layers if isinstance(layer, nn.Linear)]
    packed = _packed(x, *(layer.weight for layer in plain)) if len(plain) == len(layers) else None
    if packed is None:
        return None
    biases: list[torch.Tensor] = [layer.bias for layer in plain if layer.bias is not None]
    bias = torch.cat(biases) if biases else None
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def _then(
    product: torch.Tensor, silu: bool = False, times: torch.Tensor | None = None, plus: torch.Tensor | None = None
) -> torch.Tensor:
    """What `packed_linear` does with a product."""
    if times is not None:
        return product * times
    if plus is not None:
        return product + plus
    return F.silu(product) if silu else product


def _packed(x: torch.Tensor, weight: torch.Tensor, *more: torch.Tensor) -> torch.Tensor | None:
    """The packed weights for a product with x, None if there are none, or it would not be faster."""
    if torch.compiler.is_compiling():
        return None  # compilers choose by themselves
    if x.dtype == torch.float32 and (weight.numel() < FEWEST_WEIGHTS or x.numel() < FEWEST_ROWS * x.shape[-1]):
        return None
    if x.device.type != "cpu" or torch.is_grad_enabled() or not x.numel():
        return None
    address = weight.untyped_storage().data_ptr()
    weights = _packed_weights.get(address)
    if weights is None or not weights.are_at(address) or x.dtype != weight.dtype or torch.is_autocast_enabled("cpu"):
        return None
    return weights.packed(weight, *more)


def attend_to_any_shape() -> None:
    """Let attention on a GPU do without cuDNN's kernels, which Hopper GPUs prefer: a plan is made for each new shape,
    which takes tenths of a second, and the shapes of a pass depend on how much is masked."""
    torch.backends.cuda.enable_cudnn_sdp(False)


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
    return recompute_in_backward(lambda x: packed_linear(norm(x), weight, bias), x)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised in the dtype of the weight: under autocast queries and keys come in another.

        On a CPU `F.rms_norm` is thirteen operations. As the mean of x and -x is 0, a layer norm of both is the same in
        four.
        """
        same = x.to(self.weight.dtype)
        if torch.is_grad_enabled() or not may_look(x):
            return super().forward(same).to(x.dtype)
        width, eps = x.shape[-1], cast(float, self.eps)
        both = F.layer_norm(torch.cat((same, -same), dim=-1), (2 * width,), eps=eps)
        return (both[..., :width] * self.weight).to(x.dtype)


def rotary_of(angles: torch.Tensor, scale: float = 1.0) -> Rotary:
    """What `rotate` takes, for angles [B, 1, R, D / 2]. scale: of the result's length."""
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotary_table(rotary: Rotary) -> torch.Tensor:
    """What `rotary_at` looks up: [S, 2 * D], of the angles of S positions, those of one row."""
    return torch.cat(rotary, dim=-1)[0, 0]


def rotary_at(table: torch.Tensor, positions: torch.Tensor) -> Rotary:
    """The rows of a table [S, 2 * D], of the cosines and then the sines of S positions, for positions [B, R]."""
    cos, sin = F.embedding(positions, table)[:, None].chunk(2, dim=-1)
    return cos, sin


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Turn the halves of x [B, H, R, D] by angles: (a cos - b sin, b cos + a sin) for the halves a and b."""
    cos, sin = rotary
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return (x * cos + swapped * sin).to(x.dtype)
