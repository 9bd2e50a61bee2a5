"""The denoising loss as a measure of likelihood: its closed form, and the same noise for whatever is compared."""

import pytest
import torch

from diffusion.denoising_loss import denoising_losses
from diffusion.errors import DiffusionError
from diffusion.requests import run
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, stream
from tests.oracles import GaussianMixture, Oracle, condition

pytestmark = pytest.mark.oracle

SCHEDULE = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
MEAN = 0.3


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_pictures_off_a_known_one_cost_their_distance_over_sigma(kind: str) -> None:
    """Where all data is one picture, x0_hat is that picture, so v_hat - v is d / sigma for a picture at distance d."""
    schedule = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type=kind)
    distance = torch.tensor([0.0, 0.1, 0.5, -0.2], dtype=torch.float64)[:, None, None, None]
    images = MEAN + distance.expand(4, 3, 1, 1)
    t = torch.tensor([100, 400, 700, 950])
    oracle = Oracle(schedule, GaussianMixture.gaussian([MEAN] * 3, torch.eye(3) * 1e-12))
    noise = normal((4, 3, 1, 1), stream(0, "noise"), dtype=torch.float64)
    losses = run(denoising_losses(images, condition=condition(4), schedule=schedule, t=t, noise=noise), oracle)
    expected = (distance.flatten() / schedule.sigma(t)).square().float()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)


def test_noise_of_another_shape_is_refused() -> None:
    images, t = torch.zeros(2, 3, 1, 1, dtype=torch.float64), torch.tensor([100, 200])
    oracle = Oracle(SCHEDULE, GaussianMixture.gaussian([MEAN] * 3, torch.eye(3)))
    with pytest.raises(DiffusionError, match=r"the noise has shape \(2, 3, 2, 2\); expected the latents'"):
        run(denoising_losses(images, condition=condition(2), schedule=SCHEDULE, t=t, noise=torch.zeros(2, 3, 2, 2)), oracle)
