"""The encoder of what guides: half a UNet that looks at x_t, knows t, and says one vector (2105.05233 section 4.2).

"The classifier architecture is simply the downsampling trunk of the UNet model with an attention pool at the [lowest]
layer to produce the final output." The classifier and the noise-aware CLIP are this network with different last layers.
"""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.attention import AttentionPooling
from diffusion.networks.layers import GroupNorm
from diffusion.networks.pixel_unet import HEAD_CHANNELS, Layer
from diffusion.networks.unet import Resampler, TimestepEmbedding, timestep_embedding


@dataclass(frozen=True)
class NoisyEncoderConfig:
    """Sizes of a `NoisyEncoder`; only the lowest resolution has attention, before it is pooled."""

    sample_size: int = 32
    in_channels: int = 3
    block_out_channels: tuple[int, ...] = (32, 64, 128)
    layers_per_block: int = 1

    def __post_init__(self) -> None:
        if not self.block_out_channels or any(channels % 2 for channels in self.block_out_channels):
            raise ValueError(f"block_out_channels are {self.block_out_channels}; give even numbers, one for each level")
        if self.sample_size < 1 or self.sample_size % 2 ** (len(self.block_out_channels) - 1):
            raise ValueError(
                f"sample_size is {self.sample_size}; give a multiple of {2 ** (len(self.block_out_channels) - 1)}, "
                f"for the {len(self.block_out_channels)} levels of block_out_channels"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one picture."""
        return (self.in_channels, self.sample_size, self.sample_size)


class NoisyEncoder(nn.Module):
    """x_t and t to one vector a picture."""

    def __init__(self, config: NoisyEncoderConfig, out_dim: int) -> None:
        super().__init__()
        widths, last = config.block_out_channels, len(config.block_out_channels) - 1
        self.config = config
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        channels = widths[0]
        for level, width in enumerate(widths):
            for _ in range(config.layers_per_block):
                self.down.append(Layer(channels, width, temb_dim=4 * widths[0], attends=level == last, context_dim=None))
                channels = width
            if level < last:
                self.down.append(Resampler(channels, up=False))
        self.norm_out = GroupNorm(math.gcd(32, channels), channels)
        self.pool = AttentionPooling(max(1, channels // HEAD_CHANNELS), channels)
        self.proj = nn.Linear(channels, out_dim)

    def forward(self, x_BCHW: Tensor, t: Tensor) -> Tensor:
        """Noisy pictures (B, C, H, W) at timesteps (B,), in the units of 0..999 -> (B, out_dim)."""
        sinusoids = timestep_embedding(t, self.config.block_out_channels[0], flip_sin_to_cos=True, freq_shift=0)
        temb = F.silu(self.time_embedding(sinusoids.to(x_BCHW.dtype)))
        x = self.conv_in(x_BCHW)
        for block in self.down:
            x = block(x, temb) if isinstance(block, Layer) else block(x)
        tokens_BLD = F.silu(self.norm_out(x)).flatten(2).transpose(1, 2)
        return self.proj(self.pool(tokens_BLD))
