"""The joint transformer of Stable Diffusion 3 and 3.5 (MM-DiT; Esser et al. 2024, arXiv:2403.03206 section 4).

Patches of the picture and rows of the text have weights of their own and one attention over both, all of it: padded rows of
text are attended to, and nothing is masked. Its configuration is the `transformer/config.json` of the published folders.
Queries, keys and values of a stream are one matrix here.

Shapes: B rows, L patches, S rows of text, D = heads x head_dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.attention import attention
from diffusion.networks.layers import Linear
from diffusion.networks.multi_view import MultiViewConfig
from diffusion.networks.projected_context import ProjectedContext
from diffusion.networks.published import from_published
from diffusion.networks.rms_norm import RMSNorm
from diffusion.networks.rotary import rotated
from diffusion.networks.unet import TimestepEmbedding, timestep_embedding

NORM_EPS = 1e-6
TIME_DIM = 256


@dataclass(frozen=True)
class JointTransformerConfig:
    """`transformer/config.json` of an SD3Transformer2DModel; the defaults are Stable Diffusion 3's (medium).

    Args:
        sample_size: side of the latents of its own pictures.
        joint_attention_dim: width of the text that it reads. caption_projection_dim: of the text within, as wide as D.
        pooled_projection_dim: width of the pooled text.
        pos_embed_max_size: side, in patches, of the table of positions; pictures take its middle.
        dual_attention_layers: blocks with a second attention, over the patches alone (3.5-medium's first 13).
        qk_norm: "rms_norm" over each head's queries and keys (3.5), or None.

    Raises:
        ValueError: a setting that no published file has and that would change the result.
    """

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 24
    attention_head_dim: int = 64
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1536
    pooled_projection_dim: int = 2048
    out_channels: int = 16
    pos_embed_max_size: int = 192
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None

    def __post_init__(self) -> None:
        if self.caption_projection_dim != self.inner_dim:
            raise ValueError(
                f"caption_projection_dim is {self.caption_projection_dim}; expected num_attention_heads x attention_head_dim, "
                f"{self.inner_dim}"
            )
        if self.qk_norm not in (None, "rms_norm"):
            raise ValueError(f"qk_norm is {self.qk_norm!r}; expected null or 'rms_norm'")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "JointTransformerConfig":
        """Reads a published configuration, where null is the published class's default."""
        published = {"num_layers": 18, "num_attention_heads": 18, "caption_projection_dim": 1152, "pos_embed_max_size": 96}
        return from_published(cls, published | {name: value for name, value in config.items() if value is not None})

    @property
    def inner_dim(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def max_patches(self) -> int:
        """Along a side of a picture."""
        return self.pos_embed_max_size

    @property
    def num_classes(self) -> int | None:
        """None: it knows no labels."""
        return None

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, h, w) of the latents of one picture of its own size."""
        return (self.in_channels, self.sample_size, self.sample_size)

    @property
    def multi_view(self) -> MultiViewConfig | None:
        """None: it takes no cameras."""
        return None


class JointAttention(nn.Module):
    """Attention over patches and text side by side, each with its own projections; over patches alone without text.

    Args:
        config: widths and heads; another family's with fields of these names will do.
        reads_text: whether there is a text. answers_text: whether the text goes on afterwards.
        bias: of all projections. norm: of queries and keys, where the configuration has one.
    """

    def __init__(
        self,
        config: Any,
        *,
        reads_text: bool,
        answers_text: bool = False,
        bias: bool = True,
        norm: Callable[[int, float], nn.Module] = RMSNorm,
    ) -> None:
        super().__init__()
        dim, head_dim = config.inner_dim, config.attention_head_dim
        self.num_heads = config.num_attention_heads
        self.to_qkv = Linear(dim, 3 * dim, bias=bias)
        self.to_out = nn.ModuleList([Linear(dim, dim, bias=bias)])
        if reads_text:
            self.add_qkv_proj = Linear(dim, 3 * dim, bias=bias)
        if answers_text:
            self.to_add_out = Linear(dim, dim, bias=bias)
        if config.qk_norm:
            self.norm_q, self.norm_k = norm(head_dim, NORM_EPS), norm(head_dim, NORM_EPS)
            if reads_text:
                self.norm_added_q, self.norm_added_k = norm(head_dim, NORM_EPS), norm(head_dim, NORM_EPS)

    def forward(
        self, x_BLD: Tensor, text_BSD: Tensor | None = None, rotations: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) and (B, S, D) -> the same; None in the place of a text that does not go on.

        rotations: of queries and keys by their positions, (1, L + S, head_dim / 2, 2), patches first; None for none.
        """
        query, key, value = self._heads(self.to_qkv(x_BLD), "norm_q", "norm_k")
        if text_BSD is not None:
            added = self._heads(self.add_qkv_proj(text_BSD), "norm_added_q", "norm_added_k")
            query, key, value = (torch.cat(pair, dim=2) for pair in zip((query, key, value), added, strict=True))
        if rotations is not None:
            query, key = rotated(query, rotations), rotated(key, rotations)
        out = attention(query, key, value).transpose(1, 2).flatten(2)
        patches, text = out[:, : x_BLD.shape[1]], out[:, x_BLD.shape[1] :]
        return self.to_out[0](patches), self.to_add_out(text) if hasattr(self, "to_add_out") else None

    def _heads(self, qkv: Tensor, norm_q: str, norm_k: str) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, 3 D) -> three (B, heads, L, head_dim), queries and keys normed where the configuration says so."""
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        if hasattr(self, norm_q):
            query, key = getattr(self, norm_q)(query), getattr(self, norm_k)(key)
        return query, key, value


class Modulation(nn.Module):
    """The timestep as shifts, scales and gates (adaptive layer norm; Peebles and Xie 2022, arXiv:2212.09748)."""

    def __init__(self, dim: int, num: int, *, bias: bool = True) -> None:
        super().__init__()
        self.num = num
        self.linear = Linear(dim, num * dim, bias=bias)

    def forward(self, temb_BD: Tensor) -> tuple[Tensor, ...]:
        """(B, D), through SiLU already -> `num` parts (B, 1, D)."""
        return self.linear(temb_BD)[:, None].chunk(self.num, dim=-1)


def modulated(x_BLD: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift."""
    return F.layer_norm(x_BLD, x_BLD.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class Gelu(nn.Module):
    """A linear layer and GELU in its tanh form."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(dim, inner)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., inner)."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Two linear layers with GELU between, the inner one four times as wide."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.ModuleList([Gelu(dim, 4 * dim), nn.Identity(), Linear(4 * dim, dim)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        return self.net[2](self.net[0](x))


class JointBlock(nn.Module):
    """Joint attention and feed-forward of both streams, modulated by the timestep; of the last block the text ends."""

    def __init__(self, config: JointTransformerConfig, *, is_last: bool, is_dual: bool) -> None:
        super().__init__()
        dim = config.inner_dim
        self.norm1 = Modulation(dim, 9 if is_dual else 6)
        self.norm1_context = Modulation(dim, 2 if is_last else 6)
        self.attn = JointAttention(config, reads_text=True, answers_text=not is_last)
        if is_dual:
            self.attn2 = JointAttention(config, reads_text=False)
        self.ff = FeedForward(dim)
        if not is_last:
            self.ff_context = FeedForward(dim)

    def forward(self, x_BLD: Tensor, text_BSD: Tensor, temb_BD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D), (B, S, D), (B, D) through SiLU -> the two streams; the last block's text is the given one."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff, *second = self.norm1(temb_BD)
        shift_text, scale_text, *of_text = self._text_shift_and_scale(temb_BD)
        out, text_out = self.attn(modulated(x_BLD, shift, scale), modulated(text_BSD, shift_text, scale_text))
        beside = None if not second else self.attn2(modulated(x_BLD, second[0], second[1]))[0]
        x = x_BLD + gate * out
        if beside is not None:
            x = x + second[2] * beside
        x = x + gate_ff * self.ff(modulated(x, shift_ff, scale_ff))
        if text_out is None:
            return x, text_BSD
        gate_text, shift_ff, scale_ff, gate_ff = of_text
        text = text_BSD + gate_text * text_out
        return x, text + gate_ff * self.ff_context(modulated(text, shift_ff, scale_ff))

    def _text_shift_and_scale(self, temb_BD: Tensor) -> tuple[Tensor, ...]:
        """Shift before scale; the last block's norm has them the other way round, as the network's last norm."""
        parts = self.norm1_context(temb_BD)
        return parts if len(parts) > 2 else parts[::-1]


class PatchEmbedding(nn.Module):
    """Patches of the latents, and a table of positions of which a picture takes the middle."""

    pos_embed: Tensor

    def __init__(self, config: JointTransformerConfig) -> None:
        super().__init__()
        patch, side = config.patch_size, config.pos_embed_max_size
        self.side = side
        self.proj = nn.Conv2d(config.in_channels, config.inner_dim, patch, stride=patch)
        self.register_buffer("pos_embed", torch.zeros(1, side * side, config.inner_dim))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, L, D).

        Raises:
            ValueError: more patches along a side than the table has.
        """
        patches = self.proj(x_BCHW)
        height, width = patches.shape[2:]
        if max(height, width) > self.side:
            raise ValueError(f"the picture has {height} by {width} patches; expected at most {self.side} along a side")
        top, left = (self.side - height) // 2, (self.side - width) // 2
        table = self.pos_embed.unflatten(1, (self.side, self.side))[:, top : top + height, left : left + width]
        return patches.flatten(2).transpose(1, 2) + table.flatten(1, 2).to(patches.dtype)


class TimeTextEmbedding(nn.Module):
    """The timestep's embedding and the pooled text's, which are added."""

    def __init__(self, config: JointTransformerConfig) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(TIME_DIM, config.inner_dim)
        self.text_embedder = TimestepEmbedding(config.pooled_projection_dim, config.inner_dim)


class JointTransformer(nn.Module):
    """The velocity eps - x0 of noisy latents under a text: Stable Diffusion 3's network under its published names."""

    scale_dim = 0
    """It is not told its guidance scale."""

    def __init__(self, config: JointTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_embed = PatchEmbedding(config)
        self.time_text_embed = TimeTextEmbedding(config)
        self.context_embedder = Linear(config.joint_attention_dim, config.inner_dim)
        last = config.num_layers - 1
        self.transformer_blocks = nn.ModuleList(
            JointBlock(config, is_last=i == last, is_dual=i in config.dual_attention_layers) for i in range(last + 1)
        )
        self.norm_out = Modulation(config.inner_dim, 2)
        self.proj_out = Linear(config.inner_dim, config.patch_size**2 * config.out_channels)

    @property
    def context_embedding_dim(self) -> int:
        """Width of a `ProjectedContext`'s embedding."""
        return self.config.inner_dim

    def project_context(self, context_BSD: Tensor, added_BA: Tensor | None = None) -> ProjectedContext:
        """All that the network computes from the text without a timestep, for any number of `forward`s.

        Args:
            context_BSD: (B, S, joint_attention_dim). added_BA: (B, pooled_projection_dim).
        """
        if added_BA is None:
            raise ValueError("the pooled text is missing; give added_BA")
        pooled = self.time_text_embed.text_embedder(added_BA.to(context_BSD.dtype))
        return ProjectedContext(self.context_embedder(context_BSD), pooled)

    def forward(
        self,
        x_BCHW: Tensor,
        t: Tensor,
        context: Tensor | ProjectedContext,
        added_BA: Tensor | None = None,
        *,
        cameras_BM: Tensor | None = None,
        num_views: int = 1,
    ) -> Tensor:
        """Predicts for noisy latents.

        Args:
            x_BCHW: (B, in_channels, H, W), H and W multiples of the patch.
            t: (B,) timesteps 1000 sigma, each row its own.
            context: text (B, S, joint_attention_dim) with added_BA, or what `project_context` made of both.
            cameras_BM, num_views: None and 1; it takes no cameras.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: cameras or groups, or a picture larger than the table of positions.
        """
        if cameras_BM is not None or num_views != 1:
            raise ValueError(f"cameras or groups of {num_views} views for a joint transformer; expected single pictures")
        if not isinstance(context, ProjectedContext):
            context = self.project_context(context, added_BA)
        assert context.embedding is not None
        sinusoids = timestep_embedding(t, TIME_DIM, flip_sin_to_cos=True, freq_shift=0).to(x_BCHW.dtype)
        temb = F.silu(self.time_text_embed.timestep_embedder(sinusoids) + context.embedding)
        x, text = self.pos_embed(x_BCHW), context.keys_values
        for block in self.transformer_blocks:
            x, text = block(x, text, temb)
        scale, shift = self.norm_out(temb)
        return self._pictures(self.proj_out(modulated(x, shift, scale)), x_BCHW.shape[2], x_BCHW.shape[3])

    def _pictures(self, patches_BLP: Tensor, height: int, width: int) -> Tensor:
        """(B, L, patch^2 C), channels last within a patch -> (B, C, H, W)."""
        patch = self.config.patch_size
        grid = patches_BLP.unflatten(1, (height // patch, width // patch)).unflatten(-1, (patch, patch, -1))
        return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


@torch.no_grad()
def begin(network: JointTransformer) -> JointTransformer:
    """The network as training begins it: it says 0, its blocks pass on what they get, its table of positions is written.

    Shifts, scales, gates and the last layer are 0 (adaLN-Zero; Peebles and Xie 2022, arXiv:2212.09748 section 3.2).
    """
    for module in network.modules():
        if isinstance(module, Modulation):
            module.linear.weight.zero_()
            module.linear.bias.zero_()
    network.proj_out.weight.zero_()
    network.proj_out.bias.zero_()
    config = network.config
    network.pos_embed.pos_embed.copy_(position_table(config.pos_embed_max_size, config.inner_dim)[None])
    return network


def position_table(side: int, dim: int) -> Tensor:
    """(side^2, dim), row by row: sines, then cosines, of the column in its first half and of the row in its second.

    The frequencies are 10000^(-4 i / dim) (Vaswani et al. 2017, arXiv:1706.03762 section 3.5, for each coordinate).
    """
    omega = 10_000 ** (-4 * torch.arange(dim // 4, dtype=torch.float64) / dim)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    columns, rows = waves.repeat(side, 1), waves.repeat_interleave(side, dim=0)
    return torch.cat([columns, rows], dim=1).float()
