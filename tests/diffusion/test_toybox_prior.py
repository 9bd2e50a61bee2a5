"""The prior that ships: within its size limits, read alike by diffusers and by us, and told the colours it is asked for."""

import numpy as np
import pytest
import torch

from diffusion.prior import TOYBOX, Prior
from diffusion.requests import DecodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS
from diffusion.seeding import normal_rows, stream
from diffusion.text.clip import load_clip
from nerf3d.toybox.words import COLOURS


@pytest.fixture(scope="module")
def prior() -> Prior:
    return Prior.load("toybox")


def draw(prior: Prior, prompts: list[str], latents: torch.Tensor, *, steps: int, scale: float) -> torch.Tensor:
    sampler = SAMPLERS["ddim"](
        latents,
        schedule=prior.schedule,
        timesteps=prior.schedule.timesteps(steps),
        condition=prior.condition(prompts),
        guidance=Guidance(scale=scale),
    )
    return prior.answer(DecodeRequest(run(sampler, prior.answer)))


def start(prior: Prior, count: int) -> torch.Tensor:
    return normal_rows(prior.latent_shape, [stream(0, "test", index) for index in range(count)])


def test_its_files_are_small() -> None:
    sizes = [path.stat().st_size for path in TOYBOX.rglob("*") if path.is_file()]
    assert max(sizes) <= 16 * 2**20
    assert sum(sizes) <= 48 * 2**20


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_diffusers_draws_the_same_pictures(prior: Prior) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(str(TOYBOX))
    pipeline.set_progress_bar_config(disable=True)
    prompts = ["a red mushroom with a white stem, front view", "a yellow duck, left side view from above"]
    latents = start(prior, 2)
    options = {"num_inference_steps": 10, "guidance_scale": 4.0, "height": 64, "width": 64, "output_type": "pt"}
    theirs = pipeline(prompts, latents=latents, **options)
    ours = draw(prior, prompts, latents, steps=10, scale=4.0)
    psnr = -10 * (ours - theirs.images).square().mean().log10()
    assert psnr > 40


def test_the_object_has_the_colour_it_is_asked_for(prior: Prior) -> None:
    colours = ["red", "yellow", "green", "blue", "purple", "white", "black", "pink"]
    pictures = draw(prior, [f"a {colour} egg, front view" for colour in colours], start(prior, 8), steps=15, scale=4.0)
    middle = pictures[:, :, 24:44, 26:38].mean(dim=(2, 3))
    table = torch.tensor([COLOURS[colour] for colour in colours])
    # Lit colours are darker than the named ones, so directions are compared, and brightness for the greys alone.
    distances = torch.cdist(middle, table * 0.85)
    named = [colours[i] for i in distances.argmin(dim=1)]
    assert np.mean([a == b for a, b in zip(named, colours, strict=True)]) >= 0.75


def test_its_towers_score_pictures(prior: Prior) -> None:
    towers = load_clip(TOYBOX / "clip", text=prior.text_encoder)
    judge = load_clip(TOYBOX / "judge")
    for clip in (towers, judge):
        vectors = clip.encode_image(torch.rand(2, 3, 64, 64))
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))


def test_half_precision_is_an_option_of_the_name_and_shows_little(prior):
    half = Prior.load("toybox?dtype=bfloat16")
    assert half.name == prior.name and half.weights_hash != prior.weights_hash
    x_t = normal_rows(prior.latent_shape, [stream(0, "x_t", row) for row in range(2)])
    t, prompts = torch.tensor([300, 900]), ["a red cup", ""]
    with torch.no_grad():
        exact, rounded = (model.predict(x_t, t, model.condition(prompts).tokens) for model in (prior, half))
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    assert float((rounded - exact).square().mean() / exact.square().mean()) < 1e-4


def test_pictures_do_not_depend_on_the_number_of_threads_but_for_rounding(prior):
    pictures = {}
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        drawn = draw(prior, ["a red egg", "a blue cup"], start(prior, 2), steps=2, scale=4.0)
        gradient = prior.encoder_gradient(drawn, torch.ones(2, *prior.latent_shape))
        if threads in pictures:
            assert torch.equal(pictures[threads][0], drawn) and torch.equal(pictures[threads][1], gradient)
        pictures[threads] = drawn, gradient
    torch.set_num_threads(1)
    for one, two in zip(pictures[1], pictures[2], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))
