"""Stand-ins that make whole jobs fast: a prior that sees a coloured ball from every side."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion import requests
from diffusion.parameterisation import Prediction
from diffusion.schedule import NoiseSchedule
from nerf3d.fields import FieldConfig
from nerf3d.fit import FitConfig
from nerf3d.mesh import MeshConfig
from orchestrator.prior_service import LocalPrior

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.2, 0.9)}
VOCABULARY = ("a", "ball", *COLOURS)

FAST_FIT = FitConfig(
    num_steps=30,
    num_views=2,
    render_sizes=((0.0, 16),),
    guide_size=16,
    num_samples=24,
    occupancy_resolution=16,
    patience=1.0,
    density_rate=0.2,
    field=FieldConfig(resolutions=(4, 12)),
)
FAST_MESH = MeshConfig(resolution=32, max_faces=1000)
FAST_OVERRIDES = (
    "fit.num_steps=30",
    "fit.num_views=2",
    "fit.render_sizes=[[0.0,16]]",
    "fit.guide_size=16",
    "fit.num_samples=24",
    "fit.occupancy_resolution=16",
    "fit.patience=1",
    "fit.density_rate=0.2",
    "field.resolutions=[4,12]",
    "mesh.resolution=32",
    "mesh.max_faces=1000",
)


@dataclasses.dataclass
class FakePrior:
    """The surface of `diffusion.prior.Prior`; whatever the noise, it sees a ball in the prompt's colour.

    Latents are the pictures shrunk four times, in [-1, 1]. seconds_per_answer slows it down, so that a test can
    interrupt a run in the middle.
    """

    image_size: int = 16
    name: str = "fake"
    weights_hash: str = "f" * 64
    seconds_per_answer: float = 0.0
    device: torch.device = torch.device("cpu")
    schedule: NoiseSchedule = dataclasses.field(default_factory=NoiseSchedule)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return (3, self.image_size // 4, self.image_size // 4)

    def unknown_words(self, prompt: str) -> list[str]:
        return [word for word in prompt.lower().split() if word not in VOCABULARY]

    def condition(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> requests.Condition:
        colours = [next((rgb for word, rgb in COLOURS.items() if word in p), (0.5, 0.5, 0.5)) for p in prompts]
        tokens = torch.tensor(colours)[:, None]
        return requests.Condition(tokens, torch.zeros_like(tokens))

    def answer(self, request: requests.Request) -> Any:
        time.sleep(self.seconds_per_answer)
        match request:
            case requests.DenoiseRequest(x_t, t, condition, _):
                return self._denoise(x_t, t, condition)
            case requests.EncodeRequest(images):
                return F.avg_pool2d(images, 4) * 2 - 1
            case requests.DecodeRequest(latents):
                return F.interpolate((latents + 1) / 2, scale_factor=4, mode="bilinear").clamp(0, 1)
            case requests.EncodeGradientRequest(_, latent_gradient):
                return F.interpolate(latent_gradient, scale_factor=4) / 16
        raise TypeError(request)

    def _denoise(self, x_t: Tensor, t: Tensor, condition: requests.Condition) -> Prediction:
        side = x_t.shape[-1]
        axis = (torch.arange(side) + 0.5) / side * 2 - 1
        inside = (axis[:, None] ** 2 + axis[None] ** 2 < 0.6**2).float()
        ball = condition.tokens[:, 0, :, None, None] * 2 - 1
        x0 = ball * inside + 0.8 * (1 - inside)
        return Prediction.from_output(x0, x_t, self.schedule.alpha(t), self.schedule.sigma(t), kind="sample")


def load_fake_prior(source: str, device: str = "cpu") -> LocalPrior:
    """What tests put in the place of `orchestrator.prior_service.load_prior`."""
    return LocalPrior(FakePrior())


def load_slow_prior(source: str, device: str = "cpu") -> LocalPrior:
    """The same, slow enough to be interrupted."""
    return LocalPrior(FakePrior(seconds_per_answer=0.05))
