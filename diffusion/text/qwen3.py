"""Qwen3's layers (Yang et al. 2025, arXiv:2505.09388) under their published names, as a text tower that says nothing.

Grouped query heads (Ainslie et al. 2023, arXiv:2305.13245), rotary positions, root-mean-square norms of queries and keys.
A tower reads the states after some of the layers, so that the layers behind the last of them are never loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.attention import attention
from diffusion.networks.published import from_published
from diffusion.networks.rms_norm import RMSNorm

MAX_TOKENS = 512
"""Of a prompt with its template; what comes after them is cut."""
# The published template for one question of a user, with room for an answer; without thinking its thoughts are empty.
TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
NO_THOUGHTS = "<think>\n\n</think>\n\n"
FILLING = "<|endoftext|>"


@dataclass(frozen=True)
class Qwen3Config:
    """`config.json` of a Qwen3 model; the defaults are those of Qwen3-4B.

    Raises:
        ValueError: a setting that no published file has and that would change the result.
    """

    vocab_size: int = 151936
    hidden_size: int = 2560
    intermediate_size: int = 9728
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    hidden_act: str = "silu"
    attention_bias: bool = False
    use_sliding_window: bool = False
    rope_type: str = "default"

    def __post_init__(self) -> None:
        usual = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False, "rope_type": "default"}
        for name, value in usual.items():
            if getattr(self, name) != value:
                raise ValueError(f"Qwen3's {name} is {getattr(self, name)!r}; expected {value!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"Qwen3 has {self.num_attention_heads} heads of queries and {self.num_key_value_heads} of keys; expected a "
                "multiple"
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Qwen3Config":
        """Reads a published configuration, in whose newer form the rotation has a dictionary of its own."""
        rotation = config.get("rope_parameters") or config.get("rope_scaling") or {}
        return from_published(cls, {**config, **rotation})


class SelfAttention(nn.Module):
    """Causal attention; each head of keys and values serves several of queries."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        dim, head_dim = config.hidden_size, config.head_dim
        self.head_dim, self.group = head_dim, config.num_attention_heads // config.num_key_value_heads
        self.q_proj = nn.Linear(dim, config.num_attention_heads * head_dim, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(dim, config.num_key_value_heads * head_dim, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(config.num_attention_heads * head_dim, dim, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(head_dim, config.rms_norm_eps) for _ in range(2))

    def forward(self, x_BSD: Tensor, rotation: tuple[Tensor, Tensor], mask_SS: Tensor) -> Tensor:
        """(B, S, D), cosine and sine (S, head_dim) -> (B, S, D)."""
        query, key, value = (part(x_BSD).unflatten(-1, (-1, self.head_dim)) for part in (self.q_proj, self.k_proj, self.v_proj))
        query, key = (_turned(heads.transpose(1, 2), *rotation) for heads in (self.q_norm(query), self.k_norm(key)))
        key, value = (heads.repeat_interleave(self.group, dim=1) for heads in (key, value.transpose(1, 2)))
        return self.o_proj(attention(query, key, value, mask_SS).transpose(1, 2).flatten(2))


def _turned(x_BNSd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads turned by their positions; a number and the one half a head further are a pair."""
    first, second = x_BNSd.chunk(2, dim=-1)
    return x_BNSd * cos + torch.cat((-second, first), dim=-1) * sin


class GatedFeedForward(nn.Module):
    """W_down (SiLU(W_gate x) * W_up x) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(config.hidden_size, config.intermediate_size, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each normed before and residual."""

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2)
        )
        self.self_attn, self.mlp = SelfAttention(config), GatedFeedForward(config)

    def forward(self, x_BSD: Tensor, rotation: tuple[Tensor, Tensor], mask_SS: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        x = x_BSD + self.self_attn(self.input_layernorm(x_BSD), rotation, mask_SS)
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen3(nn.Module):
    """Token ids to the states after some of the layers, none of them normed at the end.

    Args:
        reads: how many layers the states have been through, in rising order, below the number of all layers; transformers'
            `hidden_states` of the same numbers. Only so many layers exist.

    Raises:
        ValueError: more layers than there are, or all of them, whose states transformers norms.
    """

    def __init__(self, config: Qwen3Config, reads: Sequence[int]) -> None:
        super().__init__()
        if not 0 < reads[-1] < config.num_hidden_layers:
            raise ValueError(f"Qwen3 is read after layer {reads[-1]}; expected 1 to {config.num_hidden_layers - 1}")
        self.config, self.reads = config, tuple(reads)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(reads[-1]))

    def forward(self, ids_BS: Tensor, num_attended: int | None = None) -> Tensor:
        """(B, S) int64 -> (B, S, len(reads) hidden_size), the layers' states side by side.

        num_attended: so many first tokens are attended to, and padding behind them attends to these alone; all by default.
        """
        x = self.embed_tokens(ids_BS)
        length = ids_BS.shape[1]
        rotation = self._rotation(length, x)
        mask = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        mask[:, num_attended:] &= num_attended is None
        states = []
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x, rotation, mask)
            if number in self.reads:
                states.append(x)
        return torch.cat(states, dim=-1)

    def _rotation(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine (S, head_dim) in the states' precision, of angles in float32."""
        dim = self.config.head_dim
        frequencies = 1 / self.config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angles = (torch.arange(length)[:, None].float() * frequencies).repeat(1, 2)
        return angles.cos().to(like), angles.sin().to(like)


class Qwen3Tower(nn.Module):
    """Qwen3 with its tokenizer: a prompt in the chat template to states, as long as the prompt is.

    Args:
        tokenizer: of the package `tokenizers`. thinks: whether the template leaves room for thoughts, as Z-Image has it, or
            says that there are none, as FLUX.2 klein has it. is_filled: whether prompts are filled up to MAX_TOKENS, and all
            of these read, as FLUX.2 klein has it.

    Raises:
        ValueError: prompts are to be filled up with a token that the tokenizer does not have.
    """

    def __init__(self, encoder: Qwen3, tokenizer: Any, *, thinks: bool = True, is_filled: bool = False) -> None:
        super().__init__()
        self.encoder, self.tokenizer, self.thinks, self.is_filled = encoder, tokenizer, thinks, is_filled
        self.filling = tokenizer.token_to_id(FILLING)
        if is_filled and self.filling is None:
            raise ValueError(f"the tokenizer lacks {FILLING}, by which prompts are filled up; copy tokenizer.json again")
        tokenizer.no_truncation()
        tokenizer.no_padding()

    def tokens(self, prompt: str) -> list[int]:
        """The ids of a prompt in the template, however many they are."""
        return cast(list[int], self.tokenizer.encode(TEMPLATE.format(prompt) + ("" if self.thinks else NO_THOUGHTS)).ids)

    def num_tokens(self, prompt: str) -> int:
        """How many rows of states it has: at most MAX_TOKENS, and so many where prompts are filled up."""
        return MAX_TOKENS if self.is_filled else min(len(self.tokens(prompt)), MAX_TOKENS)

    def forward(self, prompt: str) -> Tensor:
        """(1, S, D), S = `num_tokens`."""
        words = self.tokens(prompt)[:MAX_TOKENS]
        filling = [self.filling] * (MAX_TOKENS - len(words)) if self.is_filled else []
        ids = torch.tensor([[*words, *filling]], dtype=torch.int64)
        return self.encoder(ids.to(self.encoder.embed_tokens.weight.device), len(words))
