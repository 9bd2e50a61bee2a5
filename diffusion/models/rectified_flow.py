"""Rectified flow (Liu, Gong and Liu 2022, arXiv:2209.03003), with the levels of Stable Diffusion 3 (2403.03206).

    x_s = (1 - s) x0 + s eps,   s in [0, 1]                                               2209.03003 eq. 1
    L = E_{s, x0, eps} || (eps - x0) - u_theta(x_s, s) ||^2
    dx/ds = u_theta(x, s), from noise at s = 1 down to data at s = 0

The levels of training are uniform, or s = sigmoid(z) with z ~ N(mean, 1) (2403.03206 section 3.1), which asks more often
where the velocity is hard to tell. The network is told 1000 s.

On the latents of the toybox prior the network is Stable Diffusion 3's joint transformer, which reads captions with the
prior's own text tower: what is trained so is a prior (`diffusion.prior_folder.save_flow`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.flow_schedule import FlowSchedule
from diffusion.guidance import classifier_free
from diffusion.models.base import Batch, Model, SampleRequest
from diffusion.models.sampling import draw, dropped_labels, guided_output, request_labels
from diffusion.models.text_to_pixels import captions_of
from diffusion.networks.build import NetworkConfig, build_network
from diffusion.networks.joint_transformer import JointTransformer, JointTransformerConfig
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.parameterisation import Prediction
from diffusion.seeding import normal, uniform
from diffusion.text.frozen_tower import FrozenTower, toybox
from diffusion.training.figures import by_noise

Levels = Literal["uniform", "logit_normal"]

PICTURE_CHANNELS = 3
"""Data of more channels are latents."""

WIDTH, HEADS, LAYERS = 256, 4, 6
"""Of the transformer of latents."""

LATENT_MEAN = 0.5
"""logit_mean of latents: more of the levels lie where shape is decided."""


@dataclass(frozen=True)
class RectifiedFlowConfig:
    """2403.03206's best levels of training.

    Args:
        levels: how s is drawn in training: "logit_normal" or "uniform" (2209.03003's). logit_mean: of the former.
        shift: of the levels that a sampler takes, see `FlowSchedule`.
        label_dropout: share of labels, or of captions, left out in training, for classifier-free guidance.

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
        self.text = FrozenTower() if isinstance(config.network, JointTransformerConfig) else None

    @classmethod
    def default_config(cls, shape: tuple[int, ...], num_classes: int | None) -> RectifiedFlowConfig:
        """Of latents a joint transformer over patches of 2 by 2, under the toybox prior's text; else the common network."""
        if len(shape) != 3 or shape[0] <= PICTURE_CHANNELS:
            return super().default_config(shape, num_classes)
        channels, side, _ = shape
        text = FrozenTower().width
        network = JointTransformerConfig(
            sample_size=side,
            patch_size=2,
            in_channels=channels,
            out_channels=channels,
            num_layers=LAYERS,
            attention_head_dim=WIDTH // HEADS,
            num_attention_heads=HEADS,
            joint_attention_dim=text,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=text,
            pos_embed_max_size=side // 2,
            qk_norm="rms_norm",
        )
        return RectifiedFlowConfig(network=network, logit_mean=LATENT_MEAN)

    @property
    def condition(self) -> Literal["labels", "captions"] | None:
        """Captions, where the network reads them."""
        return super().condition if self.text is None else "captions"

    def preview_request(self, batch: Batch) -> Mapping[str, Any]:
        """`preview`; where the network reads captions, with a guidance scale of 3 besides."""
        return self.preview if self.text is None else {**self.preview, "guidance_scale": 3.0}

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The squared error of the velocity, averaged over dimensions, at levels drawn as the configuration says.

        Raises:
            DiffusionError: latents without captions.
        """
        t = self.timesteps(len(batch), generator).to(batch.x.device)
        eps = normal(batch.x.shape, generator, device=batch.x.device, dtype=batch.x.dtype)
        squared = self.squared_error(batch.x, eps, t, **self._told(batch, generator))
        return squared.mean(), by_noise(squared.detach(), t, self.schedule.num_train_timesteps)

    def _told(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor | None]:
        """What the network is told of a training batch, with some of it left out."""
        config = self.config
        if self.text is None:
            return {"labels": dropped_labels(batch.labels, config.network.num_classes, config.label_dropout, generator)}
        if batch.captions is None:
            raise DiffusionError.explained(
                "the latents have no captions", expected="one for every picture", fix="use data=toybox_latents"
            )
        dropped = (uniform((len(batch),), generator) < config.label_dropout).tolist()
        text = self.text(["" if drop else caption for caption, drop in zip(batch.captions, dropped, strict=True)])
        return {"context": text.tokens, "added_BA": text.pooled}

    def timesteps(self, num: int, generator: torch.Generator) -> Tensor:
        """1000 s of so many rows, (num,) float64 on the CPU."""
        if self.config.levels == "uniform":
            return 1000 * uniform((num,), generator).double()
        z = normal((num,), generator, dtype=torch.float64)
        return 1000 * torch.sigmoid(z + self.config.logit_mean)

    def squared_error(self, x0: Tensor, eps: Tensor, t: Tensor, **told: Tensor | None) -> Tensor:
        """|| (eps - x0) - u_theta(x_t, t) ||^2 / D of each row, (B,).

        Args:
            x0, eps: (B, ...). t: (B,) float64 in [0, 1000]. told: labels (B,) long, or the text, as the network takes them.
        """
        output = self.network(self.schedule.add_noise(x0, eps, t), t, **told).to(x0.dtype)
        return (eps - x0 - output).square().flatten(1).mean(dim=1)

    def sample(self, request: SampleRequest) -> Tensor:
        """Heun's method in 25 steps of two calls, or another sampler that holds for flows.

        Options: "clip_x0" (off), "spacing" of the timesteps ("trailing" or "linspace"), and those of the samplers, such as
        "eta" of "ddim". Latents are decoded by the toybox prior's autoencoder.
        """
        velocity = self._velocity(request)

        def predict(x_t: Tensor, t: Tensor) -> Prediction:
            return Prediction.from_output(velocity(x_t, t), x_t, self.schedule.alpha(t), self.schedule.sigma(t), "velocity")

        drawn = draw(
            request,
            shape=self.shape,
            schedule=self.schedule,
            predict=predict,
            sampler="flow_heun",
            num_steps=25,
            device=self.device,
            defaults={},
        )
        return drawn if self.text is None else 2 * toybox(str(self.device)).decode(drawn) - 1

    def _velocity(self, request: SampleRequest) -> Callable[[Tensor, Tensor], Tensor]:
        """(x_t, t) -> the guided velocity under the request's labels or prompts."""
        scale = request.guidance_scale
        if self.text is None:
            labels = request_labels(request, self.config.network.num_classes, self.device)
            return lambda x_t, t: guided_output(self.network, x_t, t, labels=labels, scale=scale, channels=self.shape[0])
        assert isinstance(self.network, JointTransformer)
        network, prompts = self.network, captions_of(request)
        with torch.no_grad():
            read = [self.text(prompts), self.text([""] * len(prompts))]
            cond, uncond = (network.project_context(text.tokens, text.pooled) for text in read)

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            said = network(x_t, t, cond)
            return said if scale == 1 else classifier_free(network(x_t, t, uncond), said, scale)

        return velocity
