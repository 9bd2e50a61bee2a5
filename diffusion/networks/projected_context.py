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
    """

    keys_values: Tensor
    embedding: Tensor | None = None

    @classmethod
    def of(cls, layers: Sequence[Attention], context_BSD: Tensor, embedding: Tensor | None) -> "ProjectedContext":
        """The keys and values of these layers."""
        return cls(torch.cat([part for layer in layers for part in layer.key_value(context_BSD)], dim=-1), embedding)

    def layer_by_layer(self, layers: Sequence[Attention]) -> Iterator[KeyValue]:
        """The layers' keys and values, one pair after the other."""
        widths = [layer.to_k.out_features for layer in layers for _ in range(2)]
        parts = iter(self.keys_values.split(widths, dim=-1))
        return zip(parts, parts, strict=True)

    def packed(self) -> Tensor:
        """One tensor, so that whoever batches texts moves one: (B, S, K), or (B, S + 1, K) with the embedding as last row."""
        if self.embedding is None:
            return self.keys_values
        row = F.pad(self.embedding, (0, self.keys_values.shape[-1] - self.embedding.shape[-1]))
        return torch.cat([self.keys_values, row[:, None]], dim=1)

    @classmethod
    def unpacked(cls, rows: Tensor, *, embedding_dim: int) -> "ProjectedContext":
        """The inverse of `packed`; embedding_dim is 0 where there is no embedding."""
        if embedding_dim == 0:
            return cls(rows)
        return cls(rows[:, :-1], rows[:, -1, :embedding_dim])
