"""Layers with a low-rank side path, in copies of a network that share its weights.

A LoRA (2106.09685 eq. 3) adds B A to a layer's matrix W. Here the sum is never formed: y = W x + B (A x). Many adapters then
stand on one W, each in a few megabytes.
"""

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.layers import Linear, linear

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Factors:
    """A and B of a layer. down: (r, I), or (r, I, kh, kw) of a convolution. up: (O, r), with every scale in it."""

    down: Tensor
    up: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.down.nbytes + self.up.nbytes


class SidePath(nn.Module):
    """x -> B A x."""

    down: Tensor
    up: Tensor

    def __init__(self, factors: Factors) -> None:
        super().__init__()
        self.register_buffer("down", factors.down)
        self.register_buffer("up", factors.up)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(linear(x, self.down, None), self.up, None)


class LowRankLinear(Linear):
    """A linear layer with a side path."""

    side_path: SidePath

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return super().forward(input).add_(self.side_path(input))


class LowRankConv2d(nn.Conv2d):
    """A convolution with a side path: one of r channels with its own window, stride and padding, then one of 1x1."""

    side_path: SidePath

    def forward(self, input: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, O, H', W')."""
        inner = self._conv_forward(input, self.side_path.down, None)
        return super().forward(input).add_(F.conv2d(inner, self.side_path.up[:, :, None, None]))


KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: LowRankLinear, nn.Conv2d: LowRankConv2d}
"""Layers that take a side path. An `nn.MultiheadAttention` takes one too, for its `in_proj_weight`: see `causal_attention`."""


def takes_side_path(network: nn.Module, parameter: str) -> bool:
    """Whether the layer that holds a parameter adds a side path to that one."""
    path, _, name = parameter.rpartition(".")
    layer = network.get_submodule(path)
    if isinstance(layer, nn.MultiheadAttention):
        return name == "in_proj_weight"
    return name == "weight" and isinstance(layer, tuple(KINDS))


def add_side_path(network: nn.Module, parameter: str, factors: Factors) -> None:
    """Give the layer of a parameter its side path; for a `sharing_copy`, whose layers nobody else has."""
    layer = network.get_submodule(parameter.rpartition(".")[0])
    layer.side_path = SidePath(factors)
    for kind, with_path in KINDS.items():
        if isinstance(layer, kind):
            layer.__class__ = with_path


def replace_parameter(network: nn.Module, parameter: str, tensor: Tensor) -> None:
    """Give a `sharing_copy` a parameter of its own."""
    path, _, name = parameter.rpartition(".")
    setattr(network.get_submodule(path), name, nn.Parameter(tensor, requires_grad=False))


def sharing_copy(network: Network) -> Network:
    """The same network with modules of its own and the same tensors: what is put into it does not reach the other one."""
    tensors = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in tensors})


def stacked(parts: list[tuple[int, Factors]], *, num_rows: int) -> Factors:
    """Several changes of one matrix as one of their summed rank.

    Args:
        parts: (first row, factors) of the rows that each changes, such as the queries of a fused projection. num_rows: O.
    """
    if len(parts) == 1 and len(parts[0][1].up) == num_rows:
        return parts[0][1]
    up = parts[0][1].up.new_zeros(num_rows, sum(factors.up.shape[1] for _, factors in parts))
    column = 0
    for first, factors in parts:
        rows, rank = factors.up.shape
        up[first : first + rows, column : column + rank] = factors.up
        column += rank
    return Factors(torch.cat([factors.down for _, factors in parts]), up)
