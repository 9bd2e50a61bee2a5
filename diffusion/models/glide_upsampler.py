"""GLIDE's upsampler: a picture twice as large, drawn under the small one and its caption (2112.10741 section 3.1).

The small picture, rounded to the 8 bits that a finished one has, is enlarged bilinearly and joins x_t as input channels.
In training it is noised a little (2106.15282 section 3, conditioning augmentation), because at use it comes from a model and
not from the data; the level of that noise is a further channel, so that at use it may be nothing.

Where the paper predicts eps, this model predicts x0 as the enlarged picture plus what the network adds (2104.14951 section
3.2 diffuses that residual): it begins as the bilinear enlargement, not as noise, and learns the edges.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, SampleRequest, pictures_for
from diffusion.models.schedules import GLIDE_UPSAMPLER
from diffusion.models.text_to_pixels import (
    GUIDANCE_OPTIONS,
    TextToPixels,
    TextToPixelsConfig,
    split_options,
)
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.networks.projected_context import ProjectedContext
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, normal_rows, stream, uniform

FACTOR = 2
"""Pixels of the large picture along one of the small; the paper's, from 64 to 256, is 4."""

SAMPLER, NUM_STEPS = "ddim", 27
"""The 27 steps of the authors' "fast27", evenly spaced."""

LARGE = PixelUNetConfig(sample_size=64, block_out_channels=(32, 64, 128), attention_levels=(False, False, True))
"""Attention at 16x16 alone: at 64x64 the rest of the work is in the convolutions."""


@dataclass(frozen=True)
class GlideUpsamplerConfig(TextToPixelsConfig):
    """As the base model's; the network's sample_size is that of the large picture.

    Args:
        augmentation: the largest standard deviation of the noise on the small picture, whose range is [-1, 1].
    """

    network: PixelUNetConfig = LARGE
    schedule: NoiseSchedule = GLIDE_UPSAMPLER
    augmentation: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augmentation < 0 or self.network.sample_size % FACTOR:
            raise DiffusionError.explained(
                f"augmentation is {self.augmentation} and sample_size {self.network.sample_size}",
                expected=f"at least 0, and a multiple of {FACTOR}",
                fix="use 0.1 and 64",
            )


class GlideUpsampler(TextToPixels):
    """p(large picture | small picture, caption)."""

    name = "glide_upsampler"
    Config = GlideUpsamplerConfig
    num_extra_channels: ClassVar[int] = 4

    def __init__(self, config: GlideUpsamplerConfig) -> None:
        super().__init__(config)
        nn.init.zeros_(self.network.conv_out.weight)
        nn.init.zeros_(self.network.conv_out.bias)  # type: ignore[arg-type]

    def output(self, x_t: Tensor, t: Tensor, text: Tensor | ProjectedContext, extra: Tensor) -> Tensor:
        """As `TextToPixels.output`; where it is x0, the enlarged picture is part of it."""
        added = super().output(x_t, t, text, extra)
        return extra[:, :-1] + added if self.config.schedule.prediction_type == "sample" else added

    @property
    def low_res_shape(self) -> tuple[int, ...]:
        """(C, h, w) of the small picture."""
        channels, height, width = self.shape
        return (channels, height // FACTOR, width // FACTOR)

    def preview_request(self, batch: Batch) -> Mapping[str, Any]:
        """Pictures of the data, made small and enlarged again."""
        return {"options": {"low_res": F.avg_pool2d(batch.x, FACTOR)}}

    def training_extra(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """The small pictures of the batch, noised at a level of their own each; see `conditioning`."""
        small = F.avg_pool2d(batch.x, FACTOR)
        level = self.config.augmentation * uniform((len(batch),), generator)
        return conditioning(small, level, normal(small.shape, generator))

    def sample(self, request: SampleRequest) -> Tensor:
        """Large pictures, by 27 steps of DDIM.

        Options, beside the sampler's: GUIDANCE_OPTIONS,
            low_res: the small pictures (B or 1, C, h, w) in [-1, 1]; needed.
            augmentation: the level of noise put on them, 0 to the trained level.

        Raises:
            DiffusionError: as `Model.sample`, and without low_res.
        """
        options, rest = split_options(request, {**GUIDANCE_OPTIONS, "low_res": None, "augmentation": 0.0})
        if options["low_res"] is None:
            raise DiffusionError.explained(
                "there is no picture to enlarge",
                expected=f"options.low_res, {self.low_res_shape}",
                fix="give options.low_res=FILE, or this model to GLIDE as options.upsampler=FOLDER",
            )
        low_res = pictures_for(options["low_res"], self.low_res_shape, len(request.seeds), option="low_res").cpu()
        extra = conditioning(low_res, self._level(options["augmentation"], len(low_res)), self._small_noise(request))
        return self.drawn(rest, extra=extra, guidance=options, sampler=SAMPLER, num_steps=NUM_STEPS)

    def _level(self, augmentation: Any, count: int) -> Tensor:
        if not 0 <= augmentation <= self.config.augmentation:
            raise DiffusionError.explained(
                f"options.augmentation is {augmentation}",
                expected=f"0 to {self.config.augmentation}, the levels of its training",
                fix="use 0 for real pictures and a little more for drawn ones",
            )
        return torch.full((count,), float(augmentation))

    def _small_noise(self, request: SampleRequest) -> Tensor:
        return normal_rows(self.low_res_shape, [stream(seed, "augmentation") for seed in request.seeds])


def conditioning(low_res: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """What the upsampler is told of small pictures: [enlarged (8-bit picture + level * noise), level].

    Args:
        low_res: (B, C, h, w) in [-1, 1]. level: (B,). noise: (B, C, h, w).

    Returns:
        (B, C + 1, FACTOR h, FACTOR w).
    """
    rounded = ((low_res.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
    shift = level.to(rounded)[:, None, None, None]
    large = F.interpolate(rounded + shift * noise.to(rounded), scale_factor=float(FACTOR), mode="bilinear", align_corners=False)
    return torch.cat([large, shift.expand(-1, 1, *large.shape[-2:])], dim=1)
