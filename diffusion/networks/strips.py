"""The KL autoencoder in horizontal strips, for pictures whose feature maps do not fit into memory at once.

Each convolution sees its strip's neighbours, and each group norm its statistics over the whole map, which a pass over the
strips finds first: the result is the plain one up to rounding, without seams. At most two maps of the picture's size are kept
whole, where the plain decoder holds three of twice as many channels; what lies between two norms is computed twice or more.
The lowest level with its attention over all pixels is computed whole: it is a 64th of the picture's area.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.autoencoder_kl import AutoencoderKL
from diffusion.networks.unet import ResnetBlock

STRIP_ROWS = 32
"""Rows of a strip: its neighbours' rows, which are computed twice, are a tenth of them."""


@dataclass(frozen=True)
class Map:
    """A feature map (B, C, height, W) of which any rows can be had, kept or computed when they are asked for.

    Args:
        rows: (first, end) -> (B, C, end - first, W).
    """

    height: int
    rows: Callable[[int, int], Tensor]

    def strips(self) -> Iterator[tuple[int, int, Tensor]]:
        """(first, end, rows), from above."""
        for first in range(0, self.height, STRIP_ROWS):
            end = min(first + STRIP_ROWS, self.height)
            yield first, end, self.rows(first, end)


def decode_in_strips(autoencoder: AutoencoderKL, latents: Tensor) -> Tensor:
    """`AutoencoderKL.decode` without gradients: scaled latents (B, C, h, w) -> images (B, 3, f h, f w), not clamped."""
    decoder = autoencoder.decoder
    x = kept(decoder.mid_block(decoder.conv_in(autoencoder.unscaled(latents))))
    # Nothing but x holds a map here, so that each is freed with the next.
    for block in decoder.up_blocks:
        for resnet in cast(Iterable[ResnetBlock], block.resnets):
            x = kept(whole(residual(x, resnet)))
        for resample in getattr(block, "upsamplers", ()):
            x = convolved(doubled(x), resample.conv)
    return (whole(convolved(activated(x, decoder.conv_norm_out), decoder.conv_out)) + 1) / 2


def encode_in_strips(autoencoder: AutoencoderKL, images: Tensor) -> Tensor:
    """`AutoencoderKL.encode` without gradients: images (B, 3, H, W) in [0, 1] -> the scaled mean latents (B, C, H/f, W/f)."""
    encoder = autoencoder.encoder
    x = convolved(kept(2 * images - 1), encoder.conv_in)
    for block in encoder.down_blocks:
        for resnet in cast(Iterable[ResnetBlock], block.resnets):
            x = kept(whole(residual(x, resnet)))
        for resample in getattr(block, "downsamplers", ()):
            x = kept(whole(halved(x, resample.conv)))
    lowest = encoder.mid_block(x.rows(0, x.height))
    return autoencoder.scaled(encoder.conv_out(F.silu(encoder.conv_norm_out(lowest))))


def residual(x: Map, block: ResnetBlock) -> Map:
    """A residual block without time."""
    h = convolved(activated(x, block.norm1), block.conv1)
    h = convolved(activated(h, block.norm2), block.conv2)
    shortcut = x
    if hasattr(block, "conv_shortcut"):
        shortcut = Map(x.height, lambda first, end: block.conv_shortcut(x.rows(first, end)))
    return Map(x.height, lambda first, end: h.rows(first, end) + shortcut.rows(first, end))


def kept(tensor: Tensor) -> Map:
    """A map that is there."""
    return Map(tensor.shape[2], lambda first, end: tensor[:, :, first:end])


def whole(x: Map) -> Tensor:
    """All of a map, (B, C, H, W)."""
    result: Tensor | None = None
    for first, end, rows in x.strips():
        if result is None:
            result = rows.new_empty(*rows.shape[:2], x.height, rows.shape[3])
        result[:, :, first:end] = rows
    return cast(Tensor, result)


def activated(x: Map, norm: nn.GroupNorm) -> Map:
    """silu(norm(x)), whose statistics over the whole map are found at once."""
    mean, variance = statistics(x, norm.num_groups)
    scale = norm.weight.double() / (variance + norm.eps).sqrt().repeat_interleave(norm.num_channels // norm.num_groups, dim=1)
    shift = norm.bias.double() - mean.repeat_interleave(norm.num_channels // norm.num_groups, dim=1) * scale

    def rows(first: int, end: int) -> Tensor:
        part = x.rows(first, end)
        dtype = torch.promote_types(part.dtype, torch.float32)
        factor, offset = (value.to(dtype)[:, :, None, None] for value in (scale, shift))
        return F.silu(torch.addcmul(offset, part.to(dtype), factor)).to(part.dtype)

    return Map(x.height, rows)


def statistics(x: Map, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of channels over the whole map, (B, groups) float64 each."""
    means, variances, counts = [], [], []
    for _, _, rows in x.strips():
        groups = rows.to(torch.promote_types(rows.dtype, torch.float32)).reshape(len(rows), num_groups, -1)
        variance, mean = torch.var_mean(groups, dim=2, correction=0)
        means.append(mean.double())
        variances.append(variance.double())
        counts.append(groups.shape[2])
    share = torch.tensor(counts, dtype=torch.float64, device=means[0].device)[:, None, None] / sum(counts)
    mean = (share * torch.stack(means)).sum(0)
    # Within the strips, and between them.
    return mean, (share * (torch.stack(variances) + (torch.stack(means) - mean).square())).sum(0)


def doubled(x: Map) -> Map:
    """The nearest doubling of a map."""

    def rows(first: int, end: int) -> Tensor:
        part = F.interpolate(x.rows(first // 2, (end + 1) // 2), scale_factor=2.0, mode="nearest")
        return part[:, :, first % 2 : first % 2 + end - first]

    return Map(2 * x.height, rows)


def halved(x: Map, conv: nn.Conv2d) -> Map:
    """A 3x3 convolution of stride 2, padded on the right and below only."""

    def rows(first: int, end: int) -> Tensor:
        below = min(2 * end + 1, x.height)
        return F.conv2d(F.pad(x.rows(2 * first, below), (0, 1, 0, 2 * end + 1 - below)), conv.weight, conv.bias, stride=2)

    return Map(x.height // 2, rows)


def convolved(x: Map, conv: nn.Conv2d) -> Map:
    """A 3x3 convolution padded with zeros outside of the map, and with its neighbours inside."""

    def rows(first: int, end: int) -> Tensor:
        above, below = first > 0, end < x.height
        part = F.pad(x.rows(first - above, end + below), (1, 1, 1 - above, 1 - below))
        return F.conv2d(part, conv.weight, conv.bias)

    return Map(x.height, rows)
