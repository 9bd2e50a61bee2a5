"""Whole pictures of folders that diffusers wrote, drawn through the product with the timesteps that it takes itself.

In float64 with DDIM or LCM, whose table is given to diffusers in float64 too, pictures are equal to 1e-8. In float32 they
are at most twice as far apart as diffusers' own pictures are with one torch thread and with two. diffusers draws latents of a
picture from their distribution; both take its mean here.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
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
SIZES = [(64, 64), (96, 40)]
CASES = [("float64", SIZES[0]), ("float64", SIZES[1]), ("float32", SIZES[1])]
STEPS = 4
EDITING_MODULES = [
    *(
        f"diffusers.pipelines.stable_diffusion{xl}.pipeline_stable_diffusion{xl}_{kind}"
        for xl in ("", "_xl")
        for kind in ("img2img", "inpaint")
    ),
    "diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_img2img",
]
EXACT = {"float32": torch.float32, "float64": torch.float64}


def root_mean_square(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def check_as_near_as_diffusers_to_itself(ours: Tensor, draw_theirs: Callable[[], Tensor]) -> None:
    """To 1e-8 in float64; in float32 the root mean square of the difference is at most twice that between thread counts."""
    theirs = draw_theirs()
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    if ours.dtype == torch.float64:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
        return
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    torch.set_num_threads(2)
    again = draw_theirs()
    torch.set_num_threads(1)
    assert root_mean_square(ours - theirs) <= 2 * root_mean_square(again - theirs)


def exact_ddim(pipeline: Any, prior: Prior, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDIM on both sides; see `exact`."""
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    exact(pipeline, prior, dtype, monkeypatch)


def exact(pipeline: Any, prior: Prior, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides in one precision, and the mean instead of a draw from the autoencoder."""
    pipeline.scheduler.alphas_cumprod = prior.schedule.alphas_cumprod
    pipeline.scheduler.final_alpha_cumprod = torch.tensor(prior.schedule.final_alphas_cumprod, dtype=torch.float64)
    for part in (prior.unet, prior.autoencoder, prior.text_encoder, prior.text_encoder_2):
        if part is not None:
            part.to(dtype)
    prior.text_cache.clear()
    pipeline.to(dtype)
    for place in EDITING_MODULES:
        monkeypatch.setattr(f"{place}.retrieve_latents", lambda encoded, **_: encoded.latent_dist.mean)


@contextlib.contextmanager
def drawn_with(pipeline: Any, monkeypatch: pytest.MonkeyPatch, start: Tensor) -> Iterator[None]:
    """The pipeline's starting noise is this; afterwards it is in float32 again, for the next test."""
    before = pipeline.scheduler
    for place in EDITING_MODULES:
        monkeypatch.setattr(f"{place}.randn_tensor", lambda *_, **__: start)
    yield
    pipeline.scheduler = before
    pipeline.to(torch.float32)


def editing(pipeline: Any, kind: str) -> Any:
    """diffusers' pipeline of the same networks that begins with a picture."""
    family = "StableDiffusionXL" if hasattr(pipeline, "text_encoder_2") else "StableDiffusion"
    parts = dict(pipeline.components)
    if family == "StableDiffusionXL":
        pipeline.vae.register_to_config(force_upcast=False)  # it would encode in float32
        made = getattr(diffusers, f"{family}{kind}Pipeline")(**parts)
    else:
        made = getattr(diffusers, f"{family}{kind}Pipeline")(**parts, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def noise(dtype: torch.dtype, size: tuple[int, int] = SIZES[0]) -> Tensor:
    return torch.randn(2, 4, size[0] // 8, size[1] // 8, generator=torch.manual_seed(3)).to(dtype)


def pictures(dtype: torch.dtype, size: tuple[int, int] = SIZES[0]) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.manual_seed(4)).to(dtype)


def block_masks(dtype: torch.dtype, size: tuple[int, int]) -> Tensor:
    """Each latent's place repainted or kept as a whole."""
    coarse = torch.rand(2, 1, size[0] // 8, size[1] // 8, generator=torch.manual_seed(5)) > 0.5
    return torch.nn.functional.interpolate(coarse.to(dtype), size)


def sampling(
    prior: Prior, name: str, num_steps: int = STEPS, *, scale: float = 5.0, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    return {
        "schedule": prior.schedule,
        "timesteps": timesteps_for(name, prior.schedule, num_steps, spacing="leading"),
        "condition": prior.condition(PROMPTS, size=size),
        "guidance": Guidance(scale=scale),
    }


def options(size: tuple[int, int], scale: float = 5.0) -> dict[str, Any]:
    """What diffusers' pipelines are told."""
    height, width = size
    return {"num_inference_steps": STEPS, "guidance_scale": scale, "output_type": "pt", "height": height, "width": width}


@pytest.fixture(params=sorted(EXACT))
def precision(request: pytest.FixtureRequest) -> torch.dtype:
    return EXACT[request.param]


@pytest.mark.parametrize(("precision", "size"), CASES, indirect=["precision"])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_text_to_image(
    model: str, size: tuple[int, int], saved: Saved, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = precision
    pipeline, folder = saved(model)
    prior = Prior.load(folder)
    with drawn_with(pipeline, monkeypatch, noise(dtype, size)):
        exact_ddim(pipeline, prior, dtype, monkeypatch)
        drawing = SAMPLERS["ddim"](noise(dtype, size), **sampling(prior, "ddim", size=size))
        ours = prior.answer(DecodeRequest(run(drawing, prior.answer)))
        assert ours.shape == (2, 3, *size)
        check_as_near_as_diffusers_to_itself(
            ours, lambda: pipeline(PROMPTS, latents=noise(dtype, size), **options(size)).images
        )


@pytest.mark.parametrize(("precision", "size"), CASES, indirect=["precision"])
@pytest.mark.parametrize("kind", ["Img2Img", "Inpaint"])
@pytest.mark.parametrize("model", ["sd15", "sd2-v", "sdxl"])
@torch.no_grad()
def test_from_a_picture(
    model: str,
    kind: str,
    size: tuple[int, int],
    saved: Saved,
    precision: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Image to image, and inpainting by putting kept latents back at every step; there kept pixels are the picture's own."""
    dtype = precision
    pipeline, folder = saved(model)
    prior = Prior.load(folder)
    masks = block_masks(dtype, size) if kind == "Inpaint" else None
    with drawn_with(pipeline, monkeypatch, noise(dtype, size)):
        exact_ddim(pipeline, prior, dtype, monkeypatch)
        theirs_of = editing(pipeline, kind)
        given = {} if masks is None else {"mask_image": masks}
        rest = options(size) if kind == "Inpaint" else {**options(size), "height": None, "width": None}
        rest = {name: value for name, value in rest.items() if value is not None}
        drawing = image_to_image(
            pictures(dtype, size),
            sampler=SAMPLERS["ddim"],
            strength=0.5,
            start_noise=noise(dtype, size),
            masks=masks,
            **sampling(prior, "ddim", size=size),
        )
        ours = run(drawing, prior.answer)

        def draw_theirs() -> Tensor:
            theirs = theirs_of(PROMPTS, image=pictures(dtype, size), strength=0.5, **given, **rest).images
            return theirs if masks is None else torch.where(masks > 0, theirs, pictures(dtype, size))

        check_as_near_as_diffusers_to_itself(ours, draw_theirs)


@pytest.mark.parametrize(("strength", "size"), [(0.5, SIZES[0]), (1.0, SIZES[0]), (0.5, SIZES[1])])
@torch.no_grad()
def test_inpainting_with_a_network_that_sees_the_mask(
    strength: float,
    size: tuple[int, int],
    saved: Saved,
    precision: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the picture is repainted; the other pixels are put back, which diffusers' pipeline leaves to the caller."""
    dtype = precision
    pipeline, folder = saved("inpainting")
    prior = Prior.load(folder)
    assert prior.sees_mask and prior.latent_shape == (4, 8, 8) and prior.input_shape == (9, 8, 8)
    masks, given = block_masks(dtype, size), pictures(dtype, size)
    with drawn_with(pipeline, monkeypatch, noise(dtype, size)):
        exact_ddim(pipeline, prior, dtype, monkeypatch)
        drawing = image_to_image(
            given,
            sampler=SAMPLERS["ddim"],
            strength=strength,
            start_noise=noise(dtype, size),
            masks=masks,
            sees_mask=True,
            **sampling(prior, "ddim", size=size),
        )

        def draw_theirs() -> Tensor:
            theirs = pipeline(PROMPTS, image=given, mask_image=masks, strength=strength, **options(size)).images
            return torch.where(masks > 0, theirs, given)

        check_as_near_as_diffusers_to_itself(run(drawing, prior.answer), draw_theirs)


@torch.no_grad()
def test_a_network_that_sees_a_mask_draws_from_noise_with_all_of_it_masked(saved: Saved) -> None:
    prior = Prior.load(saved("inpainting")[1])
    condition = run(with_mask(prior.condition(PROMPTS), torch.full((2, 3, 64, 64), 0.5), None), prior.answer)
    assert condition.channels is not None and condition.channels.shape == (2, 5, 8, 8)
    assert bool((condition.channels[:, 0] == 1).all())
    grey = prior.encode(torch.full((2, 3, 64, 64), 0.5))
    torch.testing.assert_close(condition.channels[:, 1:], grey, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["text", "Img2Img"])
@pytest.mark.parametrize(("scale", "size"), [(8.5, SIZES[0]), (3.0, SIZES[1])])
@torch.no_grad()
def test_latent_consistency(
    scale: float, size: tuple[int, int], kind: str, precision: torch.dtype, saved: Saved, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guidance scale goes into the network, and no unconditional row is computed.

    Of a picture diffusers takes four steps from the strength on; told the four of the whole list, it leaves out the first two.
    """
    pipeline, folder = saved("lcm")
    prior = Prior.load(folder)
    start = noise(precision, size)
    steps = [torch.randn(start.shape, generator=torch.manual_seed(10 + i)).to(precision) for i in range(3)]
    timesteps = timesteps_for("lcm", prior.schedule, 4)
    with drawn_with(pipeline, monkeypatch, start):
        exact(pipeline, prior, precision, monkeypatch)
        # Which diffusers computes of whole numbers, in float32.
        scalings = pipeline.scheduler.get_scalings_for_boundary_condition_discrete
        monkeypatch.setattr(
            pipeline.scheduler, "get_scalings_for_boundary_condition_discrete", lambda t: scalings(t.to(precision))
        )
        condition, guidance = prior.told_scale(prior.condition(PROMPTS), Guidance(scale=scale))
        assert guidance.scale == 1 and condition.negative is None
        rest = {"schedule": prior.schedule, "timesteps": timesteps, "condition": condition, "guidance": guidance}
        if kind == "text":
            latents = run(SAMPLERS["lcm"](start, noise=steps.__getitem__, **rest), prior.answer)
            ours = prior.answer(DecodeRequest(latents))
        else:
            told = {"sampler": SAMPLERS["lcm"], "strength": 0.5, "start_noise": start, "noise": steps.__getitem__}
            ours = run(image_to_image(pictures(precision, size), **told, **rest), prior.answer)

        def draw_theirs() -> Tensor:
            waiting = iter(steps)
            monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, **__: next(waiting))
            if kind == "text":
                return pipeline(PROMPTS, latents=start, **options(size, scale)).images
            editing = diffusers.LatentConsistencyModelImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
            editing.set_progress_bar_config(disable=True)
            told = {"image": pictures(precision, size), "strength": 0.5, "timesteps": timesteps.tolist()}
            return editing(PROMPTS, **told, guidance_scale=scale, output_type="pt").images

        check_as_near_as_diffusers_to_itself(ours, draw_theirs)


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
