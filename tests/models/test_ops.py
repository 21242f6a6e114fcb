"""The linear layer for small batches against `F.linear`."""

import pytest
import torch
import torch.nn.functional as F

from asarm.models.ops import small_batch_linear


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (1, 9), (3, 5), (4, 8), (2, 40), (2, 0)])
def test_few_rows_give_the_usual_product(shape, with_bias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, 24, generator=generator)
    weight = torch.randn(40, 24, generator=generator)
    bias = torch.randn(40, generator=generator) if with_bias else None
    with torch.inference_mode():
        torch.testing.assert_close(small_batch_linear(x, weight, bias), F.linear(x, weight, bias))


def test_bfloat16_is_left_to_its_library():
    x, weight = torch.randn(3, 24).bfloat16(), torch.randn(40, 24).bfloat16()
    with torch.inference_mode():
        assert torch.equal(small_batch_linear(x, weight), F.linear(x, weight))


def test_gradients_flow():
    weight = torch.randn(4, 3, requires_grad=True)
    small_batch_linear(torch.ones(2, 3), weight).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((4, 3), 2.0))
