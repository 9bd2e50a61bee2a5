"""T5's encoder (Raffel et al. 2019, arXiv:1910.10683) under its published names, the third text tower of Stable Diffusion 3."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.published import from_published
from diffusion.networks.rms_norm import RMSNorm

T5_ROWS = 256
"""Rows of T5 that Stable Diffusion 3 attends to, also where they are zeros."""


@dataclass(frozen=True)
class T5Config:
    """`config.json` of a T5EncoderModel; the defaults are those of T5 1.1 XXL.

    Raises:
        ValueError: a feed-forward other than "gated-gelu" or "relu".
    """

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"

    def __post_init__(self) -> None:
        if self.feed_forward_proj not in ("gated-gelu", "relu"):
            raise ValueError(f"T5's feed_forward_proj is {self.feed_forward_proj!r}; expected 'gated-gelu' or 'relu'")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "T5Config":
        """Reads a published configuration."""
        return from_published(cls, config)


class SelfAttention(nn.Module):
    """Attention with a bias by distance instead of positions; scores are not scaled."""

    def __init__(self, config: T5Config, *, has_bias: bool) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def forward(self, x_BSD: Tensor, bias_1HSS: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        query, key, value = (
            part(x_BSD).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        scores = query @ key.transpose(-1, -2) + bias_1HSS
        return self.o((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class DenseReluDense(nn.Module):
    """The feed-forward, gated by GELU (tanh form), or plain with ReLU."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.is_gated = config.feed_forward_proj == "gated-gelu"
        if self.is_gated:
            self.wi_0, self.wi_1 = (nn.Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        if self.is_gated:
            return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))
        return self.wo(F.relu(self.wi(x)))


class Sublayer(nn.Module):
    """A norm and what follows it, under the published name of that."""

    def __init__(self, config: T5Config, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.add_module(name, inner)


class Block(nn.Module):
    """Self-attention and feed-forward, each normed before and residual."""

    def __init__(self, config: T5Config, *, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList(
            [
                Sublayer(config, "SelfAttention", SelfAttention(config, has_bias=has_bias)),
                Sublayer(config, "DenseReluDense", DenseReluDense(config)),
            ]
        )

    def forward(self, x_BSD: Tensor, bias_1HSS: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        attend, feed = cast(list[Any], self.layer)
        x = x_BSD + attend.SelfAttention(attend.layer_norm(x_BSD), bias_1HSS)
        return x + feed.DenseReluDense(feed.layer_norm(x))


class Encoder(nn.Module):
    """The blocks and the last norm."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(config, has_bias=i == 0) for i in range(config.num_layers))
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)


class T5Encoder(nn.Module):
    """Token ids to states; every token attends to every other, padding included, as Stable Diffusion 3 reads it."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = Encoder(config)

    def forward(self, ids_BS: Tensor) -> Tensor:
        """(B, S) int64 -> (B, S, d_model) after the last norm."""
        x = self.shared(ids_BS)
        bias = self._bias(ids_BS.shape[1], ids_BS.device)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)

    def _bias(self, length: int, device: torch.device) -> Tensor:
        """(1, heads, S, S): one number a head for each range of distances between two tokens, the first block's."""
        place = torch.arange(length, device=device)
        config = self.config
        buckets = distance_buckets(
            place[None] - place[:, None],
            num_buckets=config.relative_attention_num_buckets,
            max_distance=config.relative_attention_max_distance,
        )
        first = cast(Any, self.encoder.block[0])
        return first.layer[0].SelfAttention.relative_attention_bias(buckets).permute(2, 0, 1)[None]


def distance_buckets(distance: Tensor, *, num_buckets: int, max_distance: int) -> Tensor:
    """The range that a distance (key minus query) falls into: single ones near by, growing ones up to max_distance.

    Half of the ranges are for keys after the query (1910.10683 section 2.1 and its code).
    """
    half = num_buckets // 2
    exact = half // 2
    far = torch.log(distance.abs().clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    bucket = torch.where(distance.abs() < exact, distance.abs(), (exact + far.long()).clamp(max=half - 1))
    return bucket + (distance > 0).long() * half


class T5Tower(nn.Module):
    """T5's encoder with its tokenizer.

    Args:
        tokenizer: of the package `tokenizers`. length: rows of text a prompt; longer ones are cut before the end token,
            shorter ones filled up with the padding token.
    """

    def __init__(self, encoder: T5Encoder, tokenizer: Any, *, length: int = T5_ROWS) -> None:
        super().__init__()
        self.encoder, self.length, self.tokenizer = encoder, length, tokenizer
        pad = tokenizer.token_to_id("<pad>")
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length, pad_id=0 if pad is None else pad, pad_token="<pad>")

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """(B, length) int64."""
        return torch.tensor([encoding.ids for encoding in self.tokenizer.encode_batch(list(prompts))], dtype=torch.int64)

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """(B, length, d_model)."""
        return self.encoder(self.ids(prompts).to(self.encoder.shared.weight.device))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder with `tokenizer.json`, of the package `tokenizers`.

    Raises:
        ValueError: there is no tokenizer.json, or it is damaged.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.exists():
        raise ValueError(f"{path.name} is missing; save the tokenizer in its newer form, with tokenizer.json")
    try:
        return Tokenizer.from_file(str(path))
    # What the package raises has no class of its own.
    except Exception as error:
        raise ValueError(f"{path.name} is no tokenizer ({error}); copy the folder again") from None
