"""The noise-aware CLIP that guides GLIDE (2112.10741 sections 2.4 and 3.3).

"We train noised CLIP models with an image encoder f(x_t, t) that receives noised images x_t", of the very schedule that it
will guide. What it guides by is the gradient of the dot product f(x_t, t) . g(c), a log-probability up to what does not
depend on x_t (Radford et al. 2021: the softmax over captions of exp(scale) times these cosines).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.classifier_guidance import LogProb
from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, Model, SampleRequest
from diffusion.models.schedules import GLIDE
from diffusion.networks.noisy_encoder import NoisyEncoder, NoisyEncoderConfig
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal
from diffusion.text.clip import contrastive_loss
from diffusion.text.frozen_tower import FrozenTower
from diffusion.training.figures import by_noise


@dataclass(frozen=True)
class NoisyClipConfig:
    """Sizes of the image encoder, of the joint space, and the schedule of the model that it will guide (GLIDE's)."""

    network: NoisyEncoderConfig = field(default_factory=NoisyEncoderConfig)
    schedule: NoiseSchedule = GLIDE
    embed_dim: int = 128


class NoisyClip(Model):
    """An image encoder told t, and a projection of the frozen text tower, in one space."""

    name = "noisy_clip"
    draws = False
    Config = NoisyClipConfig

    def __init__(self, config: NoisyClipConfig) -> None:
        super().__init__(config)
        self.text = FrozenTower()
        self.text_projection = nn.Linear(self.text.width, config.embed_dim, bias=False)
        self.image = NoisyEncoder(config.network, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    @classmethod
    def default_config(cls, shape: tuple[int, ...], num_classes: int | None) -> NoisyClipConfig:
        """As `Model.default_config`.

        Raises:
            DiffusionError: data that is not pictures.
        """
        if len(shape) != 3:
            raise DiffusionError.explained(
                f"an item of the data has shape {shape}", expected="a picture (C, H, W)", fix="use data=toybox"
            )
        return cls.Config(network=replace(NoisyEncoderConfig(), in_channels=shape[0], sample_size=shape[-1]))

    @property
    def condition(self) -> Literal["captions"]:
        """It is trained on captions."""
        return "captions"

    def encode_image(self, x_t: Tensor, t: Tensor) -> Tensor:
        """f(x_t, t): (B, C, H, W), (B,) -> unit vectors (B, embed_dim); differentiable in x_t."""
        return F.normalize(self.image(x_t, t).float(), dim=-1)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """g(c): B captions -> unit vectors (B, embed_dim). Gradients reach the projection, not the tower."""
        return F.normalize(self.text_projection(self.text(captions).pooled).float(), dim=-1)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """InfoNCE of noised pictures and captions over the batch, at uniform timesteps, each row its own.

        Raises:
            DiffusionError: a batch without captions.
        """
        if batch.captions is None:
            raise DiffusionError.explained("the batch has no captions", expected="one for every picture", fix="use data=toybox")
        schedule = self.config.schedule
        t = torch.randint(schedule.num_train_timesteps, (len(batch),), generator=generator).to(batch.x.device)
        eps = normal(batch.x.shape, generator, device=batch.x.device)
        images, texts = self.encode_image(schedule.add_noise(batch.x, eps, t), t), self.encode_text(batch.captions)
        hits = ((images @ texts.T).argmax(dim=-1) == torch.arange(len(batch), device=images.device)).float()
        figures = {"top1": hits.mean().item(), "scale": self.logit_scale.exp().item()}
        shares = by_noise(hits, t, schedule.num_train_timesteps, prefix="top1_")
        return contrastive_loss(images, texts, self.logit_scale), figures | shares

    def log_prob(self, captions: Sequence[str]) -> LogProb:
        """exp(logit_scale) f(x_t, t) . g(c) of these captions, one a row, as guidance differentiates it."""
        with torch.no_grad():
            texts = self.logit_scale.exp().clamp(max=100) * self.encode_text(captions)
        return lambda x_t, t: (self.encode_image(x_t.float(), t) * texts).sum(dim=-1)

    def sample(self, request: SampleRequest) -> Tensor:
        """Raises DiffusionError: CLIP says how well a caption fits a picture and draws none."""
        raise DiffusionError.explained(
            "a noisy CLIP draws nothing by itself",
            expected="a diffusion model for it to guide",
            fix="give it to GLIDE as options.clip=FOLDER, with prompt=...",
        )
