"""The layers that choose their own CPU kernels: torch's own layers are the reference."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from diffusion.networks.layers import GroupNorm, Linear, Pointwise, linear
from diffusion.seeding import normal, stream


@pytest.mark.parametrize("shape", [(5, 32), (2, 3, 4, 32), (32,), (0, 32)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_linear_layer_is_torchs(shape, dtype):
    layer, x = Linear(32, 48).to(dtype), normal(shape, stream(0, "x")).to(dtype)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    with torch.no_grad():
        for bias in (layer.bias, None):
            expected = F.linear(x, layer.weight, bias)
            assert torch.allclose(linear(x, layer.weight, bias), expected, atol=tolerance)
        assert torch.equal(layer(x), linear(x, layer.weight, layer.bias))


def test_products_in_float32_are_as_exact_as_torchs_own():
    """Both kernels round to float32; neither is further from the exact product than its length allows."""
    x, weight = normal((64, 768), stream(1, "x")), normal((96, 768), stream(1, "w"))
    exact = x.double() @ weight.double().T
    with torch.no_grad():
        error = (linear(x, weight, None).double() - exact).abs().max()
    assert error < 768**0.5 * 2 * torch.finfo(torch.float32).eps * exact.abs().max()


def test_gradients_still_flow():
    layer = Linear(4, 3)
    layer(torch.ones(2, 4)).sum().backward()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, torch.full((3, 4), 2.0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("grad", [False, True])
def test_a_pointwise_convolution_is_torchs(layout, grad):
    layer = Pointwise(16, 24).to(memory_format=layout)
    x = normal((2, 16, 5, 7), stream(2, "x")).to(memory_format=layout)
    with torch.set_grad_enabled(grad):
        answer = layer(x)
    assert torch.allclose(answer, F.conv2d(x, layer.weight, layer.bias), atol=1e-5)
    assert answer.is_contiguous(memory_format=torch.channels_last) or layout is torch.contiguous_format


def test_bfloat16_is_normed_in_float32():
    layer = GroupNorm(8, 32)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x = normal((2, 32, 6, 6), stream(3, "x")).bfloat16().to(memory_format=torch.channels_last)
    for weights in (layer, layer.bfloat16()):
        answer = weights(x)
        assert answer.dtype == torch.bfloat16
        exact = F.group_norm(x.double(), 8, weights.weight.double(), weights.bias.double(), weights.eps)
        # Rounded once, at the end: half a unit in the last of eight places.
        assert bool(((answer.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all())
