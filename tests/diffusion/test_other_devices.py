"""Timesteps and tables lie on the CPU, pictures may lie elsewhere: the meta device stands for a GPU in every generator."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.distillation import score_distillation
from diffusion.parameterisation import Prediction
from diffusion.requests import Condition, DecodeRequest, DenoiseRequest, EncodeGradientRequest, EncodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS, image_to_image, sdedit
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import step_noise

SCHEDULE = NoiseSchedule()
SHAPE = (4, 8, 8)


def elsewhere(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def answer(request: Any) -> Any:
    """What a prior on another device answers; every tensor that it is asked with is there, but for the timesteps."""
    there = {"t": "cpu"}
    assert all(v.device.type == there.get(name, "meta") for name, v in vars(request).items() if isinstance(v, Tensor))
    match request:
        case DenoiseRequest(x_t, t):
            output = torch.empty_like(x_t)
            return Prediction.from_output(output, x_t, SCHEDULE.alpha(t), SCHEDULE.sigma(t), SCHEDULE.prediction_type)
        case EncodeRequest(images):
            return elsewhere(len(images), *SHAPE)
        case DecodeRequest(latents):
            return elsewhere(len(latents), 3, 64, 64)
        case EncodeGradientRequest(images):
            return torch.empty_like(images)
    raise TypeError(request)


def settings(rows: int) -> dict[str, Any]:
    return {
        "schedule": SCHEDULE,
        "timesteps": SCHEDULE.timesteps(6),
        "condition": Condition(elsewhere(rows, 1, 1)),
        "guidance": Guidance(scale=1),
        "noise": step_noise([(0, row) for row in range(rows)], SHAPE),
    }


@pytest.mark.parametrize("t", [torch.tensor([5]), torch.tensor([5, 700]), torch.tensor([5.5, 7.0])])
def test_noise_is_added_where_the_picture_is(t: Tensor) -> None:
    x0 = elsewhere(2, *SHAPE, dtype=torch.bfloat16)
    for timesteps in (t, t.to("meta")):
        x_t = SCHEDULE.add_noise(x0, torch.empty_like(x0), timesteps)
        assert (x_t.device.type, x_t.shape, x_t.dtype) == ("meta", x0.shape, x0.dtype)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_draws_and_edits_on_another_device(name: str) -> None:
    latents = elsewhere(2, *SHAPE)
    drawn = run(SAMPLERS[name](latents, **settings(2)), answer)
    edited = run(
        sdedit(
            latents,
            sampler=SAMPLERS[name],
            strength=0.5,
            start_noise=elsewhere(2, *SHAPE),
            mask=torch.ones(2, 1, 8, 8),
            **settings(2),
        ),
        answer,
    )
    assert drawn.device == edited.device == latents.device


@pytest.mark.parametrize("masks", [None, torch.ones(2, 1, 64, 64)], ids=["image to image", "inpainting"])
def test_pictures_and_masks_of_the_cpu_are_edited_on_another_device(masks: Tensor | None) -> None:
    def encoding(request: Any) -> Any:
        # The prior takes pictures from anywhere.
        return elsewhere(2, *SHAPE) if isinstance(request, EncodeRequest) else answer(request)

    generator = image_to_image(
        torch.zeros(2, 3, 64, 64),
        sampler=SAMPLERS["ddim"],
        strength=0.5,
        start_noise=elsewhere(2, *SHAPE),
        masks=masks,
        **settings(2),
    )
    assert run(generator, encoding).device.type == "meta"


@pytest.mark.parametrize("weighting", ["uniform", "sigma2", "alpha_sigma2"])
@pytest.mark.parametrize("form", ["x0", "sds"])
def test_distillation_takes_timesteps_and_noise_from_the_cpu(form: Any, weighting: Any) -> None:
    distilled = run(
        score_distillation(
            elsewhere(2, 3, 64, 64),
            condition=Condition(elsewhere(2, 1, 1)),
            guidance=Guidance(scale=1),
            schedule=SCHEDULE,
            t=torch.tensor([100, 500]),
            noise=torch.zeros(2, *SHAPE),
            form=form,
            weighting=weighting,
        ),
        answer,
    )
    assert distilled.gradient.device.type == "meta"
