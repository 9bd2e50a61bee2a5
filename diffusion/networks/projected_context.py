"""A text as the layers of a UNet read it: computed once a prompt, read at every step of a sampler.

Keys and values of cross-attention depend on the text and the weights alone, and so does what the text adds to the
embedding of the timestep.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.attention import Attention, KeyValue, TransformerBlock


def cross_attentions(network: nn.Module) -> tuple[Attention, ...]:
    """The layers that attend to the text, in the order in which the network runs them."""
    return tuple(module.attn2 for module in network.modules() if isinstance(module, TransformerBlock))


@dataclass(frozen=True, eq=False)
class ProjectedContext:
    """What a network made of B texts.

    Args:
        keys_values: (B, S, K) of all cross-attention layers side by side, in the order in which they run; K is 2 D summed
            over the layers.
        embedding: (B, temb_dim), added to the timestep's embedding; None where the network adds nothing.
        scale: (B, C), added to the timestep's sinusoids by networks that are told their guidance scale; None elsewhere.
    """

    keys_values: Tensor
    embedding: Tensor | None = None
    scale: Tensor | None = None

    @classmethod
    def of(
        cls, layers: Sequence[Attention], context_BSD: Tensor, embedding: Tensor | None, scale: Tensor | None = None
    ) -> "ProjectedContext":
        """The keys and values of these layers."""
        return cls(torch.cat([part for layer in layers for part in layer.key_value(context_BSD)], dim=-1), embedding, scale)

    def layer_by_layer(self, layers: Sequence[Attention]) -> Iterator[KeyValue]:
        """The layers' keys and values, one pair after the other."""
        widths = [layer.to_k.out_features for layer in layers for _ in range(2)]
        parts = iter(self.keys_values.split(widths, dim=-1))
        return zip(parts, parts, strict=True)

    def packed(self) -> Tensor:
        """One tensor, so that whoever batches texts moves one: (B, S, K), with a row more for the embedding and the scale."""
        width = self.keys_values.shape[-1]
        rows = [F.pad(part, (0, width - part.shape[-1]))[:, None] for part in (self.embedding, self.scale) if part is not None]
        return torch.cat([self.keys_values, *rows], dim=1) if rows else self.keys_values

    @classmethod
    def unpacked(cls, rows: Tensor, *, embedding_dim: int, scale_dim: int = 0) -> "ProjectedContext":
        """The inverse of `packed`; the dimensions are 0 where there is no such part."""
        parts: dict[str, Tensor] = {}
        for name, dim in (("scale", scale_dim), ("embedding", embedding_dim)):
            if dim:
                parts[name], rows = rows[:, -1, :dim], rows[:, :-1]
        return cls(rows, **parts)
