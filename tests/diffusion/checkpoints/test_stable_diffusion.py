"""Folders of Stable Diffusion's structure, written by diffusers: the same networks, the same pictures from the same noise."""

from typing import Any

import diffusers
import pytest
import torch

from diffusion.prior import Prior
from diffusion.requests import DecodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS
from tests.diffusion.checkpoints.published import MODELS, Saved

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)

PROMPTS = ["a photo of an astronaut riding a horse on mars", "Über-cute corgi, 8k, trending on artstation (masterpiece)"]
SCHEDULERS = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, saved: Saved) -> tuple[str, Any, Prior]:
    """The name, diffusers' pipeline and our prior, from one folder."""
    pipeline, folder = saved(request.param)
    return request.param, pipeline, Prior.load(f"{folder}?prompt=plain")


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Absolute closeness after both are scaled to a largest value of one."""
    unit = theirs.abs().max()
    torch.testing.assert_close(ours / unit, theirs / unit, rtol=0, atol=tolerance)


@torch.no_grad()
def test_text_equals_diffusers(pair: tuple[str, Any, Prior]) -> None:
    model, pipeline, prior = pair
    states, added = prior.encode_text(PROMPTS)
    if model == "sdxl":
        their_states, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPTS, device="cpu")
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]]).expand(2, -1)
        their_added, negative_added = (torch.cat([part, sizes], dim=1) for part in (pooled, negative_pooled))
        torch.testing.assert_close(added, their_added, rtol=0, atol=3e-6)
    else:
        their_states, negative = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
        negative_added = None
    torch.testing.assert_close(states, their_states, rtol=0, atol=3e-6)
    expected = prior.unet.project_context(negative, negative_added).packed()
    torch.testing.assert_close(prior.condition(PROMPTS).negative, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-10)], ids=["float32", "float64"])
@torch.no_grad()
def test_networks_equal_diffusers(pair: tuple[str, Any, Prior], dtype: torch.dtype, tolerance: float) -> None:
    model, pipeline, prior = pair
    prior.unet.to(dtype), prior.autoencoder.to(dtype), pipeline.unet.to(dtype), pipeline.vae.to(dtype)
    width = prior.unet.config.cross_attention_dim
    x, states = torch.randn(2, 4, 8, 8, dtype=dtype), torch.randn(2, 77, width, dtype=dtype)
    t, added, conditions = torch.tensor([1, 900]), None, None
    if model == "sdxl":
        added = torch.cat([torch.randn(2, 48), torch.tensor([[64.0, 96, 0, 16, 64, 64]]).expand(2, -1)], dim=1).to(dtype)
        conditions = {"text_embeds": added[:, :-6], "time_ids": added[:, -6:]}
    theirs = pipeline.unet(x, t, states, added_cond_kwargs=conditions).sample
    close(prior.unet(x, t, states, added), theirs, tolerance)
    close(prior.unet(x, t, prior.unet.project_context(states, added)), theirs, tolerance)

    images = torch.rand(1, 3, 32, 48, dtype=dtype)
    factor = pipeline.vae.config.scaling_factor
    mean = pipeline.vae.encode(2 * images - 1).latent_dist.mean
    close(prior.encode(images) / factor, mean, tolerance)
    decoded = pipeline.vae.decode(x / factor).sample
    close(2 * prior.autoencoder.decode(x) - 1, decoded, tolerance)
    prior.unet.float(), prior.autoencoder.float(), pipeline.unet.float(), pipeline.vae.float()


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@torch.no_grad()
def test_pictures_equal_diffusers(pair: tuple[str, Any, Prior], name: str) -> None:
    model, pipeline, prior = pair
    if model == "sd2-v" and name == "pndm":
        pytest.skip("diffusers adds up v of different timesteps; ours is compared with the exact flow instead")
    cls, options = SCHEDULERS[name]
    pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **options)
    latents = torch.randn(2, 4, 8, 8)
    size = {"height": 64, "width": 64}
    theirs = pipeline(PROMPTS, latents=latents, num_inference_steps=5, guidance_scale=5.0, output_type="pt", **size).images
    timesteps = torch.as_tensor(pipeline.scheduler.timesteps).long().unique().flip(0)
    sampler = SAMPLERS[name](
        latents,
        schedule=prior.schedule,
        timesteps=timesteps,
        condition=prior.condition(PROMPTS),
        guidance=Guidance(scale=5.0),
    )
    ours = prior.answer(DecodeRequest(run(sampler, prior.answer)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
