"""Improved DDPM (Nichol and Dhariwal 2021, arXiv:2102.09672): cosine schedule, learned variance, hybrid objective.

Sigma_theta(x_t, t) = exp(v log beta_t + (1 - v) log btilde_t)                         eq. 15
L_hybrid = L_simple + lambda L_vlb, the gradient of L_vlb stopped at the mean           eq. 16
abar_t = f(t) / f(0), f(t) = cos^2((t / T + .008) / 1.008 pi / 2)                       eq. 17
p_t proportional to sqrt(E[L_t^2])                                                     eq. 18
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, Model, SampleRequest
from diffusion.models.sampling import draw, dropped_labels, guided_output, request_labels
from diffusion.models.schedules import COSINE
from diffusion.networks.build import NetworkConfig, build_network, with_channels
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.parameterisation import Prediction, training_target
from diffusion.schedule import NoiseSchedule, PredictionType
from diffusion.seeding import NoiseSource, normal
from diffusion.training.importance import LossSecondMoment
from diffusion.variational_bound import Bound, bound_term, posterior, variational_bound


@dataclass(frozen=True)
class ImprovedDDPMConfig:
    """2102.09672 sections 3 and 4, but for the size of the network.

    Args:
        loss: "hybrid", or "vlb": the bound alone.
        timesteps: "uniform", or "importance" (section 3.3), which the paper uses with "vlb".
        vlb_weight: lambda of eq. 16.
        prediction_type: as in `DDPMConfig`.
        label_dropout: share of labels left out in training, for classifier-free guidance; without num_classes unused.
    """

    network: NetworkConfig = field(default_factory=PixelUNetConfig)
    num_train_timesteps: int = 1000
    loss: Literal["hybrid", "vlb"] = "hybrid"
    timesteps: Literal["uniform", "importance"] = "uniform"
    vlb_weight: float = 0.001
    prediction_type: PredictionType = "epsilon"
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.loss not in ("hybrid", "vlb") or self.timesteps not in ("uniform", "importance"):
            raise DiffusionError.explained(
                f"loss is {self.loss!r} and timesteps {self.timesteps!r}",
                expected="'hybrid' or 'vlb', and 'uniform' or 'importance'",
                fix="use one of these",
            )

    @property
    def schedule(self) -> NoiseSchedule:
        """Cosine; "linspace" strides, as the paper's evenly spaced and rounded ones (section 4)."""
        return replace(
            COSINE,
            num_train_timesteps=self.num_train_timesteps,
            prediction_type=self.prediction_type,
            timestep_spacing="linspace",
        )


class ImprovedDDPM(Model):
    """eps and the share v of the variance: twice the data's channels."""

    name = "improved_ddpm"
    Config: ClassVar[type] = ImprovedDDPMConfig
    preview: ClassVar[Mapping[str, Any]] = {"num_steps": 50}

    def __init__(self, config: ImprovedDDPMConfig) -> None:
        super().__init__(config)
        self.schedule = config.schedule
        self.network = build_network(with_channels(config.network, outputs=2 * config.network.shape[0]))
        self.every_timestep = self.schedule.timesteps(config.num_train_timesteps)
        self.importance = LossSecondMoment(config.num_train_timesteps)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """L_hybrid or L_vlb. Reports L_simple and the bound, T E[L_t] in bits per dimension."""
        x0, config, total = batch.x, self.config, self.schedule.num_train_timesteps
        if config.timesteps == "importance":
            t, weight = self.importance.draw(len(batch), generator)
        else:
            t, weight = torch.randint(total, (len(batch),), generator=generator), torch.ones(len(batch))
        t, weight = t.to(x0.device), weight.to(x0)
        eps = normal(x0.shape, generator, device=x0.device, dtype=x0.dtype)
        labels = dropped_labels(batch.labels, config.network.num_classes, config.label_dropout, generator)
        simple, vlb = self.terms(x0, eps, t, labels, stop_at_mean=config.loss == "hybrid")
        vlb = total * vlb
        figures = {"simple": (weight * simple).mean().item(), "bits_per_dim": (weight * vlb).mean().item()}
        losses = simple + config.vlb_weight * vlb if config.loss == "hybrid" else vlb
        if config.timesteps == "importance":
            self.importance.record(t, losses.detach())
        return (weight * losses).mean(), figures

    def terms(
        self, x0: Tensor, eps: Tensor, t: Tensor, labels: Tensor | None = None, *, stop_at_mean: bool
    ) -> tuple[Tensor, Tensor]:
        """L_simple and the bound's term of each row at its timestep, both (B,); the bound's in bits per dimension.

        Args:
            x0, eps: (B, ...). t: (B,) long. labels: (B,) long.
            stop_at_mean: no gradient of the bound's term to the eps half of the output (section 3.1).
        """
        x_t = self.schedule.add_noise(x0, eps, t)
        output = self.network(x_t, self._network_time(t), labels=labels).to(x0.dtype)
        predicted, share = output.chunk(2, dim=1)
        target = training_target(x0, eps, self.schedule.alpha(t), self.schedule.sigma(t), self.schedule.prediction_type)
        simple = (target - predicted).square().flatten(1).mean(dim=1)
        prediction = self._prediction(predicted.detach() if stop_at_mean else predicted, share, x_t, t)
        assert prediction.variance_share is not None
        # The list of all timesteps runs downwards.
        q = posterior(self.schedule, self.every_timestep, self.schedule.last - t)
        log_variance = q.log_variance(prediction.variance_share)
        vlb = bound_term(prediction, x0, x_t, log_variance, q, clean=t == 0, pixels=len(self.shape) == 3)
        return simple, vlb

    def sample(self, request: SampleRequest) -> Tensor:
        """Ancestral sampling with the learned variance, over all timesteps or, strided, over num_steps of them.

        Options: "variance" (of the sampler "ddpm": "learned", "fixed_large" or "fixed_small"), "clip_x0" (on for
        pictures), "spacing" of the timesteps, and those of the other samplers, such as "eta" of "ddim".
        """
        labels = request_labels(request, self.config.network.num_classes, self.device)
        defaults: dict[str, Any] = {"variance": "learned", "clip_x0": len(self.shape) == 3}
        return draw(
            request,
            shape=self.shape,
            schedule=self.schedule,
            predict=lambda x_t, t: self.predict(x_t, t, labels=labels, scale=request.guidance_scale),
            sampler="ddpm",
            num_steps=self.schedule.num_train_timesteps,
            device=self.device,
            defaults=defaults,
        )

    def predict(self, x_t: Tensor, t: Tensor, *, labels: Tensor | None = None, scale: float = 1.0) -> Prediction:
        """The network's prediction, with its share of the variance, at x_t (B, ...) and t (B,) long."""
        channels, time = self.shape[0], self._network_time(t)
        output = guided_output(self.network, x_t, time, labels=labels, scale=scale, channels=channels)
        said, share = output.chunk(2, dim=1)
        return self._prediction(said, share, x_t, t)

    def bits_per_dim(self, x0: Tensor, noise: NoiseSource, *, num_steps: int | None = None) -> Bound:
        """The variational bound of x0 (B, ...) under the chain of num_steps steps (all of them if None).

        Args:
            noise: the step's index -> (B, ...), see `seeding.step_noise`.
        """
        timesteps = self.every_timestep if num_steps is None else self.schedule.timesteps(num_steps)
        with torch.no_grad():
            return variational_bound(
                self.predict,
                x0,
                noise,
                schedule=self.schedule,
                timesteps=timesteps,
                pixels=len(self.shape) == 3,
                variance="learned",
            )

    def _network_time(self, t: Tensor) -> Tensor:
        """Whatever T, the network sees times up to 1000 (`rescale_timesteps` of the paper's code)."""
        return t * (1000.0 / self.schedule.num_train_timesteps)

    def _prediction(self, said: Tensor, share: Tensor, x_t: Tensor, t: Tensor) -> Prediction:
        """What the network said, with the variance's v = (output + 1) / 2, which the paper leaves unconstrained."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        found = Prediction.from_output(said, x_t, alpha, sigma, self.schedule.prediction_type)
        return Prediction(found.eps, found.x0, found.alpha, found.sigma, (share + 1) / 2)
