"""Rectified flow (Liu, Gong and Liu 2022, arXiv:2209.03003), with the levels of Stable Diffusion 3 (2403.03206).

    x_s = (1 - s) x0 + s eps,   s in [0, 1]                                               2209.03003 eq. 1
    L = E_{s, x0, eps} || (eps - x0) - u_theta(x_s, s) ||^2
    dx/ds = u_theta(x, s), from noise at s = 1 down to data at s = 0

The levels of training are uniform, or s = sigmoid(z) with z ~ N(mean, 1) (2403.03206 section 3.1), which asks more often
where the velocity is hard to tell. The network is told 1000 s.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from diffusion.flow_schedule import FlowSchedule
from diffusion.models.base import Batch, Model, SampleRequest
from diffusion.models.sampling import draw, dropped_labels, guided_output, request_labels
from diffusion.networks.build import NetworkConfig, build_network
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.parameterisation import Prediction
from diffusion.seeding import normal, uniform

Levels = Literal["uniform", "logit_normal"]


@dataclass(frozen=True)
class RectifiedFlowConfig:
    """2403.03206's best levels of training.

    Args:
        levels: how s is drawn in training: "logit_normal" or "uniform" (2209.03003's). logit_mean: of the former.
        shift: of the levels that a sampler takes, see `FlowSchedule`.
        label_dropout: share of labels left out in training, for classifier-free guidance; without num_classes unused.

    Raises:
        ValueError: unknown levels.
    """

    network: NetworkConfig = field(default_factory=PixelUNetConfig)
    levels: Levels = "logit_normal"
    logit_mean: float = 0.0
    shift: float = 1.0
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.levels not in get_args(Levels):
            raise ValueError(f"levels is {self.levels!r}; give one of {', '.join(get_args(Levels))}")

    @property
    def schedule(self) -> FlowSchedule:
        """Equal steps from 1 to 1 / N, shifted."""
        return FlowSchedule(shift=self.shift, timestep_spacing="trailing")


class RectifiedFlow(Model):
    """A network of the velocity eps - x0."""

    name = "rectified_flow"
    Config: ClassVar[type] = RectifiedFlowConfig
    preview: ClassVar[Mapping[str, Any]] = {"sampler": "euler", "num_steps": 25}

    def __init__(self, config: RectifiedFlowConfig) -> None:
        super().__init__(config)
        self.schedule = config.schedule
        self.network = build_network(config.network)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The squared error of the velocity, averaged over dimensions, at levels drawn as the configuration says."""
        t = self.timesteps(len(batch), generator).to(batch.x.device)
        eps = normal(batch.x.shape, generator, device=batch.x.device, dtype=batch.x.dtype)
        labels = dropped_labels(batch.labels, self.config.network.num_classes, self.config.label_dropout, generator)
        return self.squared_error(batch.x, eps, t, labels).mean(), {}

    def timesteps(self, num: int, generator: torch.Generator) -> Tensor:
        """1000 s of so many rows, (num,) float64 on the CPU."""
        if self.config.levels == "uniform":
            return 1000 * uniform((num,), generator).double()
        z = normal((num,), generator, dtype=torch.float64)
        return 1000 * torch.sigmoid(z + self.config.logit_mean)

    def squared_error(self, x0: Tensor, eps: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """|| (eps - x0) - u_theta(x_t, t) ||^2 / D of each row, (B,).

        Args:
            x0, eps: (B, ...). t: (B,) float64 in [0, 1000]. labels: (B,) long.
        """
        output = self.network(self.schedule.add_noise(x0, eps, t), t, labels=labels).to(x0.dtype)
        return (eps - x0 - output).square().flatten(1).mean(dim=1)

    def sample(self, request: SampleRequest) -> Tensor:
        """Heun's method in 25 steps of two calls, or another sampler that holds for flows.

        Options: "clip_x0" (off), "spacing" of the timesteps ("trailing" or "linspace"), and those of the samplers, such as
        "eta" of "ddim".
        """
        labels = request_labels(request, self.config.network.num_classes, self.device)

        def predict(x_t: Tensor, t: Tensor) -> Prediction:
            channels, scale = self.shape[0], request.guidance_scale
            output = guided_output(self.network, x_t, t, labels=labels, scale=scale, channels=channels)
            return Prediction.from_output(output, x_t, self.schedule.alpha(t), self.schedule.sigma(t), "velocity")

        return draw(
            request,
            shape=self.shape,
            schedule=self.schedule,
            predict=predict,
            sampler="flow_heun",
            num_steps=25,
            device=self.device,
            defaults={},
        )
