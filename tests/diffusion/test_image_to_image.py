"""Image to image through an autoencoder: its ends, what a mask keeps, and what it lets change."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.errors import DiffusionError
from diffusion.requests import DecodeRequest, DenoiseRequest, EncodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS, image_to_image, sdedit
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal_rows, step_noise, stream, uniform
from tests.oracles import GaussianMixture, Oracle, condition

pytestmark = pytest.mark.oracle

SCHEDULE = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, steps_offset=0, set_alpha_to_one=True)
LATENT_SHAPE = (3, 2, 2)
MIXTURE = GaussianMixture.gaussian([0.2] * 12, torch.eye(12) * 0.3)


class Answers:
    """An exact denoiser between a lossy encoder (means of 4x4 pixels, as [-1, 1]) and its decoder (nearest)."""

    def __init__(self) -> None:
        self.oracle = Oracle(SCHEDULE, MIXTURE)
        self.asked: list[type] = []

    def __call__(self, request: Any) -> Any:
        self.asked.append(type(request))
        match request:
            case DenoiseRequest():
                return self.oracle(request)
            case EncodeRequest(images):
                return F.avg_pool2d(images, 4) * 2 - 1
            case DecodeRequest(latents):
                return F.interpolate((latents + 1) / 2, scale_factor=4).clamp(0, 1)
        raise TypeError(request)


def pictures(rows: int = 2) -> Tensor:
    return uniform((rows, 3, 8, 8), stream(1, "picture")).double()


def noise(rows: int = 2) -> Tensor:
    return normal_rows(LATENT_SHAPE, [stream(row, "start") for row in range(rows)], dtype=torch.float64)


def settings(rows: int = 2) -> dict[str, Any]:
    return {
        "timesteps": SCHEDULE.timesteps(10),
        "schedule": SCHEDULE,
        "condition": condition(rows),
        "guidance": Guidance(scale=1),
        "noise": step_noise([(0, row) for row in range(rows)], LATENT_SHAPE),
    }


def edit(strength: float, *, name: str = "ddim", masks: Tensor | None = None, images: Tensor | None = None) -> Tensor:
    given = pictures() if images is None else images
    rows = len(given)
    generator = image_to_image(
        given, sampler=SAMPLERS[name], strength=strength, start_noise=noise(rows), masks=masks, **settings(rows)
    )
    return run(generator, Answers())


@pytest.mark.parametrize("strength", [0.0, 0.09])
def test_a_strength_below_one_step_is_the_picture_itself(strength: float) -> None:
    assert torch.equal(edit(strength), pictures())


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_strength_one_is_plain_sampling(name: str) -> None:
    plain = run(SAMPLERS[name](noise(), **settings()), Answers())
    assert torch.equal(edit(1.0, name=name), Answers()(DecodeRequest(plain)))


def test_in_between_it_is_sdedit_of_the_latents() -> None:
    answers = Answers()
    latents = run(
        sdedit(answers(EncodeRequest(pictures())), sampler=SAMPLERS["ddim"], strength=0.5, start_noise=noise(), **settings()),
        answers,
    )
    assert torch.equal(edit(0.5), answers(DecodeRequest(latents)))
    assert answers.asked.count(DenoiseRequest) == 5


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_what_a_mask_keeps_comes_back_to_the_last_bit(strength: float) -> None:
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., 5:] = 1
    edited = edit(strength, masks=masks)
    assert torch.equal(edited[..., :5], pictures()[..., :5])
    assert float((edited[..., 5:] - pictures()[..., 5:]).abs().mean()) > 0.05


def test_the_sampler_redraws_every_latent_that_a_repainted_pixel_lies_in() -> None:
    """One pixel of the right half is repainted: the right latents are free, the left ones stay at the encoder's value."""
    masks = torch.zeros(2, 1, 8, 8)
    masks[..., 1, 4] = 0.5
    free = edit(0.6)
    expected = pictures()
    expected[..., 1, 4] = (expected[..., 1, 4] + free[..., 1, 4]) / 2  # independent dimensions: kept ones change nothing
    torch.testing.assert_close(edit(0.6, masks=masks), expected, rtol=0, atol=1e-9)


def test_a_picture_does_not_depend_on_its_neighbours() -> None:
    masks = (uniform((2, 1, 8, 8), stream(2, "mask")) > 0.5).double()
    together = edit(0.7, masks=masks)
    alone = edit(0.7, masks=masks[:1], images=pictures()[:1])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-12)


def test_refuses_masks_that_do_not_fit() -> None:
    with pytest.raises(DiffusionError, match=r"masks have shape \(2, 1, 4, 4\); expected \(2, 1, 8, 8\)"):
        edit(0.5, masks=torch.ones(2, 1, 4, 4))


def test_refuses_a_strength_outside_its_range() -> None:
    with pytest.raises(DiffusionError, match=r"strength is 1\.5; expected 0 to 1"):
        edit(1.5)
