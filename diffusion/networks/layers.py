"""Layers whose CPU kernels torch does not choose well by itself, and the memory layout of convolutional networks."""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Module = TypeVar("Module", bound=nn.Module)

_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def channels_last(module: Module) -> Module:
    """The module with its weights laid out channels last, in which CPU and GPU convolutions in bfloat16 are fastest."""
    # torch's own stubs leave this overload out.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, by oneDNN where torch would take MKL, whose products in float32 take over twice as long on AMD's processors.

    Args:
        x: (..., I). weight: (O, I). bias: (O,) or None.

    Returns:
        (..., O). Where a gradient may be asked for, on other devices and in other precisions it is `F.linear` itself.
    """
    if _HAS_ONEDNN and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_grad_enabled():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """A linear layer, see `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(input, self.weight, self.bias)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, which torch runs on one thread of a CPU through a copy and MKL; see `linear`."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H, W)."""
        if input.device.type != "cpu" or torch.is_grad_enabled():
            return super().forward(input)
        return linear(input.movedim(1, -1), self.weight.flatten(1), self.bias).movedim(-1, 1)


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu and He 2018, arXiv:1803.08494); half precision on a CPU is normed in float32.

    torch's own kernel for bfloat16 takes 3 to 7 times as long there where channels lie last.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...) of the same precision."""
        if input.dtype.itemsize == 2 and input.device.type == "cpu":
            normed = F.group_norm(input.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
            return normed.to(input.dtype)
        return super().forward(input)
