"""Whole pictures of folders that diffusers wrote, drawn through the product with the timesteps that it takes itself.

In float64 with DDIM, whose table is given to diffusers in float64 too, pictures are equal to 1e-8; in float32 they lie as
close as rounding lets them. diffusers draws latents of a picture from their distribution; both take its mean here.
"""

import dataclasses
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diffusion.prior import Prior
from diffusion.requests import DecodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS, image_to_image, timesteps_for, with_mask
from tests.diffusion.checkpoints.published import MODELS, Saved

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)

PROMPTS = ["a photo of an astronaut riding a horse on mars", "a corgi, 8k"]
SIZE = {"height": 64, "width": 64}
SHAPE = (2, 4, 8, 8)
STEPS = 4
EXACT = {"float32": (torch.float32, 2e-5), "float64": (torch.float64, 1e-8)}


def exact_ddim(pipeline: Any, prior: Prior, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDIM on both sides in one precision, and the mean instead of a draw from the autoencoder."""
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.scheduler.alphas_cumprod = prior.schedule.alphas_cumprod
    pipeline.scheduler.final_alpha_cumprod = torch.tensor(prior.schedule.final_alphas_cumprod, dtype=torch.float64)
    for part in (prior.unet, prior.autoencoder, prior.text_encoder, prior.text_encoder_2):
        if part is not None:
            part.to(dtype)
    prior.text_cache.clear()
    pipeline.to(dtype)
    for name in ("inpaint", "img2img"):
        path = f"diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_{name}.retrieve_latents"
        monkeypatch.setattr(path, lambda encoded, **_: encoded.latent_dist.mean)


def noise(dtype: torch.dtype) -> Tensor:
    return torch.randn(SHAPE, generator=torch.manual_seed(3)).to(dtype)


def pictures(dtype: torch.dtype) -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.manual_seed(4)).to(dtype)


def sampling(prior: Prior, name: str, num_steps: int = STEPS, *, scale: float = 5.0) -> dict[str, Any]:
    return {
        "schedule": prior.schedule,
        "timesteps": timesteps_for(name, prior.schedule, num_steps, spacing="leading"),
        "condition": prior.condition(PROMPTS),
        "guidance": Guidance(scale=scale),
    }


@pytest.fixture(params=sorted(EXACT))
def precision(request: pytest.FixtureRequest) -> tuple[torch.dtype, float]:
    return EXACT[request.param]


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_text_to_image(model: str, saved: Saved, precision: tuple[torch.dtype, float], monkeypatch: pytest.MonkeyPatch) -> None:
    dtype, tolerance = precision
    pipeline, folder = saved(model)
    prior = Prior.load(folder)
    before = pipeline.scheduler
    exact_ddim(pipeline, prior, dtype, monkeypatch)
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "pt", **SIZE}
    theirs = pipeline(PROMPTS, latents=noise(dtype), **options).images
    ours = prior.answer(DecodeRequest(run(SAMPLERS["ddim"](noise(dtype), **sampling(prior, "ddim")), prior.answer)))
    pipeline.scheduler = before
    pipeline.to(torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("strength", [0.5, 1.0])
@torch.no_grad()
def test_inpainting_with_a_network_that_sees_the_mask(
    strength: float, saved: Saved, precision: tuple[torch.dtype, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the picture is repainted; the other pixels are put back, which diffusers' pipeline leaves to the caller."""
    dtype, tolerance = precision
    pipeline, folder = saved("inpainting")
    prior = Prior.load(folder)
    assert prior.sees_mask and prior.latent_shape == (4, 8, 8) and prior.input_shape == (9, 8, 8)
    before = pipeline.scheduler
    exact_ddim(pipeline, prior, dtype, monkeypatch)
    masks = (torch.rand(2, 1, 8, 8, generator=torch.manual_seed(5)) > 0.5).to(dtype)
    masks = torch.nn.functional.interpolate(masks, (64, 64))
    path = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint.randn_tensor"
    monkeypatch.setattr(path, lambda *_, **__: noise(dtype))
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0, "output_type": "pt", **SIZE}
    theirs = pipeline(PROMPTS, image=pictures(dtype), mask_image=masks, strength=strength, **options).images
    pipeline.scheduler = before
    pipeline.to(torch.float32)
    drawing = image_to_image(
        pictures(dtype),
        sampler=SAMPLERS["ddim"],
        strength=strength,
        start_noise=noise(dtype),
        masks=masks,
        sees_mask=True,
        **sampling(prior, "ddim"),
    )
    expected = torch.where(masks > 0, theirs, pictures(dtype))
    torch.testing.assert_close(run(drawing, prior.answer), expected, rtol=0, atol=tolerance)


@torch.no_grad()
def test_a_network_that_sees_a_mask_draws_from_noise_with_all_of_it_masked(saved: Saved) -> None:
    prior = Prior.load(saved("inpainting")[1])
    condition = run(with_mask(prior.condition(PROMPTS), torch.full((2, 3, 64, 64), 0.5), None), prior.answer)
    assert condition.channels is not None and condition.channels.shape == (2, 5, 8, 8)
    assert bool((condition.channels[:, 0] == 1).all())
    grey = prior.encode(torch.full((2, 3, 64, 64), 0.5))
    torch.testing.assert_close(condition.channels[:, 1:], grey, rtol=0, atol=0)


@pytest.mark.parametrize("scale", [8.5, 3.0])
@torch.no_grad()
def test_latent_consistency(scale: float, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guidance scale goes into the network, and no unconditional row is computed."""
    pipeline, folder = saved("lcm")
    prior = Prior.load(folder)
    steps = [torch.randn(SHAPE, generator=torch.manual_seed(10 + i)) for i in range(3)]
    waiting = iter(steps)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: next(waiting))
    options = {"num_inference_steps": 4, "guidance_scale": scale, "output_type": "pt", **SIZE}
    theirs = pipeline(PROMPTS, latents=noise(torch.float32), **options).images
    condition, guidance = prior.told_scale(prior.condition(PROMPTS), Guidance(scale=scale))
    assert guidance.scale == 1 and condition.negative is None
    timesteps = timesteps_for("lcm", prior.schedule, 4)
    rest = {"schedule": prior.schedule, "timesteps": timesteps, "condition": condition, "guidance": guidance}
    latents = run(SAMPLERS["lcm"](noise(torch.float32), noise=steps.__getitem__, **rest), prior.answer)
    torch.testing.assert_close(prior.answer(DecodeRequest(latents)), theirs, rtol=0, atol=2e-5)


def test_a_network_that_is_told_its_scale_differs_with_it(saved: Saved) -> None:
    prior = Prior.load(saved("lcm")[1])
    plain = prior.condition(PROMPTS)
    low, high = (prior.told_scale(plain, Guidance(scale=scale))[0].tokens for scale in (1.0, 8.5))
    torch.testing.assert_close(high, plain.tokens, rtol=0, atol=1e-6)
    assert not torch.equal(low, high) and torch.equal(low[:, :-1], high[:, :-1])
    untold = Prior.load(saved("sd15")[1])
    condition = untold.condition(PROMPTS)
    assert untold.told_scale(condition, Guidance(scale=3)) == (condition, Guidance(scale=3))


def test_zero_snr_files_begin_at_the_last_timestep() -> None:
    from pathlib import Path

    from diffusion.checkpoints.single_file import schedule_of

    schedule = schedule_of({"v_pred", "ztsnr"}, Path("a.safetensors"), "v_prediction")
    for name in SAMPLERS:
        assert int(timesteps_for(name, schedule, 28)[0]) == 999, name
    assert dataclasses.replace(schedule, rescale_betas_zero_snr=False).timesteps(28)[0] == 999


@pytest.mark.parametrize(("height", "width"), [(9, 7), (12, 8), (5, 11)])
@pytest.mark.parametrize("model", ["sd15", "sdxl"])
@torch.no_grad()
def test_networks_at_sizes_that_do_not_halve(model: str, height: int, width: int, saved: Saved) -> None:
    """Latents of multiples of one pixel, that is pictures of multiples of 8: upsamplers go to the skip's size."""
    pipeline, folder = saved(model)
    prior = Prior.load(folder)
    prior.unet.double(), pipeline.unet.double()
    x = torch.randn(1, 4, height, width, generator=torch.manual_seed(1)).double()
    states = torch.randn(1, 77, prior.unet.config.cross_attention_dim, generator=torch.manual_seed(2)).double()
    added, conditions = None, None
    if model == "sdxl":
        added = torch.cat([torch.randn(1, 48), torch.tensor([[64.0, 96, 0, 16, 64, 96]])], dim=1).double()
        conditions = {"text_embeds": added[:, :-6], "time_ids": added[:, -6:]}
    theirs = pipeline.unet(x, torch.tensor([500]), states, added_cond_kwargs=conditions).sample
    ours = prior.unet(x, torch.tensor([500]), states, added)
    pipeline.unet.float()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
