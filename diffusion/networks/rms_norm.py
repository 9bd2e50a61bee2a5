"""Root-mean-square norm (Zhang and Sennrich 2019, arXiv:1910.07467), as T5 and the flow transformers have it."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension; the mean square is taken in float32, whatever x is."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim) in the weight's precision where that is half, else in x's."""
        x = x * torch.rsqrt(x.float().square().mean(dim=-1, keepdim=True) + self.eps)
        return x.to(self.weight.dtype) * self.weight if self.weight.dtype.itemsize == 2 else x * self.weight
