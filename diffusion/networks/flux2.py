"""The transformer of FLUX.2 klein (Black Forest Labs 2026): blocks of two streams as in Stable Diffusion 3, then blocks of one.

The double blocks have joint attention over patches and text; in the single ones attention and feed-forward stand side by side
behind one matrix (Dehghani et al. 2023, arXiv:2302.05442). What the timestep shifts, scales and gates is computed once for all
blocks of a kind. Positions are four axes, of which pictures use rows and columns and the text the last. There are no biases.
Names are those of the folders; queries, keys and values of a double block's stream are one matrix.

Shapes: B rows, L patches of 2x2 latents, S rows of text, D = heads x head_dim.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.attention import attention
from diffusion.networks.joint_transformer import NORM_EPS, TIME_DIM, JointAttention, Modulation, modulated
from diffusion.networks.layers import Linear
from diffusion.networks.multi_view import MultiViewConfig
from diffusion.networks.projected_context import ProjectedContext
from diffusion.networks.published import from_published
from diffusion.networks.rotary import rotated, rotation_table
from diffusion.networks.unet import TimestepEmbedding, timestep_embedding
from diffusion.seeding import sent

MAX_PATCHES = 1 << 16
"""Along a side of a picture: positions have no table that ends."""


@dataclass(frozen=True)
class Flux2Config:
    """`transformer/config.json` of a Flux2Transformer2DModel; the defaults are those of FLUX.2-klein-4B.

    Args:
        in_channels: of the latents; published as those of a patch, four times as many, which are then patches of one.
        joint_attention_dim: width of the text's states. mlp_ratio: inner width of a feed-forward over D.
        axes_dims_rope: numbers of a head that frame, row, column and place in the text turn.
        sample_size: side of the latents of its own pictures, which published files do not say: 1024 pixels.

    Raises:
        ValueError: a setting that klein does not have and that would change the result.
    """

    in_channels: int = 32
    num_layers: int = 5
    num_single_layers: int = 20
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 7680
    mlp_ratio: float = 3.0
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)
    rope_theta: float = 2000.0
    timestep_guidance_channels: int = TIME_DIM
    eps: float = NORM_EPS
    guidance_embeds: bool = False
    sample_size: int = 128

    patch_size = 2
    qk_norm = "rms_norm"
    max_patches = MAX_PATCHES
    multi_view: MultiViewConfig | None = None

    def __post_init__(self) -> None:
        usual = {"guidance_embeds": False, "timestep_guidance_channels": TIME_DIM, "eps": NORM_EPS}
        for name, value in usual.items():
            if getattr(self, name) != value:
                raise ValueError(f"FLUX.2's {name} is {getattr(self, name)!r}; expected {value!r}, as klein has it")
        if len(self.axes_dims_rope) != 4 or sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(
                f"axes_dims_rope are {self.axes_dims_rope}; expected four with the sum of attention_head_dim, "
                f"{self.attention_head_dim}"
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "Flux2Config":
        """Reads a published configuration, where null is the published class's default."""
        published = {"num_layers": 8, "num_single_layers": 48, "num_attention_heads": 48, "joint_attention_dim": 15360}
        given = {"in_channels": 128, "guidance_embeds": True, **published}
        given |= {name: value for name, value in config.items() if value is not None}
        if (
            given.get("patch_size", 1) != 1
            or given["in_channels"] % 4
            or given.get("out_channels", given["in_channels"]) != (given["in_channels"])
        ):
            raise ValueError(
                f"patch_size is {given.get('patch_size', 1)}, in_channels {given['in_channels']} and out_channels "
                f"{given.get('out_channels')}; expected 1, and four times the latents' channels in and out"
            )
        return from_published(cls, {**given, "in_channels": given["in_channels"] // 4})

    @property
    def inner_dim(self) -> int:
        """D."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def out_channels(self) -> int:
        """As many as it takes."""
        return self.in_channels


class SwiGLU(nn.Module):
    """W_out (SiLU(a) * b) with a and b the halves of W_in x (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.linear_in, self.linear_out = Linear(dim, 2 * inner, bias=False), Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.linear_out(gated(self.linear_in(x)))


def gated(x: Tensor) -> Tensor:
    """(..., 2 I) -> (..., I): SiLU of the first half times the second."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


class DoubleBlock(nn.Module):
    """Joint attention and a feed-forward of each stream, shifted, scaled and gated by the timestep."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        dim, inner = config.inner_dim, int(config.inner_dim * config.mlp_ratio)
        self.attn = JointAttention(config, reads_text=True, answers_text=True, bias=False, norm=nn.RMSNorm)
        self.ff, self.ff_context = SwiGLU(dim, inner), SwiGLU(dim, inner)

    def forward(
        self, x_BLD: Tensor, text_BSD: Tensor, of_x: tuple[Tensor, ...], of_text: tuple[Tensor, ...], rotations: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, L, D) and (B, S, D) with six modulations (B, 1, D) each -> the same; rotations of both, patches first."""
        attended = self.attn(modulated(x_BLD, *of_x[:2]), modulated(text_BSD, *of_text[:2]), rotations)
        streams = []
        for stream, out, ff, (*_, gate, shift_ff, scale_ff, gate_ff) in zip(
            (x_BLD, text_BSD), attended, (self.ff, self.ff_context), (of_x, of_text), strict=True
        ):
            stream = stream + gate * out
            streams.append(stream + gate_ff * ff(modulated(stream, shift_ff, scale_ff)))
        return streams[0], streams[1]


class SingleAttention(nn.Module):
    """Attention and feed-forward side by side: one matrix in front of both, one behind both."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        dim, inner = config.inner_dim, int(config.inner_dim * config.mlp_ratio)
        self.num_heads = config.num_attention_heads
        self.to_qkv_mlp_proj = Linear(dim, 3 * dim + 2 * inner, bias=False)
        self.norm_q, self.norm_k = (nn.RMSNorm(config.attention_head_dim, NORM_EPS) for _ in range(2))
        self.to_out = Linear(dim + inner, dim, bias=False)

    def forward(self, x_BLD: Tensor, rotations: Tensor) -> Tensor:
        """(B, L + S, D) -> (B, L + S, D)."""
        dim = x_BLD.shape[-1]
        qkv, fed = self.to_qkv_mlp_proj(x_BLD).tensor_split([3 * dim], dim=-1)
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        query, key = rotated(self.norm_q(query), rotations), rotated(self.norm_k(key), rotations)
        out = attention(query, key, value).transpose(1, 2).flatten(2)
        return self.to_out(torch.cat([out, gated(fed)], dim=-1))


class SingleBlock(nn.Module):
    """`SingleAttention`, shifted, scaled and gated by the timestep."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.attn = SingleAttention(config)

    def forward(self, x_BLD: Tensor, modulation: tuple[Tensor, ...], rotations: Tensor) -> Tensor:
        """(B, L + S, D) -> (B, L + S, D)."""
        shift, scale, gate = modulation
        return x_BLD + gate * self.attn(modulated(x_BLD, shift, scale), rotations)


class TimeEmbedding(nn.Module):
    """The timestep's embedding; klein is not told its guidance scale beside it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(TIME_DIM, dim, bias=False)


class Flux2Transformer(nn.Module):
    """The velocity eps - x0 of noisy latents under a text: FLUX.2 klein's network under its published names."""

    scale_dim = context_embedding_dim = 0
    """It is not told its guidance scale, and adds nothing of the text to the timestep's embedding."""

    def __init__(self, config: Flux2Config) -> None:
        super().__init__()
        self.config = config
        dim, numbers = config.inner_dim, config.patch_size**2 * config.in_channels
        self.time_guidance_embed = TimeEmbedding(dim)
        self.double_stream_modulation_img, self.double_stream_modulation_txt = (
            Modulation(dim, 6, bias=False) for _ in range(2)
        )
        self.single_stream_modulation = Modulation(dim, 3, bias=False)
        self.x_embedder = Linear(numbers, dim, bias=False)
        self.context_embedder = Linear(config.joint_attention_dim, dim, bias=False)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.num_layers))
        self.single_transformer_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.num_single_layers))
        self.norm_out = Modulation(dim, 2, bias=False)
        self.proj_out = Linear(dim, numbers, bias=False)

    def project_context(self, context_BSD: Tensor, added_BA: Tensor | None = None) -> ProjectedContext:
        """All that the network computes from the text without a timestep, for any number of `forward`s.

        Args:
            context_BSD: (B, S, joint_attention_dim). added_BA: None; there is no pooled text.
        """
        return ProjectedContext(self.context_embedder(context_BSD))

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
            x_BCHW: (B, in_channels, H, W), H and W even.
            t: (B,) timesteps 1000 sigma, each row its own.
            context: text (B, S, joint_attention_dim), or what `project_context` made of it.
            added_BA, cameras_BM, num_views: None, None and 1; it takes neither pooled text nor cameras.

        Returns:
            (B, in_channels, H, W).

        Raises:
            ValueError: cameras or groups.
        """
        if cameras_BM is not None or num_views != 1:
            raise ValueError(f"cameras or groups of {num_views} views for FLUX.2; expected single pictures")
        if not isinstance(context, ProjectedContext):
            context = self.project_context(context)
        text, patch = context.keys_values, self.config.patch_size
        sinusoids = timestep_embedding(t, TIME_DIM, flip_sin_to_cos=True, freq_shift=0).to(x_BCHW.dtype)
        temb = F.silu(self.time_guidance_embed.timestep_embedder(sinusoids))
        # A patch's numbers are by channel, row and column.
        patches = F.pixel_unshuffle(x_BCHW, patch)
        height, width = patches.shape[2:]
        x = self.x_embedder(patches.flatten(2).transpose(1, 2))
        rotations = self._rotations(height, width, text.shape[1], x.device)
        of_x, of_text = self.double_stream_modulation_img(temb), self.double_stream_modulation_txt(temb)
        for block in self.transformer_blocks:
            x, text = block(x, text, of_x, of_text, rotations)
        x, of_both = torch.cat([x, text], dim=1), self.single_stream_modulation(temb)
        for block in self.single_transformer_blocks:
            x = block(x, of_both, rotations)
        scale, shift = self.norm_out(temb)
        out = self.proj_out(modulated(x[:, : height * width], shift, scale))
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), patch)

    def _rotations(self, height: int, width: int, rows: int, device: torch.device) -> Tensor:
        """(1, L + S, head_dim / 2, 2): patches at (0, row, column, 0), the text's rows at (0, 0, 0, place)."""
        lengths = (1, height, width, rows)
        frame, row, column, place = (
            sent(rotation_table(dim, length, self.config.rope_theta, rounds_angles=False), device)
            for dim, length in zip(self.config.axes_dims_rope, lengths, strict=True)
        )
        of_patches = torch.cat(
            (
                frame[0].expand(height, width, -1, -1),
                row[:, None].expand(-1, width, -1, -1),
                column[None].expand(height, -1, -1, -1),
                place[0].expand(height, width, -1, -1),
            ),
            dim=2,
        )
        at_origin = [table[0].expand(rows, -1, -1) for table in (frame, row, column)]
        return torch.cat([of_patches.flatten(0, 1), torch.cat([*at_origin, place], dim=1)])[None]
