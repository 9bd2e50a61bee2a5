"""The text-conditional UNet of latent diffusion / Stable Diffusion (arXiv:2112.10752), under its published names.

One class holds the toybox prior, Stable Diffusion 1.x and 2.x, and SDXL (2307.01952): its configuration is the
`unet/config.json` of the published folders, its state dict has their keys. With `multi_view` it is MVDream's, too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.attention import AttentionPooling, KeyValue, SpatialTransformer
from diffusion.networks.layers import GroupNorm, Linear, Pointwise
from diffusion.networks.multi_view import CameraEmbedding, MultiViewConfig, Views
from diffusion.networks.projected_context import ProjectedContext, cross_attentions
from diffusion.networks.published import from_published

# SDXL's original height and width, crop top and left, target height and width (2307.01952 section 2.2).
NUM_SIZES = 6

# The guidance scale of diffusers' pipelines for networks that are told it.
DEFAULT_SCALE = 8.5


def per_level(value: Any, levels: int) -> tuple[int, ...]:
    """A number for every level, or one number for all of them."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels


@dataclass(frozen=True)
class UNetConfig:
    """`unet/config.json`. `attention_head_dim` is, in every published file, the NUMBER of heads.

    `multi_view` is no field of that file: what a network has beyond the published one lies beside it.
    """

    sample_size: int = 64
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    cross_attention_dim: int = 1280
    attention_head_dim: int | tuple[int, ...] = 8
    transformer_layers_per_block: int | tuple[int, ...] = 1
    use_linear_projection: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    time_embedding_dim: int | None = None
    addition_embed_type: str | None = None
    addition_embed_type_num_heads: int = 64
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    multi_view: MultiViewConfig | None = None
    time_cond_proj_dim: int | None = None

    SUPPORTED_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    # Settings of the published class that would change the result and that no Stable Diffusion uses.
    FIXED: ClassVar[dict[str, Any]] = {
        "act_fn": "silu",
        "attention_type": "default",
        "center_input_sample": False,
        "class_embed_type": None,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "downsample_padding": 1,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "mid_block_only_cross_attention": None,
        "mid_block_scale_factor": 1,
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "num_attention_heads": None,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "resnet_time_scale_shift": "default",
        "reverse_transformer_layers_per_block": None,
        "time_embedding_act_fn": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
    }
    # Who has such settings, for the sentence that refuses them.
    OTHERS: ClassVar[dict[str, str]] = {
        "attention_type": "GLIGEN",
        "class_embed_type": "unCLIP and the upscalers",
        "encoder_hid_dim": "Kandinsky and DeepFloyd IF",
        "encoder_hid_dim_type": "a UNet with an IP-Adapter, Kandinsky and DeepFloyd IF",
        "mid_block_type": "the distilled BK-SDM",
        "num_class_embeds": "the upscalers",
        "reverse_transformer_layers_per_block": "the distilled SSD-1B and Segmind-Vega",
    }

    def __post_init__(self) -> None:
        for name in (*self.down_block_types, *self.up_block_types):
            if name not in self.SUPPORTED_BLOCKS:
                raise ValueError(f"UNet block type {name!r} is unknown; expected one of {', '.join(self.SUPPORTED_BLOCKS)}")
        if self.addition_embed_type not in (None, "text", "text_time"):
            raise ValueError(
                f"addition_embed_type {self.addition_embed_type!r} is unknown; expected null, 'text' or 'text_time' (SDXL's)"
            )
        if self.addition_embed_type == "text_time" and self.pooled_dim < 1:
            raise ValueError(
                f"addition_embed_type 'text_time' with addition_time_embed_dim {self.addition_time_embed_dim} and "
                f"projection_class_embeddings_input_dim {self.projection_class_embeddings_input_dim}; expected SDXL's "
                "256 and 2816, which is the pooled text and six sizes"
            )

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "UNetConfig":
        """Reads a published configuration; fields that change nothing here (names, dropout, ...) are passed over.

        Raises:
            ValueError: a setting that would change the result and is not offered.
        """
        for name, value in cls.FIXED.items():
            if config.get(name, value) != value:
                whose = f", as in {cls.OTHERS[name]}" if name in cls.OTHERS else ""
                raise ValueError(
                    f"the UNet's {name} is {config[name]!r}{whose}; expected {value!r}, as in all Stable Diffusions; use a "
                    "model of Stable Diffusion 1.x, 2.x or SDXL with its whole network"
                )
        return from_published(cls, config)

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.block_out_channels)

    @property
    def pooled_dim(self) -> int:
        """Width of the pooled text that "text_time" conditioning takes; 0 without it."""
        if self.addition_embed_type != "text_time":
            return 0
        return (self.projection_class_embeddings_input_dim or 0) - NUM_SIZES * (self.addition_time_embed_dim or 0)

    @property
    def added_dim(self) -> int:
        """Numbers a row that condition the network beside the text states: pooled text and sizes, or none."""
        return self.pooled_dim + NUM_SIZES if self.pooled_dim else 0


def timestep_embedding(t: Tensor, dim: int, *, flip_sin_to_cos: bool, freq_shift: int) -> Tensor:
    """(B,) timesteps -> (B, dim) sinusoids, float32 (Vaswani et al. 2017; base 10000)."""
    half = dim // 2
    exponent = -math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / (half - freq_shift)
    angles = t.float()[:, None] * exponent.exp()[None]
    pair = (angles.cos(), angles.sin()) if flip_sin_to_cos else (angles.sin(), angles.cos())
    return torch.cat(pair, dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers with SiLU between."""

    def __init__(self, in_dim: int, dim: int, *, scale_dim: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = Linear(in_dim, dim, bias=bias), Linear(dim, dim, bias=bias)
        if scale_dim is not None:
            self.cond_proj = Linear(scale_dim, in_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_dim) -> (B, dim)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class TextTimeEmbedding(nn.Module):
    """Attention-pooled text in the width of the time embedding, to which it is added."""

    def __init__(self, text_dim: int, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(text_dim), nn.LayerNorm(dim)
        self.pool = AttentionPooling(num_heads, text_dim)
        self.proj = Linear(text_dim, dim)

    def forward(self, context_BSD: Tensor) -> Tensor:
        """(B, S, text_dim) -> (B, dim)."""
        return self.norm2(self.proj(self.pool(self.norm1(context_BSD))))


class TextSizeEmbedding(TimestepEmbedding):
    """Pooled text and the sinusoids of six sizes in the width of the time embedding (SDXL, 2307.01952 section 2.2)."""

    def __init__(self, config: UNetConfig, dim: int) -> None:
        super().__init__(cast(int, config.projection_class_embeddings_input_dim), dim)
        self.config = config

    def embed(self, added_BA: Tensor) -> Tensor:
        """(B, pooled_dim + 6), pooled text then sizes in pixels -> (B, dim)."""
        config = self.config
        pooled, sizes = added_BA[:, :-NUM_SIZES], added_BA[:, -NUM_SIZES:]
        sinusoids = timestep_embedding(
            sizes.flatten(),
            cast(int, config.addition_time_embed_dim),
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        inputs = torch.cat([pooled, sinusoids.reshape(len(pooled), -1).to(pooled.dtype)], dim=-1)
        return self(inputs.to(self.linear_1.weight.dtype))


class ResnetBlock(nn.Module):
    """norm-SiLU-conv, plus the time embedding unless `temb_dim` is None, norm-SiLU-conv, residual (2006.11239 appendix B)."""

    def __init__(self, in_channels: int, out_channels: int, *, temb_dim: int | None, groups: int, eps: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if temb_dim is not None:
            self.time_emb_proj = Linear(temb_dim, out_channels)
        self.norm2 = GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = Pointwise(in_channels, out_channels)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """(B, Cin, H, W), (B, temb_dim) already through SiLU -> (B, Cout, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if temb is not None:
            h = h + self.time_emb_proj(temb)[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Resampler(nn.Module):
    """A 3x3 convolution that halves the resolution, or follows a nearest doubling of it."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, stride=1 if up else 2)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W), or (B, C, *size) where the doubled picture would not fit, or (B, C, H/2, W/2)."""
        if not self.up:
            return self.conv(x)
        if size is None or size == (2 * x.shape[2], 2 * x.shape[3]):
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


class UNetBlock(nn.Module):
    """One level, on the way down or up: residual blocks, each with its transformer where the level has attention."""

    def __init__(
        self,
        in_channels: list[int],
        out_channels: int,
        transformer: dict[str, Any] | None,
        *,
        resample: Literal["down", "up"] | None = None,
        **resnet: Any,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(c, out_channels, **resnet) for c in in_channels)
        if transformer is not None:
            self.attentions = nn.ModuleList(SpatialTransformer(out_channels, **transformer) for _ in in_channels)
        if resample == "down":
            self.downsamplers = nn.ModuleList([Resampler(out_channels, up=False)])
        elif resample == "up":
            self.upsamplers = nn.ModuleList([Resampler(out_channels, up=True)])

    def step(self, index: int, x: Tensor, temb: Tensor, text: Iterator[KeyValue], views: Views | None) -> Tensor:
        """Residual block `index` and, where there is one, its transformer."""
        x = self.resnets[index](x, temb)
        return self.attentions[index](x, text, views) if hasattr(self, "attentions") else x


class MidBlock(UNetBlock):
    """Residual block, transformer, residual block at the lowest resolution."""

    def __init__(self, channels: int, transformer: dict[str, Any], **resnet: Any) -> None:
        super().__init__([channels, channels], channels, None, **resnet)
        self.attentions = nn.ModuleList([SpatialTransformer(channels, **transformer)])

    def forward(self, x: Tensor, temb: Tensor, text: Iterator[KeyValue], views: Views | None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x, temb), text, views), temb)


class UNet2DCondition(nn.Module):
    """eps(x_t, t, text) or v(x_t, t, text): which of the two is the scheduler configuration's business, not the network's."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, levels = config.block_out_channels, config.levels
        layers = per_level(config.layers_per_block, levels)
        heads = per_level(config.attention_head_dim, levels)
        depth = per_level(config.transformer_layers_per_block, levels)
        temb_dim = config.time_embedding_dim or 4 * channels[0]
        multi_view = config.multi_view
        resnet = {"temb_dim": temb_dim, "groups": config.norm_num_groups, "eps": config.norm_eps}

        def transformer(level: int) -> dict[str, Any]:
            return {
                "num_heads": heads[level],
                "context_dim": config.cross_attention_dim,
                "depth": depth[level],
                "groups": config.norm_num_groups,
                "use_linear_projection": config.use_linear_projection,
                "joins_views": multi_view is not None and multi_view.joins(level),
                "takes_positions": multi_view is not None and level in multi_view.position_levels,
            }

        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], temb_dim, scale_dim=config.time_cond_proj_dim)
        self.add_embedding: TextTimeEmbedding | TextSizeEmbedding | None = None
        if config.addition_embed_type == "text":
            self.add_embedding = TextTimeEmbedding(config.cross_attention_dim, temb_dim, config.addition_embed_type_num_heads)
        elif config.addition_embed_type == "text_time":
            self.add_embedding = TextSizeEmbedding(config, temb_dim)
        self.camera_embed = None if multi_view is None else CameraEmbedding(temb_dim)

        skips = [channels[0]]
        self.down_blocks = nn.ModuleList()
        for level, kind in enumerate(config.down_block_types):
            inputs = [channels[max(level - 1, 0)]] + [channels[level]] * (layers[level] - 1)
            attention = transformer(level) if "CrossAttn" in kind else None
            last = level == levels - 1
            self.down_blocks.append(UNetBlock(inputs, channels[level], attention, resample=None if last else "down", **resnet))
            skips += [channels[level]] * (layers[level] + (not last))

        self.mid_block = MidBlock(channels[-1], transformer(levels - 1), **resnet)

        self.up_blocks = nn.ModuleList()
        below = channels[-1]
        for kind, level in zip(config.up_block_types, reversed(range(levels)), strict=True):
            inputs = []
            for _ in range(layers[level] + 1):
                inputs.append(below + skips.pop())
                below = channels[level]
            attention = transformer(level) if "CrossAttn" in kind else None
            self.up_blocks.append(UNetBlock(inputs, channels[level], attention, resample="up" if level > 0 else None, **resnet))

        self.conv_norm_out = GroupNorm(config.norm_num_groups, channels[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)
        self._cross_attentions = cross_attentions(self)

    def embed_context(self, context_BSD: Tensor, added_BA: Tensor | None) -> Tensor | None:
        """What the text adds to the timestep's embedding, (B, temb_dim), where the configuration has such a thing."""
        match self.add_embedding:
            case TextSizeEmbedding():
                return self.add_embedding.embed(cast(Tensor, added_BA))
            case TextTimeEmbedding():
                return self.add_embedding(context_BSD)
        return None

    def project_context(self, context_BSD: Tensor, added_BA: Tensor | None = None) -> ProjectedContext:
        """All that the network computes from the text alone, for any number of `forward`s; arguments as there."""
        embedding = self.embed_context(context_BSD, added_BA)
        scale = None if self.config.time_cond_proj_dim is None else self.embed_scale(DEFAULT_SCALE).expand(len(context_BSD), -1)
        return ProjectedContext.of(self._cross_attentions, context_BSD, embedding, scale)

    def embed_scale(self, scale: float) -> Tensor:
        """What a guidance scale s adds to the timestep's sinusoids, (1, C), where the network is told it as w = s - 1.

        The sinusoids of 1000 w, in the order of 2310.04378's code: sine first, and the last frequency 1 / 10000. Such angles
        are so large that float32 rounds them by 5e-4: they are computed as that code computes them, as the models know them.
        """
        weight = self.time_embedding.cond_proj.weight
        half = weight.shape[1] // 2
        frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * -(torch.log(torch.tensor(10000.0)) / (half - 1)))
        angles = torch.tensor(scale - 1) * 1000.0 * frequencies
        sinusoids = F.pad(torch.cat([angles.sin(), angles.cos()]), (0, weight.shape[1] - 2 * half))[None]
        return self.time_embedding.cond_proj(sinusoids.to(weight))

    @property
    def scale_dim(self) -> int:
        """Width of a `ProjectedContext`'s scale; 0 where the network is not told any."""
        return 0 if self.config.time_cond_proj_dim is None else self.config.block_out_channels[0]

    @property
    def context_embedding_dim(self) -> int:
        """Width of a `ProjectedContext`'s embedding; 0 where it has none."""
        return 0 if self.add_embedding is None else self.time_embedding.linear_2.out_features

    def views(self, cameras_BM: Tensor | None, num_views: int) -> Views | None:
        """How the rows of a forward belong together; None where each is a picture of its own.

        Raises:
            ValueError: cameras or groups for a network without `multi_view`.
        """
        if cameras_BM is None and num_views == 1:
            return None
        if self.config.multi_view is None:
            raise ValueError(f"cameras or groups of {num_views} views for a UNet without multi_view; expected single pictures")
        return Views(self.config.multi_view, cameras_BM, num_views)

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
            x_BCHW: noisy latents x_t (B, in_channels, H, W), of any H and W: an upsampler goes to its skip's size.
            t: timesteps (B,), each row its own, in the units of the training schedule (0..999).
            context: text states (B, S, cross_attention_dim), or what `project_context` made of them.
            added_BA: (B, added_dim), pooled text and sizes in pixels, where the configuration has "text_time"; unused with
                a `ProjectedContext`, which holds what became of it.
            cameras_BM: (B, 16), see `diffusion.networks.multi_view`; zeros, or None for all rows, where there is none.
            num_views: so many neighbouring rows are views of one object, and attend to each other.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: cameras or groups for a network without `multi_view`.
        """
        views = self.views(cameras_BM, num_views)
        config = self.config
        sinusoids = timestep_embedding(
            t, config.block_out_channels[0], flip_sin_to_cos=config.flip_sin_to_cos, freq_shift=config.freq_shift
        )
        text: Iterator[KeyValue]
        if isinstance(context, ProjectedContext):
            embedding, text = context.embedding, context.layer_by_layer(self._cross_attentions)
            scale = context.scale
        else:
            embedding, scale = self.embed_context(context, added_BA), None
            text = (layer.key_value(context) for layer in self._cross_attentions)
        sinusoids = sinusoids.to(x_BCHW.dtype)
        temb = self.time_embedding(sinusoids if scale is None else sinusoids + scale)
        if embedding is not None:
            temb = temb + embedding
        if self.camera_embed is not None and cameras_BM is not None:
            temb = temb + self.camera_embed(cameras_BM)
        temb = F.silu(temb)

        x = self.conv_in(x_BCHW)
        skips = [x]
        for block in cast(list[UNetBlock], self.down_blocks):
            for index in range(len(block.resnets)):
                x = block.step(index, x, temb, text, views)
                skips.append(x)
            if hasattr(block, "downsamplers"):
                x = block.downsamplers[0](x)
                skips.append(x)
        x = self.mid_block(x, temb, text, views)
        for block in cast(list[UNetBlock], self.up_blocks):
            for index in range(len(block.resnets)):
                x = block.step(index, torch.cat([x, skips.pop()], dim=1), temb, text, views)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0](x, skips[-1].shape[2:])
        return self.conv_out(F.silu(self.conv_norm_out(x)))
