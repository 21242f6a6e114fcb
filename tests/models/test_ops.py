"""Linear layers with packed weights against `F.linear`."""

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from asarm.models import ops
from asarm.models.ops import RMSNorm, linear, linear_together, pack_weights, packed_linear

needs_packing = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")


@pytest.fixture
def packings(monkeypatch):
    """How often a weight was packed, small ones too."""
    packed, pack = [], torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(ops, "FEWEST_WEIGHTS", 0)

    def counted(weight):
        packed.append(weight)
        return pack(weight)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", counted)
    return packed


def packed_layer(inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs).to(dtype)
    pack_weights(layer)
    return layer


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3,), (2, 3), (1, 9), (3, 5), (4, 8), (2, 40), (2, 0), (7,), ()])
@pytest.mark.parametrize("rows", [0, ops.FEWEST_ROWS])
def test_packed_weights_give_the_usual_product(shape, dtype, rows, packings, monkeypatch):
    monkeypatch.setattr(ops, "FEWEST_ROWS", rows)
    layer = packed_layer(24, 40, dtype)
    x = torch.randn(*shape, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    with torch.inference_mode():
        for bias in (layer.bias, None):
            torch.testing.assert_close(packed_linear(x, layer.weight, bias), F.linear(x, layer.weight, bias))
    is_packed = x.numel() and (dtype == torch.bfloat16 or x.numel() >= 24 * rows)
    assert len(packings) == (1 if is_packed else 0)  # once for both products


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3,), (2, 5), (2, 0)])
@pytest.mark.parametrize("is_packed", [True, False])
def test_what_is_done_with_a_product(shape, dtype, is_packed, packings):
    layer = packed_layer(24, 40, dtype) if is_packed else nn.Linear(24, 40).to(dtype)
    x, other = torch.randn(*shape, 24).to(dtype), torch.randn(*shape, 40).to(dtype)
    with torch.inference_mode():
        product = F.linear(x, layer.weight, layer.bias)
        close = {torch.float32: {}, torch.bfloat16: {"atol": 0.03, "rtol": 0.02}}[dtype]
        torch.testing.assert_close(linear(layer, x, silu=True), F.silu(product), **close)
        torch.testing.assert_close(linear(layer, x, times=other), product * other, **close)
        torch.testing.assert_close(linear(layer, x, plus=other), product + other, **close)
        torch.testing.assert_close(linear(layer, x), product, **close)
        doubled = nn.Sequential(layer, nn.Identity())  # no plain layer
        torch.testing.assert_close(linear(doubled, x, plus=other), product + other, **close)
    is_worth_it = x.numel() and (dtype == torch.bfloat16 or x.numel() >= 24 * ops.FEWEST_ROWS)
    assert len(packings) == (1 if is_packed and is_worth_it else 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24,), (2, 3, 24), (1, 200, 576), (2, 0, 24)])
def test_root_mean_square_norms(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(some, generator=generator).to(dtype) for some in (shape, shape[-1:]))
    x = 5 * x + 2  # the mean is not 0
    norm = RMSNorm(shape[-1], eps=1e-5).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(weight)
    expected = F.rms_norm(x.double(), shape[-1:], weight.double(), 1e-5).to(dtype)
    tolerance = {} if dtype == torch.float32 else {"rtol": 2**-6, "atol": 1e-6}  # rounded twice, as by `transformers`
    torch.testing.assert_close(norm(x), expected, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), expected, **tolerance)
        assert (norm(torch.zeros_like(x)).abs() < 1e-6).all()


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_layers_side_by_side(dtype, has_bias, packings):
    layers = nn.ModuleList(nn.Linear(24, outputs, bias=has_bias) for outputs in (40, 8, 16)).to(dtype)
    pack_weights(layers)
    x = torch.randn(2, 5, 24).to(dtype)
    with torch.no_grad():
        for _ in range(2):  # packed again where any of them has changed
            layers[1].weight.add_(1.0)
            for _ in range(2):
                together = linear_together(layers, x)
                torch.testing.assert_close(together, torch.cat([layer(x) for layer in layers], dim=-1))
        assert len(packings) == 2
        doubled = nn.Sequential(layers[1], nn.Identity())  # no plain layer
        assert linear_together([layers[0], doubled], x) is None
        assert linear_together([nn.Linear(24, 8).to(dtype)], x) is None  # not packed
    assert linear_together(layers, x) is None  # nothing is packed for training


@needs_packing
@pytest.mark.parametrize(("dtype", "count"), [(torch.float32, 0), (torch.bfloat16, 1)])
def test_small_weights_are_packed_in_bfloat16_only(dtype, count):
    packed = len(ops._packed_weights)
    layer = packed_layer(24, 40, dtype)
    with torch.inference_mode():
        packed_linear(torch.randn(8, 24).to(dtype), layer.weight)
    parts = list(ops._packed_weights.values())[packed:]
    assert sum(len(weights.parts) for weights in parts) == count


@needs_packing
def test_parts_of_a_weight_are_packed_apart(packings):
    layer = packed_layer(8, 12)
    x = torch.randn(4, 8)
    with torch.no_grad():
        for part in (layer.weight[:4], layer.weight[4:], layer.weight.unflatten(0, (3, 4)).flatten(0, 1), layer.weight):
            torch.testing.assert_close(packed_linear(x, part), F.linear(x, part))
        square = layer.weight[:8]
        torch.testing.assert_close(packed_linear(x, square.t()), x @ square)
    assert len(packings) == 4  # the third and the fourth are the same


@needs_packing
@pytest.mark.parametrize("with_inference", [True, False])
def test_weights_that_change_are_packed_again(with_inference, packings):
    layer = packed_layer(8, 12)
    x = torch.randn(4, 8)
    mode = torch.inference_mode if with_inference else torch.no_grad

    def check() -> None:
        with mode():
            torch.testing.assert_close(packed_linear(x, layer.weight), F.linear(x, layer.weight))

    check()
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    packed_linear(x, layer.weight).sum().backward()
    optimizer.step()
    check()
    layer.load_state_dict({"weight": torch.randn(12, 8), "bias": torch.randn(12)})
    check()
    layer.to(torch.bfloat16).to(torch.float32)
    check()
    assert len(packings) >= 3


@needs_packing
def test_packed_weights_go_with_their_model(packings):
    before = len(ops._packed_weights)
    layer = packed_layer(8, 12)
    assert len(ops._packed_weights) == before + 1
    with torch.no_grad():
        packed_linear(torch.randn(4, 8), layer.weight)
    assert len(packings) == 1
    packings.clear()  # it has the weight
    del layer
    gc.collect()
    assert len(ops._packed_weights) == before


@needs_packing
@pytest.mark.parametrize("with_inference", [True, False])
def test_an_address_that_weights_have_left_is_that_of_others(with_inference, packings):
    """Another tensor may come to lie where a parameter was: without a count of changes, or with its own."""
    memory = np.ones((12, 8), np.float32)
    layer = nn.Linear(8, 12)
    layer.weight = nn.Parameter(torch.from_numpy(memory))
    pack_weights(layer)
    layer.weight.data = torch.zeros(12, 8)  # as `layer.to(...)` does
    with torch.inference_mode() if with_inference else torch.no_grad():
        other = torch.from_numpy(memory)
        for _ in range(2):
            x = torch.randn(4, 8)
            torch.testing.assert_close(packed_linear(x, other), F.linear(x, other))
            memory *= 2  # not counted
    assert not packings


@needs_packing
def test_weights_changed_through_data_are_packed_again_when_told(packings):
    layer = packed_layer(8, 12)
    x = torch.randn(4, 8)
    with torch.no_grad():
        packed_linear(x, layer.weight)
        layer.weight.data += 1
        pack_weights(layer)
        torch.testing.assert_close(packed_linear(x, layer.weight), F.linear(x, layer.weight))
    assert len(packings) == 2


def test_other_weights_are_not_packed(packings):
    x, weight = torch.randn(4, 24), torch.randn(40, 24)
    with torch.inference_mode():
        assert torch.equal(packed_linear(x, weight), F.linear(x, weight))
        with torch.autocast("cpu", torch.bfloat16):
            layer = packed_layer(24, 40)
            assert packed_linear(x, layer.weight).dtype == torch.bfloat16
        with_inference = packed_layer(24, 40)  # which torch does not track
        assert torch.equal(packed_linear(x, with_inference.weight), F.linear(x, with_inference.weight))
    assert not packings


def test_gradients_flow():
    layer = packed_layer(3, 4)
    packed_linear(torch.ones(2, 3), layer.weight).sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.full((4, 3), 2.0))
