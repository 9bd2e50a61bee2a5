"""Attention and the spatial transformer block of latent diffusion (Rombach et al. 2022, arXiv:2112.10752, section 3.3)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.layers import GroupNorm, Linear, Pointwise
from diffusion.networks.multi_view import NUM_POSITION, Views

KeyValue = tuple[Tensor, Tensor]
"""What a layer attends to, (B, S, D) each, its heads side by side."""

# softmax(QK^T)V written out beats the fused kernel on CPU while the score matrix is small.
WRITTEN_OUT_TOKENS = 256


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V for (B, N, L, d) and (B, N, S, d) tensors (Vaswani et al. 2017, eq. 1).

    Args:
        mask: bool, broadcast over (B, N, L, S): what may be attended to; None for all of it.
    """
    if query.device.type == "cpu" and max(query.shape[2], key.shape[2]) <= WRITTEN_OUT_TOKENS:
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class Attention(nn.Module):
    """Multi-head attention over the tokens themselves, or over a context of width `context_dim`."""

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"attention width {dim} is not divisible by its {num_heads} heads")
        self.num_heads = num_heads
        self.to_q = Linear(dim, dim, bias=False)
        self.to_k = Linear(context_dim or dim, dim, bias=False)
        self.to_v = Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.ModuleList([Linear(dim, dim), nn.Identity()])

    def split(self, tokens: Tensor) -> Tensor:
        """(B, L, N*d) -> (B, N, L, d)."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def key_value(self, context_BSC: Tensor) -> KeyValue:
        """(B, S, context_dim) -> keys and values (B, S, D); of a text they are the same at every step of a sampler."""
        return self.to_k(context_BSC), self.to_v(context_BSC)

    def forward(self, tokens_BLD: Tensor, key_value: KeyValue | None = None) -> Tensor:
        """(B, L, D) and, unless the tokens attend to themselves, keys and values (B, S, D) -> (B, L, D)."""
        key, value = self.key_value(tokens_BLD) if key_value is None else key_value
        out = attention(self.split(self.to_q(tokens_BLD)), self.split(key), self.split(value))
        return self.to_out[0](out.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """x W1 * gelu(x W2) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(dim, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., inner)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU and a linear layer, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([GEGLU(dim, 4 * dim), nn.Identity(), Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention on the text, feed-forward; each pre-normalised and residual.

    Self-attention runs over the tokens of a row, or over those of all views of a group (2308.16512 section 3.1).
    """

    def __init__(self, dim: int, num_heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn1 = Attention(dim, num_heads)
        self.attn2 = Attention(dim, num_heads, context_dim)
        self.ff = FeedForward(dim)

    def forward(self, tokens_BLD: Tensor, text: KeyValue, joined: Views | None = None) -> Tensor:
        """(B, L, D), `attn2`'s keys and values (B, S, D) -> (B, L, D). joined: groups that attend to each other."""
        normed = self.norm1(tokens_BLD)
        attended = self.attn1(normed) if joined is None else self.attn1(joined.group(normed)).reshape(normed.shape)
        tokens = tokens_BLD + attended
        tokens = tokens + self.attn2(self.norm2(tokens), text)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """A feature map as tokens through `depth` transformer blocks, with a residual around the whole.

    joins_views: self-attention runs over the views of a group. takes_positions: tokens are told where they look.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        context_dim: int,
        *,
        depth: int,
        groups: int,
        use_linear_projection: bool,
        joins_views: bool = False,
        takes_positions: bool = False,
    ) -> None:
        super().__init__()
        self.use_linear_projection, self.joins_views = use_linear_projection, joins_views
        # 1e-6 here and 1e-5 in the residual blocks: as published, and invisible at fp32 tolerances if confused.
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        project = (lambda: Linear(channels, channels)) if use_linear_projection else (lambda: Pointwise(channels, channels))
        self.proj_in, self.proj_out = project(), project()
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, num_heads, context_dim) for _ in range(depth))
        self.to_position = Linear(NUM_POSITION, channels) if takes_positions else None

    def forward(self, x_BCHW: Tensor, text: Iterator[KeyValue], views: Views | None = None) -> Tensor:
        """(B, C, H, W), of which each block takes the next keys and values (B, S, C) -> (B, C, H, W)."""
        height, width = x_BCHW.shape[-2:]
        h = self.norm(x_BCHW)
        if self.to_position is not None and views is not None:
            h = views.with_positions(h, self.to_position)
        joined = views if self.joins_views and views is not None and views.num_views > 1 else None
        if self.use_linear_projection:
            h = self.proj_in(h.flatten(2).transpose(1, 2))
        else:
            h = self.proj_in(h).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, next(text), joined)
        if self.use_linear_projection:
            h = self.proj_out(h).transpose(1, 2).unflatten(-1, (height, width))
        else:
            h = self.proj_out(h.transpose(1, 2).unflatten(-1, (height, width)))
        return x_BCHW + h


class AttentionPooling(nn.Module):
    """One query, the mean token, attends over all tokens: the pooled text of DeepFloyd-style UNets.

    The published layer scales queries and keys by d^-1/4 each, which is `attention`'s d^-1/2.
    """

    def __init__(self, num_heads: int, dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.positional_embedding = nn.Parameter(torch.zeros(1, dim))
        self.k_proj, self.q_proj, self.v_proj = Linear(dim, dim), Linear(dim, dim), Linear(dim, dim)

    def forward(self, tokens_BSD: Tensor) -> Tensor:
        """(B, S, D) -> (B, D)."""
        pooled = tokens_BSD.mean(dim=1, keepdim=True) + self.positional_embedding
        tokens = torch.cat([pooled, tokens_BSD], dim=1)
        query, key, value = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, x in ((self.q_proj, pooled), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        return attention(query, key, value).transpose(1, 2).flatten(1)
