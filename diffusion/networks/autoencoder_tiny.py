"""The norm-free tiny autoencoder (TAESD), under its published names: convolutions and ReLU, nothing else.

Latents are deterministic; `scaling_factor` brings them to about unit variance. Group norms are absent on purpose: on a
CPU their backward pass at full resolution costs as much as the convolution beside them.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.networks.published import from_published


@dataclass(frozen=True)
class AutoencoderTinyConfig:
    """`vae/config.json` of an AutoencoderTiny."""

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_channels: int = 4
    act_fn: str = "relu"
    scaling_factor: float = 1.0
    shift_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.act_fn != "relu":
            raise ValueError(f"act_fn {self.act_fn!r} is unknown for AutoencoderTiny; expected 'relu'")

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "AutoencoderTinyConfig":
        """Reads a published configuration; unknown fields are passed over."""
        return from_published(cls, config)

    @property
    def decoder_widths(self) -> tuple[int, ...]:
        """Channels of the decoder's levels."""
        return self.decoder_block_out_channels

    @property
    def spatial_factor(self) -> int:
        """Image pixels along one side of a latent pixel."""
        return 2 ** (len(self.num_encoder_blocks) - 1)


class TinyBlock(nn.Module):
    """Three convolutions and a residual, ReLU after each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.relu(self.conv(x) + x)


class Stack(nn.Module):
    """A sequence under the key `layers`."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layers in order."""
        return self.layers(x)


class AutoencoderTiny(nn.Module):
    """Images (B, 3, H, W) in [0, 1] <-> latents (B, latent_channels, H/f, W/f) of about unit variance."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        self.config = config
        encoder: list[nn.Module] = []
        for i, (blocks, c) in enumerate(zip(config.num_encoder_blocks, config.encoder_block_out_channels, strict=True)):
            encoder.append(
                nn.Conv2d(config.in_channels, c, 3, padding=1)
                if i == 0
                else nn.Conv2d(c, c, 3, padding=1, stride=2, bias=False)
            )
            encoder += [TinyBlock(c) for _ in range(blocks)]
        encoder.append(nn.Conv2d(config.encoder_block_out_channels[-1], config.latent_channels, 3, padding=1))
        self.encoder = Stack(encoder)

        decoder: list[nn.Module] = [
            nn.Conv2d(config.latent_channels, config.decoder_block_out_channels[0], 3, padding=1),
            nn.ReLU(),
        ]
        for i, (blocks, c) in enumerate(zip(config.num_decoder_blocks, config.decoder_block_out_channels, strict=True)):
            decoder += [TinyBlock(c) for _ in range(blocks)]
            last = i == len(config.num_decoder_blocks) - 1
            if not last:
                decoder.append(nn.Upsample(scale_factor=2))
            decoder.append(nn.Conv2d(c, config.out_channels if last else c, 3, padding=1, bias=last))
        self.decoder = Stack(decoder)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> scaled latents (B, C, H/f, W/f); differentiable."""
        return (self.encoder(images) - self.config.shift_factor) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images in [0, 1], not clamped; differentiable."""
        raw = latents / self.config.scaling_factor + self.config.shift_factor
        return self.decoder(torch.tanh(raw / 3) * 3)
