"""The UNet of the pixel models: DDPM's (2006.11239 appendix B), optionally told a class label or a text.

Residual blocks at every resolution, attention at some, the timestep in every block. A label's embedding is added to the
timestep's (2105.05233 section 3.1); text enters through cross-attention as in latent diffusion and, pooled, beside the
timestep as in GLIDE (2112.10741 section 3.1).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.attention import Attention, KeyValue, SpatialTransformer
from diffusion.networks.layers import GroupNorm
from diffusion.networks.projected_context import ProjectedContext, cross_attentions
from diffusion.networks.unet import Resampler, ResnetBlock, TextTimeEmbedding, TimestepEmbedding, timestep_embedding

NORM_GROUPS = 32
HEAD_CHANNELS = 64
"""Channels an attention head: on a CPU attention costs heads x tokens^2, nearly whatever the width of a head."""

NO_TEXT: Iterator[KeyValue] = iter(())
"""What a network without text attends to."""


@dataclass(frozen=True)
class PixelUNetConfig:
    """Sizes of a `PixelUNet`; num_classes None: without labels; context_dim None: without text.

    patch_size: pixels a side that become one position with patch_size^2 times the channels before the first convolution,
        and pixels again after the last (2301.11093 section 3.2): 2 makes a step about four times cheaper.
    """

    sample_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64, 128, 128)
    layers_per_block: int = 1
    attention_levels: tuple[bool, ...] = (False, True, True)
    num_classes: int | None = None
    context_dim: int | None = None
    patch_size: int = 1

    def __post_init__(self) -> None:
        if not self.block_out_channels or len(self.attention_levels) != len(self.block_out_channels):
            raise ValueError(
                f"attention_levels has {len(self.attention_levels)} entries for {len(self.block_out_channels)} "
                "block_out_channels; give one for each level"
            )
        if any(channels % 2 for channels in self.block_out_channels):
            raise ValueError(f"block_out_channels are {self.block_out_channels}; give even numbers")
        if self.patch_size < 1:
            raise ValueError(f"patch_size is {self.patch_size}; give at least 1")
        if self.sample_size < 1 or self.sample_size % self.factor:
            raise ValueError(
                f"sample_size is {self.sample_size}; give a multiple of {self.factor}, "
                f"for patches of {self.patch_size} and the {len(self.block_out_channels)} levels of block_out_channels"
            )

    @property
    def factor(self) -> int:
        """How many pixels the lowest resolution puts into one."""
        return self.patch_size * 2 ** (len(self.block_out_channels) - 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one picture."""
        return (self.in_channels, self.sample_size, self.sample_size)


class SelfAttentionBlock(nn.Module):
    """Norm, self-attention, residual (2006.11239 appendix B)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(math.gcd(NORM_GROUPS, channels), channels, eps=1e-6)
        self.attention = Attention(channels, _num_heads(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens = self.norm(x_BCHW).flatten(2).transpose(1, 2)
        return x_BCHW + self.attention(tokens).transpose(1, 2).unflatten(-1, x_BCHW.shape[-2:])


class Layer(nn.Module):
    """A residual block and, where there is one, attention after it."""

    def __init__(self, in_channels: int, out_channels: int, *, temb_dim: int, attends: bool, context_dim: int | None) -> None:
        super().__init__()
        groups = math.gcd(NORM_GROUPS, in_channels, out_channels)
        self.resnet = ResnetBlock(in_channels, out_channels, temb_dim=temb_dim, groups=groups, eps=1e-5)
        self.attention: SelfAttentionBlock | SpatialTransformer | None = None
        if attends and context_dim is None:
            self.attention = SelfAttentionBlock(out_channels)
        elif attends and context_dim is not None:
            self.attention = SpatialTransformer(
                out_channels,
                _num_heads(out_channels),
                context_dim,
                depth=1,
                groups=math.gcd(NORM_GROUPS, out_channels),
                use_linear_projection=True,
            )

    def forward(self, x: Tensor, temb: Tensor, text: Iterator[KeyValue] = NO_TEXT) -> Tensor:
        """(B, Cin, H, W) -> (B, Cout, H, W); attention to a text takes the next of its keys and values."""
        x = self.resnet(x, temb)
        if isinstance(self.attention, SpatialTransformer):
            return self.attention(x, text)
        return x if self.attention is None else self.attention(x)


class PixelUNet(nn.Module):
    """Whatever the model predicts from x_t: eps, a score, x0, eps and a variance."""

    def __init__(self, config: PixelUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, last = config.block_out_channels, len(config.block_out_channels) - 1
        temb_dim = 4 * widths[0]

        def layer(inputs: int, outputs: int, attends: bool) -> Layer:
            return Layer(inputs, outputs, temb_dim=temb_dim, attends=attends, context_dim=config.context_dim)

        self.time_embedding = TimestepEmbedding(widths[0], temb_dim)
        if config.num_classes is not None:
            self.class_embedding = nn.Embedding(config.num_classes + 1, temb_dim)
        if config.context_dim is not None:
            self.pooled_text = TextTimeEmbedding(config.context_dim, temb_dim, _num_heads(config.context_dim))
        patch = config.patch_size**2
        self.conv_in = nn.Conv2d(patch * config.in_channels, widths[0], 3, padding=1)

        self.down = nn.ModuleList()
        skips, channels = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.layers_per_block):
                self.down.append(layer(channels, width, config.attention_levels[level]))
                channels = width
                skips.append(channels)
            if level < last:
                self.down.append(Resampler(channels, up=False))
                skips.append(channels)

        self.middle = nn.ModuleList([layer(channels, channels, True), layer(channels, channels, False)])

        self.up = nn.ModuleList()
        for level in reversed(range(len(widths))):
            for _ in range(config.layers_per_block + 1):
                self.up.append(layer(channels + skips.pop(), widths[level], config.attention_levels[level]))
                channels = widths[level]
            if level > 0:
                self.up.append(Resampler(channels, up=True))

        self.norm_out = GroupNorm(math.gcd(NORM_GROUPS, channels), channels, eps=1e-5)
        self.conv_out = nn.Conv2d(channels, patch * config.out_channels, 3, padding=1)
        self._cross_attentions = cross_attentions(self)

    def project_context(self, context_BSD: Tensor) -> ProjectedContext:
        """All that the network computes from the text alone, for any number of `forward`s."""
        return ProjectedContext.of(self._cross_attentions, context_BSD, self.pooled_text(context_BSD))

    def forward(
        self,
        x_BCHW: Tensor,
        t: Tensor,
        *,
        labels: Tensor | None = None,
        context: Tensor | ProjectedContext | None = None,
    ) -> Tensor:
        """Predicts for noisy pictures.

        Args:
            x_BCHW: (B, in_channels, H, W); H and W divisible by `config.factor`.
            t: (B,) times, float or long, each row its own, in the units of a schedule of about 1000 steps.
            labels: (B,) long in [0, num_classes], where num_classes means "no label"; None: no label in any row.
            context: (B, S, context_dim) text states, or what `project_context` made of them.

        Returns:
            (B, out_channels, H, W).

        Raises:
            ValueError: a condition that the configuration does not have, or the text missing.
        """
        config = self.config
        if labels is not None and config.num_classes is None:
            raise ValueError("labels were given to a network without num_classes; leave them out or set num_classes")
        if (context is None) != (config.context_dim is None):
            raise ValueError(f"the text context is {'missing' if context is None else 'unexpected'}; context_dim says which")
        sinusoids = timestep_embedding(t, config.block_out_channels[0], flip_sin_to_cos=True, freq_shift=0)
        temb = self.time_embedding(sinusoids.to(x_BCHW.dtype))
        if config.num_classes is not None:
            none = torch.full((len(x_BCHW),), config.num_classes, dtype=torch.long, device=x_BCHW.device)
            temb = temb + self.class_embedding(none if labels is None else labels)
        text = NO_TEXT
        if isinstance(context, Tensor):
            temb = temb + self.pooled_text(context)
            text = (layer.key_value(context) for layer in self._cross_attentions)
        elif context is not None:
            temb = temb + cast(Tensor, context.embedding)
            text = context.layer_by_layer(self._cross_attentions)
        temb = F.silu(temb)

        x = self.conv_in(F.pixel_unshuffle(x_BCHW, config.patch_size))
        skips = [x]
        for block in self.down:
            x = block(x, temb, text) if isinstance(block, Layer) else block(x)
            skips.append(x)
        for block in self.middle:
            x = block(x, temb, text)
        for block in self.up:
            x = block(torch.cat([x, skips.pop()], dim=1), temb, text) if isinstance(block, Layer) else block(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), config.patch_size)


def _num_heads(channels: int) -> int:
    """Heads of about HEAD_CHANNELS, as many as divide the channels."""
    heads = max(1, channels // HEAD_CHANNELS)
    return heads if channels % heads == 0 else 1
