"""DDPM: denoising diffusion probabilistic models (Ho, Jain and Abbeel 2020, arXiv:2006.11239).

    x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps                                          eq. 4
    L_simple = E_{t, x0, eps} || eps - eps_theta(x_t, t) ||^2                              eq. 14
    x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps_theta) / sqrt(alpha_t) + sigma_t z      algorithm 2

with sigma_t^2 = beta_t ("fixed_large") or the posterior's variance ("fixed_small"), and a linear schedule of betas. Instead of
eps the network may be asked for v = a eps - s x0 (2202.00512 section 4), with the same loss of v.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion.models.base import Batch, Model, SampleRequest
from diffusion.models.sampling import draw, dropped_labels, guided_output, request_labels
from diffusion.models.schedules import LINEAR
from diffusion.networks.build import NetworkConfig, build_network
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.parameterisation import Prediction, training_target
from diffusion.schedule import NoiseSchedule, PredictionType
from diffusion.seeding import normal


@dataclass(frozen=True)
class DDPMConfig:
    """2006.11239 section 4 and appendix B, but for the size of the network.

    Args:
        prediction_type: what the network says; "v_prediction" forgives a small network where x_t is almost all noise.
        label_dropout: share of labels left out in training, for classifier-free guidance; without num_classes unused.
    """

    network: NetworkConfig = field(default_factory=PixelUNetConfig)
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction_type: PredictionType = "epsilon"
    label_dropout: float = 0.1

    @property
    def schedule(self) -> NoiseSchedule:
        """Linear betas; the last step ends on clean data."""
        return replace(
            LINEAR,
            num_train_timesteps=self.num_train_timesteps,
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            prediction_type=self.prediction_type,
        )


class DDPM(Model):
    """A network of x_t with the unweighted objective."""

    name = "ddpm"
    Config: ClassVar[type] = DDPMConfig
    preview: ClassVar[Mapping[str, Any]] = {"sampler": "ddim", "num_steps": 50}

    def __init__(self, config: DDPMConfig) -> None:
        super().__init__(config)
        self.schedule = config.schedule
        self.network = build_network(config.network)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """L_simple, averaged over dimensions, at uniform timesteps."""
        t = torch.randint(self.schedule.num_train_timesteps, (len(batch),), generator=generator).to(batch.x.device)
        eps = normal(batch.x.shape, generator, device=batch.x.device, dtype=batch.x.dtype)
        labels = dropped_labels(batch.labels, self.config.network.num_classes, self.config.label_dropout, generator)
        return self.squared_error(batch.x, eps, t, labels).mean(), {}

    def squared_error(self, x0: Tensor, eps: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """|| eps - eps_theta(x_t, t) ||^2 / D of each row, (B,), or that of the `prediction_type`.

        Args:
            x0, eps: (B, ...). t: (B,) long. labels: (B,) long.
        """
        schedule = self.schedule
        output = self.network(schedule.add_noise(x0, eps, t), t, labels=labels).to(x0.dtype)
        target = training_target(x0, eps, schedule.alpha(t), schedule.sigma(t), schedule.prediction_type)
        return (target - output).square().flatten(1).mean(dim=1)

    def sample(self, request: SampleRequest) -> Tensor:
        """Ancestral sampling over all timesteps with the large variance, or any sampler over fewer.

        Options: "variance" (of the sampler "ddpm": "fixed_large" or "fixed_small"), "clip_x0" (on for pictures, as the
        paper's code does), "spacing" of the timesteps, and those of the other samplers, such as "eta" of "ddim".
        """
        labels = request_labels(request, self.config.network.num_classes, self.device)
        defaults: dict[str, Any] = {"variance": "fixed_large", "clip_x0": len(self.shape) == 3}

        def predict(x_t: Tensor, t: Tensor) -> Prediction:
            channels, scale = self.shape[0], request.guidance_scale
            output = guided_output(self.network, x_t, t, labels=labels, scale=scale, channels=channels)
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            return Prediction.from_output(output, x_t, alpha, sigma, self.schedule.prediction_type)

        return draw(
            request,
            shape=self.shape,
            schedule=self.schedule,
            predict=predict,
            sampler="ddpm",
            num_steps=self.schedule.num_train_timesteps,
            device=self.device,
            defaults=defaults,
        )
