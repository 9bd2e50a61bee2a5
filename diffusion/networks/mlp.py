"""A small network for points: residual layers, each told the time."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.unet import TimestepEmbedding, timestep_embedding


@dataclass(frozen=True)
class MLPConfig:
    """Sizes of an `MLP`. num_classes None: without labels."""

    in_dim: int = 2
    hidden: int = 128
    out_dim: int = 2
    layers: int = 3
    num_classes: int | None = None

    def __post_init__(self) -> None:
        for name in ("in_dim", "hidden", "out_dim", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least 1")

    @property
    def shape(self) -> tuple[int, ...]:
        """(D,) of one item."""
        return (self.in_dim,)


class MLP(nn.Module):
    """f(x, t, label) for points x; SiLU throughout."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, *, layers: int = 3, num_classes: int | None = None) -> None:
        super().__init__()
        self.hidden, self.num_classes = hidden, num_classes
        self.time_embedding = TimestepEmbedding(hidden, hidden)
        if num_classes is not None:
            self.class_embedding = nn.Embedding(num_classes + 1, hidden)
        self.first = nn.Linear(in_dim, hidden)
        self.inner = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers))
        self.last = nn.Linear(hidden, out_dim)

    def forward(self, x: Tensor, t: Tensor, *, labels: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """(B, in_dim), times (B,) in the units of 0..999, labels (B,) with num_classes for "none" -> (B, out_dim).

        Raises:
            ValueError: labels for a network without classes, or a text context.
        """
        if context is not None or (labels is not None and self.num_classes is None):
            raise ValueError("this MLP was given a condition it has no weights for; build it with num_classes, without text")
        sinusoids = timestep_embedding(t, self.hidden + self.hidden % 2, flip_sin_to_cos=True, freq_shift=0)
        told = self.time_embedding(sinusoids[:, : self.hidden].to(x.dtype))
        if self.num_classes is not None:
            told = told + self.class_embedding(torch.full_like(t, self.num_classes).long() if labels is None else labels)
        h = self.first(x)
        for layer in self.inner:
            h = h + layer(F.silu(h + told))
        return self.last(F.silu(h))
