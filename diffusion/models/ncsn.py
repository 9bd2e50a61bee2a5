"""NCSN: one network for the scores of all noise levels, sampled by annealed Langevin dynamics (1907.05600).

    s(x, sigma) = -eps(x, sigma) / sigma
    eps(x, sigma) = (sigma y + F(y, log sigma)) / sqrt(1 + sigma^2),        y = x / sqrt(1 + sigma^2)

Levels and step follow 2006.09011 (NCSNv2) unless they are given. The division by sigma is its technique 3. The network F is
put between them as in 2206.00364 table 1, for data of unit size: where sigma is large, x is almost all noise and the score
is known without F, whose errors would be multiplied by sigma in what Langevin dynamics makes of them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion.models.base import Batch, SampleRequest
from diffusion.models.denoising_score_matching import denoising_score_matching
from diffusion.models.score_model import ScoreModel, check_unconditional, unconditional_network
from diffusion.networks.build import NetworkConfig
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.noise_levels import geometric_sigmas, langevin_step_size, num_levels_for
from diffusion.parameterisation import per_row
from diffusion.samplers.annealed_langevin import annealed_langevin
from diffusion.seeding import normal


@dataclass(frozen=True)
class NcsnConfig:
    """Noise levels in units of the data.

    Args:
        sigma_max: about the largest distance between two items (`noise_levels.largest_distance`).
        sigma_min: invisible noise.
        num_levels: L; None for technique 2 of 2006.09011.
        steps_per_level: T. step_size: None for technique 4 of 2006.09011.
    """

    network: NetworkConfig = field(default_factory=PixelUNetConfig)
    sigma_max: float = 20.0
    sigma_min: float = 0.01
    num_levels: int | None = None
    steps_per_level: int = 5
    step_size: float | None = None


class Ncsn(ScoreModel):
    """The noise-conditional score network."""

    name = "ncsn"
    Config = NcsnConfig
    preview: ClassVar[Mapping[str, Any]] = {"num_steps": 60, "options": {"steps_per_level": 5}}

    def __init__(self, config: NcsnConfig) -> None:
        super().__init__(config)
        self.network = unconditional_network(config.network)
        levels = config.num_levels
        if levels is None:
            levels = num_levels_for(config.sigma_max, config.sigma_min, math.prod(self.shape))
        self.sigmas = geometric_sigmas(config.sigma_max, config.sigma_min, levels)

    @classmethod
    def default_config(cls, shape: tuple[int, ...], num_classes: int | None) -> NcsnConfig:
        """For points of about unit size fewer, longer levels than for pictures, as in 1907.05600."""
        config = super().default_config(shape, num_classes)
        return replace(config, sigma_max=5.0, steps_per_level=100) if len(shape) == 1 else config

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """-eps / sigma of the noise eps that the network sees in x."""
        config = self.config
        share = (sigma / config.sigma_min).log() / math.log(config.sigma_max / config.sigma_min)
        shrink = (1 + sigma**2).rsqrt()
        scaled = per_row(shrink, x) * x
        output = self.network(scaled, (999 * share).to(x))
        return -(per_row(shrink, x) * scaled + per_row(shrink / sigma, x) * output)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """1907.05600 eq. 6 with lambda = sigma^2: one level drawn for each item, the mean over its numbers."""
        x = batch.x
        level = torch.randint(len(self.sigmas), (len(x),), generator=generator)
        sigma = self.sigmas[level].to(x)
        noise = normal(x.shape, generator, device=x.device)
        rows = denoising_score_matching(self.score, x, noise=noise, sigma=sigma, sigma_power=2)
        return rows.mean() / x[0].numel(), {}

    def sample(self, request: SampleRequest) -> Tensor:
        """Annealed Langevin dynamics from N(0, sigma_1^2 I).

        Args:
            request: num_steps is the number of levels, from the same sigma_max to the same sigma_min. Options:
                "steps_per_level", "step_size" (technique 4 for the levels at hand where neither it nor the configuration
                says), "denoise".
        """
        check_unconditional(request, "annealed_langevin")
        config = self.config
        options = request.options_over(
            {"steps_per_level": config.steps_per_level, "step_size": config.step_size or 1.0, "denoise": True}
        )
        sigmas = self.sigmas
        if request.num_steps is not None:
            sigmas = geometric_sigmas(config.sigma_max, config.sigma_min, request.num_steps)
        if config.step_size is None and "step_size" not in request.options:
            options["step_size"] = langevin_step_size(sigmas, options["steps_per_level"])
        return self.draw(
            annealed_langevin(
                self.start(request.seeds, config.sigma_max), sigmas=sigmas, noise=self.noise(request.seeds), **options
            )
        )
