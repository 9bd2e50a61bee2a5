"""Bit diffusion: discrete pictures as analog bits, with self-conditioning (2208.04202).

A picture is a map of symbols: its nearest palette colours, or the bytes of its channels. Whatever the network says, what
comes out is such a map again, so that every sampled pixel is a colour of the palette.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
from torch import Tensor

from diffusion.analog_bits import from_bits, num_bits_for, to_bits
from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, Model, SampleRequest
from diffusion.models.score_model import check_unconditional, unconditional_network
from diffusion.networks.build import NetworkConfig, with_channels
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.parameterisation import per_row
from diffusion.requests import run
from diffusion.samplers.bit_diffusion import EstimateRequest, bit_diffusion, gamma
from diffusion.seeding import normal, normal_rows, step_noise, stream, uniform

# fmt: off
TOYBOX_PALETTE = (
    "#1d1d1c", "#2d30bf", "#2e416f", "#4f3e38", "#8b2793", "#aa3d23", "#2d8838", "#676461",
    "#786dc7", "#868884", "#da67a5", "#36bcbd", "#cca125", "#82d351", "#b4b7b1", "#e2e3e2",
)
# fmt: on
"""The centres of 16 clusters (k-means) of the toybox's pixels, from dark to bright."""

Estimate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x_t (B, ...), t (B,) in [0, 1], the previous estimate (B, ...) -> E[x_0 | x_t] (B, ...)."""


def bit_diffusion_loss(
    estimate: Estimate, bits: Tensor, *, noise: Tensor, t: Tensor, num_self_conditioned: int, scale: float = 1.0
) -> Tensor:
    """|| estimate - bits ||^2 of 2208.04202 algorithm 1, the mean over an item.

    Args:
        bits: (B, ...) of -scale and scale. noise: (B, ...) standard normal. t: (B,) in [0, 1].
        num_self_conditioned: the first so many rows are shown a first estimate, clipped to [-scale, scale], through
            which no gradient flows; the others are shown zeros.

    Returns:
        (B,).
    """
    level = gamma(t)
    x_t = per_row(level.sqrt(), bits) * bits + per_row((1 - level).sqrt(), bits) * noise
    shown = torch.zeros_like(bits)
    if num_self_conditioned:
        first, others = shown.split((num_self_conditioned, len(bits) - num_self_conditioned))
        with torch.no_grad():
            guess = estimate(x_t[:num_self_conditioned], t[:num_self_conditioned], first).clamp(-scale, scale)
        shown = torch.cat((guess.to(bits), others))
    return (estimate(x_t, t, shown) - bits).square().flatten(1).mean(1)


@dataclass(frozen=True)
class BitDiffusionConfig:
    """What the symbols are and how they are sampled.

    Args:
        network: of pictures (3, H, W); its channels are replaced by those of the bits.
        palette: 2 to 256 colours "#rrggbb", one symbol a pixel; None for bytes, 3 symbols a pixel and 24 bits.
        bit_scale: the size of a bit against noise of unit size.
        self_condition_rate: share of the batch that is shown its first estimate in training.
        num_steps, time_difference: of sampling.
    """

    network: NetworkConfig = field(default_factory=PixelUNetConfig)
    palette: tuple[str, ...] | None = TOYBOX_PALETTE
    bit_scale: float = 1.0
    self_condition_rate: float = 0.5
    num_steps: int = 100
    time_difference: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.network, PixelUNetConfig):
            raise DiffusionError.explained(
                f"the samples are points of shape {self.network.shape}",
                expected="pictures",
                fix="train bit_diffusion with data=toybox",
                why="points are not made of symbols",
            )
        if self.palette is not None and not 2 <= len(self.palette) <= 256:
            raise DiffusionError.explained(
                f"the palette has {len(self.palette)} colours", expected="2 to 256", fix="use null for bytes"
            )
        if not (self.bit_scale > 0 and 0 <= self.self_condition_rate <= 1):
            raise DiffusionError.explained(
                f"bit_scale is {self.bit_scale:g} and self_condition_rate {self.self_condition_rate:g}",
                expected="a positive scale and a rate from 0 to 1",
                fix="use 1 and 0.5",
            )

    @property
    def num_symbols(self) -> int:
        """K."""
        return 256 if self.palette is None else len(self.palette)

    @property
    def num_channels(self) -> int:
        """Channels of analog bits a picture has."""
        return (self.network.shape[0] if self.palette is None else 1) * num_bits_for(self.num_symbols)


class BitDiffusion(Model):
    """E[bits | x_t], told its own previous estimate."""

    name = "bit_diffusion"
    Config = BitDiffusionConfig

    def __init__(self, config: BitDiffusionConfig) -> None:
        super().__init__(config)
        channels = config.num_channels
        self.network = unconditional_network(with_channels(config.network, inputs=2 * channels, outputs=channels))
        if config.palette is not None:
            self.register_buffer("palette", _colours(config.palette), persistent=False)

    def to_symbols(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 1, H, W) nearest palette colours, or (B, 3, H, W) bytes; int64."""
        if self.config.palette is None:
            return ((pictures + 1) * 127.5).round().clamp(0, 255).long()
        pixels = pictures.movedim(1, -1)
        return torch.cdist(pixels.flatten(1, 2), self._palette).argmin(-1).unflatten(1, pixels.shape[1:3])[:, None]

    def to_pictures(self, symbols: Tensor) -> Tensor:
        """The inverse, float32 in [-1, 1]."""
        if self.config.palette is None:
            return symbols.float() / 127.5 - 1
        return self._palette[symbols[:, 0]].movedim(-1, 1)

    def estimate(self, x_t: Tensor, t: Tensor, previous: Tensor) -> Tensor:
        """E[bits | x_t], (B, n, H, W), for x_t and the previous estimate (B, n, H, W), t (B,) in [0, 1]."""
        return self.network(torch.cat((x_t, previous), dim=1), 999 * t.to(x_t))

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Mean squared error of the bits; t is uniform."""
        config = self.config
        bits = to_bits(self.to_symbols(batch.x), config.num_symbols, scale=config.bit_scale)
        rows = bit_diffusion_loss(
            self.estimate,
            bits,
            noise=normal(bits.shape, generator, device=bits.device),
            t=uniform((len(bits),), generator, device=bits.device),
            num_self_conditioned=int(config.self_condition_rate * len(bits)),
            scale=config.bit_scale,
        )
        return rows.mean(), {}

    @torch.no_grad()
    def sample(self, request: SampleRequest) -> Tensor:
        """Pictures whose every pixel is a palette colour, or a byte in each channel.

        Args:
            request: samplers "ddim" (default) and "ddpm"; option "time_difference", in steps.
        """
        config = self.config
        check_unconditional(request, "ddim", "ddpm")
        options = request.options_over({"time_difference": config.time_difference})
        shape = (config.num_channels, *self.shape[1:])
        sampling = bit_diffusion(
            normal_rows(shape, [stream(seed, "start") for seed in request.seeds], device=self.device),
            num_steps=config.num_steps if request.num_steps is None else request.num_steps,
            step=cast(Literal["ddim", "ddpm"], request.sampler or "ddim"),
            noise=step_noise([(seed, "noise") for seed in request.seeds], shape),
            scale=config.bit_scale,
            **options,
        )
        bits = run(sampling, self._answer)
        return self.to_pictures(from_bits(bits, config.num_symbols))

    def _answer(self, request: EstimateRequest) -> Tensor:
        return self.estimate(request.x_t, request.t, request.previous)

    @property
    def _palette(self) -> Tensor:
        return cast(Tensor, self.palette)


def _colours(palette: tuple[str, ...]) -> Tensor:
    """(K, 3) in [-1, 1] of "#rrggbb"."""
    try:
        rgb = [bytes.fromhex(colour.removeprefix("#")) for colour in palette]
    except ValueError:
        rgb = [b""]
    if any(len(colour) != 3 for colour in rgb):
        raise DiffusionError.explained(
            f"the palette is {', '.join(map(str, palette))}", expected="colours as '#rrggbb'", fix="write '#ff8000' for orange"
        )
    return torch.tensor([list(colour) for colour in rgb]).float() / 127.5 - 1
