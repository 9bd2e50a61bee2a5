"""The KL autoencoder of latent diffusion / Stable Diffusion (2112.10752 section 3.1), under its published names."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from diffusion.networks.attention import attention
from diffusion.networks.layers import GroupNorm, Linear, Pointwise
from diffusion.networks.published import from_published
from diffusion.networks.unet import Resampler, ResnetBlock

Run = Callable[[nn.Module, Tensor], Tensor]
"""How a block is called: as it is, or keeping its input alone, from which it is computed again on the way back."""

# Group norms of the autoencoder, in its residual blocks as in its attention.
NORM_EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """`vae/config.json` of an AutoencoderKL; the defaults are Stable Diffusion's.

    Args:
        batch_norm_eps: of a `PatchNorm` in place of scaling and shift, as an AutoencoderKLFlux2 has it; None for none.

    Raises:
        ValueError: a setting that would change the result and is not offered.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    batch_norm_eps: float | None = None

    FIXED: ClassVar[dict[str, Any]] = {
        "act_fn": ("silu",),
        "down_block_types": ("DownEncoderBlock2D",),
        "up_block_types": ("UpDecoderBlock2D",),
        "latents_mean": (None,),
        "latents_std": (None,),
        "patch_size": (2,),
        "decoder_block_out_channels": (None,),
    }
    FLUX2: ClassVar[dict[str, Any]] = {"latent_channels": 32, "scaling_factor": 1.0, "batch_norm_eps": 1e-4}
    """What the class AutoencoderKLFlux2 has where its configuration says nothing."""

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "AutoencoderKLConfig":
        """Reads a published configuration; fields that change nothing here are passed over."""
        for name, allowed in cls.FIXED.items():
            given = config.get(name, allowed[0])
            if any(value not in allowed for value in (given if isinstance(given, list | tuple) else [given])):
                whose = ", as in Playground 2.5, whose noise is EDM's" if name.startswith("latents_") else ""
                raise ValueError(
                    f"the autoencoder's {name} is {given!r}{whose}; expected {allowed[0]!r}; use one of Stable Diffusion 1.x, "
                    "2.x or SDXL"
                )
        return from_published(cls, config)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of the decoder's levels, the one at the picture's own size first."""
        return self.block_out_channels

    @property
    def spatial_factor(self) -> int:
        """Image pixels along one side of a latent pixel."""
        return 2 ** (len(self.block_out_channels) - 1)


def plainly(block: nn.Module, x: Tensor) -> Tensor:
    """Calls the block."""
    return block(x)


class PixelAttention(nn.Module):
    """Single-head self-attention over all pixels of a feature map, normalised before and residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(groups, channels, eps=NORM_EPS)
        self.to_q, self.to_k, self.to_v = (Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([Linear(channels, channels), nn.Identity()])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        tokens_B1LC = self.group_norm(x_BCHW).flatten(2).transpose(1, 2)[:, None]
        out = attention(self.to_q(tokens_B1LC), self.to_k(tokens_B1LC), self.to_v(tokens_B1LC))
        out = self.to_out[0](out[:, 0])
        return x_BCHW + out.transpose(1, 2).unflatten(-1, x_BCHW.shape[-2:])


class HalvingConv(nn.Module):
    """A 3x3 convolution of stride 2, padded on the right and below only, as CompVis trained it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Residual blocks at one resolution, then the way to the next one."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int, groups: int) -> None:
        super().__init__()
        inputs = [in_channels] + [out_channels] * (num_blocks - 1)
        self.resnets = nn.ModuleList(residual(c, out_channels, groups) for c in inputs)

    def forward(self, x: Tensor, run: Run = plainly) -> Tensor:
        """(B, Cin, H, W) -> (B, Cout, H', W')."""
        for part in (*self.resnets, *getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ())):
            x = run(part, x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, groups: int, *, with_attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(residual(channels, channels, groups) for _ in range(2))
        if with_attention:
            self.attentions = nn.ModuleList([PixelAttention(channels, groups)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        x = self.resnets[0](x)
        for layer in getattr(self, "attentions", ()):
            x = layer(x)
        return self.resnets[1](x)


def residual(in_channels: int, out_channels: int, groups: int) -> ResnetBlock:
    """A residual block without time."""
    return ResnetBlock(in_channels, out_channels, temb_dim=None, groups=groups, eps=NORM_EPS)


class Encoder(nn.Module):
    """Images in [-1, 1] to the moments of their latents."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, c in enumerate(channels):
            block = Level(channels[max(i - 1, 0)], c, config.layers_per_block, groups)
            if i < len(channels) - 1:
                block.downsamplers = nn.ModuleList([HalvingConv(c)])
            self.down_blocks.append(block)
        self.mid_block = Middle(channels[-1], groups, with_attention=config.mid_block_add_attention)
        self.conv_norm_out = GroupNorm(groups, channels[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor, run: Run = plainly) -> Tensor:
        """(B, 3, H, W) -> (B, 2 latent_channels, H/f, W/f)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x, run)
        return self.conv_out(F.silu(self.conv_norm_out(run(self.mid_block, x))))


class Decoder(nn.Module):
    """Latents to images in [-1, 1]."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        channels, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.mid_block = Middle(channels[0], groups, with_attention=config.mid_block_add_attention)
        self.up_blocks = nn.ModuleList()
        for i, c in enumerate(channels):
            block = Level(channels[max(i - 1, 0)], c, config.layers_per_block + 1, groups)
            if i < len(channels) - 1:
                block.upsamplers = nn.ModuleList([Resampler(c, up=True)])
            self.up_blocks.append(block)
        self.conv_norm_out = GroupNorm(groups, channels[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> (B, 3, f h, f w)."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class PatchNorm(nn.Module):
    """Batch norm with the statistics of training, of each channel and place in a patch of 2x2 latents (FLUX.2).

    Args:
        channels: of the latents. eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        # By channel, row and column in the patch.
        self.register_buffer("running_mean", torch.zeros(4 * channels))
        self.register_buffer("running_var", torch.ones(4 * channels))

    def normed(self, latents: Tensor) -> Tensor:
        """(B, C, h, w), h and w even -> the same of zero mean and unit variance."""
        mean, deviation = self._places(latents)
        return (latents - mean) / deviation

    def undone(self, latents: Tensor) -> Tensor:
        """The inverse of `normed`."""
        mean, deviation = self._places(latents)
        return latents * deviation + mean

    def _places(self, latents: Tensor) -> Iterator[Tensor]:
        """Mean and standard deviation at each latent, (C, h, w)."""
        height, width = latents.shape[2:]
        for values in (self.running_mean, (self.running_var + self.eps).sqrt()):
            yield values.reshape(-1, 2, 2).repeat(1, height // 2, width // 2)


class AutoencoderKL(nn.Module):
    """Images (B, 3, H, W) in [0, 1] <-> latents (B, latent_channels, H/f, W/f) of about unit variance."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        latent = config.latent_channels
        if config.use_quant_conv:
            self.quant_conv = Pointwise(2 * latent, 2 * latent)
        if config.use_post_quant_conv:
            self.post_quant_conv = Pointwise(latent, latent)
        if config.batch_norm_eps is not None:
            self.bn = PatchNorm(latent, config.batch_norm_eps)

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, clamped to [-30, 20], of q(z | images), (B, latent_channels, H/f, W/f) each, not scaled.

        Args:
            images: (B, 3, H, W) in [0, 1]; differentiable.
        """
        return self._moments(self.encoder(2 * images - 1))

    def _moments(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        if hasattr(self, "quant_conv"):
            hidden = self.quant_conv(hidden)
        mean, log_variance = cast(tuple[Tensor, Tensor], hidden.chunk(2, dim=1))
        return mean, log_variance.clamp(-30.0, 20.0)

    def encode(self, images: Tensor, *, checkpointed: bool = False) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> the scaled mean latents (B, C, H/f, W/f); differentiable.

        The mean of q(z | images) and not a draw, so that a picture always has the same latents.

        Args:
            checkpointed: the graph keeps each block's input alone (1604.06174), 0.4 of the memory, and a gradient computes
                every block a second time, with the same bits.
        """
        run = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False) if checkpointed else plainly
        return self.scaled(self.encoder(2 * images - 1, run))

    def scaled(self, hidden: Tensor) -> Tensor:
        """What the encoder gives (B, 2 C, h, w) -> the scaled mean latents (B, C, h, w)."""
        mean = self._moments(hidden)[0]
        if hasattr(self, "bn"):
            return self.bn.normed(mean)
        return (mean - self.config.shift_factor) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images in [0, 1], not clamped; differentiable."""
        return (self.decoder(self.unscaled(latents)) + 1) / 2

    def unscaled(self, latents: Tensor) -> Tensor:
        """Scaled latents -> what the decoder takes, (B, C, h, w)."""
        if hasattr(self, "bn"):
            raw = self.bn.undone(latents)
        else:
            raw = latents / self.config.scaling_factor + self.config.shift_factor
        return self.post_quant_conv(raw) if hasattr(self, "post_quant_conv") else raw
