"""GLIDE against laws whose conditional denoiser is known: guidance, inpainting, upsampling, the cascade, CLIP."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.classifier_guidance import gradient_of
from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, SampleRequest
from diffusion.models.ddpm import DDPM, DDPMConfig
from diffusion.models.glide import Glide
from diffusion.models.glide_inpainting import NOTHING_KNOWN, GlideInpainting, random_masks
from diffusion.models.glide_upsampler import GlideUpsampler, GlideUpsamplerConfig, conditioning
from diffusion.models.noisy_clip import NoisyClip, NoisyClipConfig
from diffusion.models.text_to_pixels import TextToPixels, TextToPixelsConfig
from diffusion.networks.mlp import MLPConfig
from diffusion.networks.noisy_encoder import NoisyEncoderConfig
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.parameterisation import Prediction
from diffusion.prior import Prior
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, stream, uniform
from diffusion.text.frozen_tower import FrozenTower

pytestmark = pytest.mark.oracle

SMALL = PixelUNetConfig(sample_size=8, block_out_channels=(16, 16), attention_levels=(False, True))
FOUR_PIXELS = PixelUNetConfig(sample_size=2, in_channels=1, out_channels=1, block_out_channels=(16,), attention_levels=(False,))
PROMPTS = ("a red car", "a blue chair", "a green tree")

Denoiser = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""x_t (B, 4) float64, alpha (B,), tokens, extra -> E[x0 | x_t], (B, 4)."""


def glide(network: PixelUNetConfig = SMALL, **config: Any) -> Glide:
    torch.manual_seed(0)
    return Glide(TextToPixelsConfig(network=network, **config)).eval()


def inpainting(network: PixelUNetConfig = SMALL) -> GlideInpainting:
    torch.manual_seed(0)
    return GlideInpainting(TextToPixelsConfig(network=network)).eval()


def upsampler(network: PixelUNetConfig = SMALL, **config: Any) -> GlideUpsampler:
    torch.manual_seed(0)
    return GlideUpsampler(GlideUpsamplerConfig(network=network, **config)).eval()


def noisy_clip(size: int = 8, **config: Any) -> NoisyClip:
    torch.manual_seed(1)
    encoder = NoisyEncoderConfig(sample_size=size, block_out_channels=(16, 32))
    return NoisyClip(NoisyClipConfig(network=encoder, embed_dim=16, **config)).eval()


def answers(model: TextToPixels, denoiser: Denoiser) -> None:
    """The model as if it were trained perfectly: its network's output is that of `denoiser`."""
    schedule = model.config.schedule

    def output(x_t: Tensor, t: Tensor, tokens: Tensor, extra: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = denoiser(x_t.double().flatten(1), alpha, tokens, extra.double()).reshape(x_t.shape)
        return Prediction.from_output(x0, x_t.double(), alpha, sigma, "sample").as_kind(schedule.prediction_type).to(x_t)

    model.output = output  # type: ignore[method-assign]
    model.network.project_context = lambda states: states  # type: ignore[method-assign,assignment]


def gaussian_x0(x_t: Tensor, alpha: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """E[x0 | x_t] of N(mean, covariance), (B, D), for x_t (B, D), alpha (B,), mean (B, D) or (D,)."""
    a = alpha[:, None, None]
    total = a**2 * covariance + (1 - a**2) * torch.eye(len(covariance), dtype=torch.float64)
    away = torch.linalg.solve(total, (x_t - alpha[:, None] * mean)[..., None])
    return mean + (a * covariance @ away)[..., 0]


MEAN = torch.tensor([0.1, -0.1, 0.2, 0.0], dtype=torch.float64)
COVARIANCE = 0.03 * (0.3 * torch.eye(4) + 0.7).double() + torch.diag(torch.tensor([0.01, 0.0, 0.02, 0.0])).double()


# -- text and classifier-free guidance -----------------------------------------------------------------------------------


def test_the_tower_reads_as_the_prior_does_and_each_caption_alone() -> None:
    captions = [*PROMPTS, "", PROMPTS[0]]
    states = FrozenTower()(captions)
    torch.testing.assert_close(states.tokens, Prior.load().encode_text(captions)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(FrozenTower()([PROMPTS[1]]).pooled[0], states.pooled[1], rtol=0, atol=1e-5)
    ends = [(states.tokens[row] - states.pooled[row]).abs().sum(dim=-1).argmin().item() for row in range(5)]
    # Start, words, end.
    assert ends == [4, 4, 4, 1, 4]
    assert not states.tokens.requires_grad and not list(FrozenTower().parameters())


def test_a_model_of_another_tower_is_refused() -> None:
    saved = glide().state_dict()
    glide().load_state_dict(saved)
    saved["text.fingerprint"] = saved["text.fingerprint"].float().flip(0)
    with pytest.raises(DiffusionError, match="was trained with another text tower"):
        glide().load_state_dict(saved)


def test_guidance_scales_are_exact_and_one_needs_no_second_half() -> None:
    """Two Gaussians: the guided eps is affine in x_t, uncond + s (cond - uncond)."""
    model, asked = glide(FOUR_PIXELS), []
    empty = model.text([""]).tokens[0]

    def two_laws(x_t: Tensor, alpha: Tensor, tokens: Tensor, extra: Tensor) -> Tensor:
        asked.append(len(x_t))
        written = (tokens != empty).flatten(1).any(dim=1)[:, None]
        laws = [gaussian_x0(x_t, alpha, *law) for law in ((MEAN, COVARIANCE), (MEAN * 0, 0.1 * torch.eye(4).double()))]
        return torch.where(written, *laws)

    answers(model, two_laws)
    x_t, t = normal((3, 1, 2, 2), stream(0), dtype=torch.float64), torch.tensor([10, 500, 990])
    alpha, sigma = model.config.schedule.alpha(t), model.config.schedule.sigma(t)
    cond, uncond = (
        Prediction.from_output(gaussian_x0(x_t.flatten(1), alpha, *law).reshape(x_t.shape), x_t, alpha, sigma, "sample").eps
        for law in ((MEAN, COVARIANCE), (MEAN * 0, 0.1 * torch.eye(4).double()))
    )
    for scale in (0.0, 1.0, 3.0):
        answer = model.predictor(PROMPTS, scale, torch.zeros(3, 0, 2, 2))(x_t, t)
        torch.testing.assert_close(answer.eps, uncond + scale * (cond - uncond), rtol=1e-9, atol=1e-9)
    assert asked == [6, 3, 6]
    # A negative prompt takes the place of the empty one: now both halves are conditional.
    answer = model.predictor(PROMPTS, 3.0, torch.zeros(3, 0, 2, 2), "a pink pig")(x_t, t)
    torch.testing.assert_close(answer.eps, cond, rtol=1e-9, atol=1e-9)


def test_every_row_is_drawn_under_its_own_caption() -> None:
    """A point mass whose place the caption says is reached exactly, with and without guidance."""
    model = glide(FOUR_PIXELS)
    answers(model, lambda x_t, alpha, tokens, extra: tokens.double().flatten(1)[:, 500:504].clamp(-0.3, 0.3))
    places = model.text(PROMPTS).tokens.flatten(1)[:, 500:504].clamp(-0.3, 0.3).reshape(3, 1, 2, 2)
    assert (places[0] - places[1]).abs().max() > 0.1
    for sampler in ("ddpm", "ddim", "heun"):
        drawn = model.sample(SampleRequest((0, 1, 2), sampler=sampler, num_steps=5, prompts=PROMPTS))
        torch.testing.assert_close(drawn, places, rtol=0, atol=1e-4)
    empty = model.text([""]).tokens.flatten(1)[:, 500:504].clamp(-0.3, 0.3).reshape(1, 1, 2, 2)
    drawn = model.sample(SampleRequest((0, 1, 2), num_steps=5, prompts=PROMPTS, guidance_scale=2.0))
    torch.testing.assert_close(drawn, (2 * places - empty).clamp(-1, 1), rtol=0, atol=1e-4)


def test_dropped_captions_are_replaced_by_the_empty_one() -> None:
    read: list[str] = []

    class Listening(FrozenTower):
        def forward(self, captions: Any) -> Any:
            read.extend(captions)
            return super().forward(captions)

    for share in (0.0, 0.2, 1.0):
        model = glide(replace(SMALL, sample_size=2), text_dropout=share)
        model.text = Listening()
        read.clear()
        model.loss(Batch(torch.zeros(300, 3, 2, 2), captions=("a red car",) * 300), stream(0))
        assert abs(read.count("") / 300 - share) <= 4 * (share * (1 - share) / 300) ** 0.5
        assert read.count("") + read.count("a red car") == 300


# -- inpainting ------------------------------------------------------------------------------------------------------------

KNOWN = torch.tensor([1.0, 1.0, 0.0, 0.0]).reshape(1, 2, 2)


def known_law(picture: Tensor) -> tuple[Tensor, Tensor]:
    """p(x | first two pixels): means (B, 4) for pictures (B, 4), covariance (4, 4); the known ones have none."""
    gain = COVARIANCE[2:, :2] @ torch.linalg.inv(COVARIANCE[:2, :2])
    rest = MEAN[2:] + (picture[:, :2] - MEAN[:2]) @ gain.T
    covariance = torch.zeros(4, 4, dtype=torch.float64)
    covariance[2:, 2:] = COVARIANCE[2:, 2:] - gain @ COVARIANCE[:2, 2:]
    return torch.cat([picture[:, :2], rest], dim=1), covariance


def joint_pictures(count: int) -> Tensor:
    """(count, 1, 2, 2) from N(MEAN, COVARIANCE)."""
    z = normal((count, 4), stream(1, "pictures"), dtype=torch.float64)
    return (MEAN + z @ torch.linalg.cholesky(COVARIANCE).T).reshape(count, 1, 2, 2)


def distance_to_conditional(drawn: Tensor, pictures: Tensor) -> float:
    """Largest difference in mean, slope on the known pixels, and covariance, of the drawn pixels from p(. | known)."""
    known, unknown = pictures.flatten(1)[:, :2] - MEAN[:2], drawn.double().flatten(1)[:, 2:] - MEAN[2:]
    slope = torch.linalg.lstsq(known, unknown).solution.T
    left = unknown - known @ slope.T
    exact_slope = COVARIANCE[2:, :2] @ torch.linalg.inv(COVARIANCE[:2, :2])
    spread = (left.T @ left / len(left) - known_law(pictures.flatten(1))[1][2:, 2:]) / COVARIANCE[2, 2]
    return float(torch.stack([(slope - exact_slope).abs().max(), left.mean(dim=0).abs().max(), spread.abs().max()]).max())


def test_the_exact_inpainting_model_draws_the_conditional_law_and_overwriting_does_not() -> None:
    pictures = joint_pictures(3000)
    request = SampleRequest(
        tuple(range(3000)), sampler="dpmpp_2m", num_steps=100, options={"image": pictures, "mask": KNOWN, "clip_x0": False}
    )
    told = inpainting(FOUR_PIXELS)

    def conditional(x_t: Tensor, alpha: Tensor, tokens: Tensor, extra: Tensor) -> Tensor:
        # [mask * picture, mask]
        assert torch.equal(extra[:, 1], KNOWN.double().expand(len(extra), 2, 2))
        return gaussian_x0(x_t, alpha, *known_law(extra[:, 0].flatten(1)))

    answers(told, conditional)
    drawn = told.sample(request)
    torch.testing.assert_close(drawn[:, :, 0], pictures[:, :, 0].clamp(-1, 1).float(), rtol=0, atol=0)
    assert distance_to_conditional(drawn, pictures) < 0.05

    untold = glide(FOUR_PIXELS)
    answers(untold, lambda x_t, alpha, tokens, extra: gaussian_x0(x_t, alpha, MEAN, COVARIANCE))
    overwritten = untold.sample(request)
    torch.testing.assert_close(overwritten[:, :, 0], pictures[:, :, 0].float(), rtol=0, atol=0)
    assert distance_to_conditional(overwritten, pictures) > 0.1


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp_2m"])
def test_kept_pixels_are_kept_exactly_by_any_network(sampler: str) -> None:
    picture = 2 * uniform((3, 8, 8), stream(2)) - 1
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, :5] = 1
    for model in (inpainting(), glide()):
        drawn = model.sample(
            SampleRequest((0, 1), sampler=sampler, num_steps=3, prompts=PROMPTS[:2], options={"image": picture, "mask": mask})
        )
        kept = mask.bool().expand_as(drawn)
        assert torch.equal(drawn[kept], picture.expand_as(drawn)[kept])
        assert (drawn[~kept] - picture.expand_as(drawn)[~kept]).abs().mean() > 0.05


def test_the_inpainting_model_is_told_the_known_pixels_and_no_others() -> None:
    """[mask * picture, mask], in training with a mask for each picture and in sampling with the given one."""
    model, x = inpainting(), 0.5 + uniform((6, 3, 8, 8), stream(0)) / 2
    told = model.training_extra(Batch(x), stream(1))
    mask = told[:, 3:]
    assert 0 < mask.mean() < 1 and set(mask.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(told[:, :3], mask * x) and len({tuple(m.flatten().tolist()) for m in mask}) > 1

    heard: list[Tensor] = []
    output = model.output
    model.output = lambda x_t, t, tokens, extra: (heard.append(extra), output(x_t, t, tokens, extra))[1]  # type: ignore[method-assign]
    given = torch.zeros(1, 8, 8)
    given[:, 2:6, :5] = 1
    model.sample(SampleRequest((0, 1), num_steps=2, options={"image": x[:2], "mask": given}))
    model.sample(SampleRequest((0, 1), num_steps=2))
    assert torch.equal(heard[0], torch.cat([given * x[:2], given.expand(2, 1, 8, 8)], dim=1))
    assert not heard[2].any()


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_inpainting_model_begins_where_the_base_model_ended(patch_size: int) -> None:
    network = replace(SMALL, patch_size=patch_size)
    base, told = glide(network), inpainting(network)
    told.start_from(base)
    x_t, t, tokens = normal((2, 3, 8, 8), stream(3)), torch.tensor([100, 900]), base.text(PROMPTS[:2]).tokens
    extra = normal((2, 4, 8, 8), stream(4))
    torch.testing.assert_close(told.output(x_t, t, tokens, extra), base.output(x_t, t, tokens, x_t[:, :0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "happened", "expected"),
    [
        ({"patch_size": 2}, "its network.patch_size=2", "network.patch_size=1"),
        ({"block_out_channels": (32, 16)}, "its network.block_out_channels=[32, 16]", "network.block_out_channels=[16, 16]"),
    ],
)
def test_a_beginning_of_another_network_is_refused_by_its_settings(
    settings: dict[str, Any], happened: str, expected: str
) -> None:
    sentence = f"the weights of the glide do not fit: {happened}; expected {expected}, as in this glide_inpainting"
    with pytest.raises(DiffusionError, match=re.escape(sentence)):
        inpainting().start_from(glide(replace(SMALL, **settings)))


def test_random_masks_are_rectangles_erased_or_kept() -> None:
    masks = random_masks(2000, 16, stream(0))[:, 0]
    assert masks.shape == (2000, 16, 16) and set(masks.unique().tolist()) == {0.0, 1.0}
    nothing = (masks.flatten(1).sum(dim=1) == 0).double().mean().item()
    assert abs(nothing - NOTHING_KNOWN) < 4 * (NOTHING_KNOWN * (1 - NOTHING_KNOWN) / 2000) ** 0.5 + 0.01
    for mask in masks[:200]:
        # Either the ones or the zeros are one rectangle: the outer product of an interval of rows and one of columns.
        box = []
        for part in (mask, 1 - mask):
            rows, columns = part.amax(dim=1), part.amax(dim=0)
            box.append(torch.equal(part, rows[:, None] * columns) and _runs(rows) <= 1 and _runs(columns) <= 1)
        assert any(box)
    assert 0.3 < masks.mean() < 0.6


def _runs(line: Tensor) -> int:
    return int((line.diff(prepend=torch.zeros(1)) > 0).sum())


# -- upsampling and the cascade ----------------------------------------------------------------------------------------------


def test_the_conditioning_is_the_rounded_picture_enlarged_with_its_noise_and_level() -> None:
    small, noise = 2 * uniform((2, 3, 4, 4), stream(0)) - 1, normal((2, 3, 4, 4), stream(1))
    told = conditioning(small, torch.tensor([0.0, 0.1]), noise)
    assert told.shape == (2, 4, 8, 8)
    eight_bit = ((small + 1) * 127.5).round() / 127.5 - 1
    assert (eight_bit - small).abs().max() <= 0.5 / 127.5 + 1e-6
    torch.testing.assert_close(
        told[:1, :3], F.interpolate(eight_bit[:1], size=(8, 8), mode="bilinear", align_corners=False), rtol=0, atol=1e-6
    )
    noised = F.interpolate(eight_bit + 0.1 * noise, size=(8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(told[1, :3], noised[1], rtol=0, atol=1e-6)
    assert told[0, 3].unique().tolist() == [0.0] and told[1, 3].unique().tolist() == pytest.approx([0.1])


def test_training_tells_the_upsampler_the_mean_of_each_block_at_many_levels() -> None:
    large = 2 * uniform((400, 3, 8, 8), stream(0)) - 1
    told = upsampler(augmentation=0.2).training_extra(Batch(large), stream(1))
    level = told[:, 3, 0, 0]
    assert level.min() < 0.02 and 0.18 < level.max() <= 0.2 and abs(float(level.mean()) - 0.1) < 0.02
    clean = conditioning(F.avg_pool2d(large, 2), torch.zeros(400), torch.zeros(400, 3, 4, 4))
    noise = (told - clean)[:, :3].square().mean(dim=(1, 2, 3)).sqrt() / level
    # Bilinear enlargement by two keeps (.75^2 + .25^2) of white noise's variance in each direction, more at the edges.
    assert 0.6 < float(noise.median()) < 0.72


def test_the_exact_upsampler_draws_the_conditional_law() -> None:
    """Four pixels given their mean: what is drawn has that mean, and the covariance that is left."""
    total = torch.full((4,), 0.25, dtype=torch.float64)
    gain = COVARIANCE @ total / (total @ COVARIANCE @ total)
    covariance = COVARIANCE - torch.outer(gain, gain) * (total @ COVARIANCE @ total)
    model = upsampler(FOUR_PIXELS)

    def conditional(x_t: Tensor, alpha: Tensor, tokens: Tensor, extra: Tensor) -> Tensor:
        low = extra[:, 0].flatten(1).mean(dim=1)
        return gaussian_x0(x_t, alpha, MEAN + (low - MEAN.mean())[:, None] * gain, covariance)

    answers(model, conditional)
    small = F.avg_pool2d(joint_pictures(2000), 2).float()
    drawn = model.sample(
        SampleRequest(tuple(range(2000)), sampler="pndm", num_steps=100, options={"low_res": small, "clip_x0": False})
    ).double()
    rounded = ((small + 1) * 127.5).round() / 127.5 - 1
    torch.testing.assert_close(drawn.mean(dim=(1, 2, 3)), rounded.flatten().double(), rtol=0, atol=1e-4)
    left = drawn.flatten(1) - MEAN - (rounded.flatten().double() - MEAN.mean())[:, None] * gain
    assert left.mean(dim=0).abs().max() < 4 * (COVARIANCE[0, 0] / 2000) ** 0.5
    assert (left.T @ left / 2000 - covariance).abs().max() < 0.1 * covariance.diagonal().max()


def test_the_untrained_upsampler_enlarges_bilinearly() -> None:
    """x0 is the enlarged picture plus what the network adds, nothing at first, at every step of any sampler."""
    low = 1.8 * uniform((2, 3, 4, 4), stream(0)) - 0.9
    told = conditioning(low, torch.zeros(2), torch.zeros(2, 3, 4, 4))
    for sampler in ("ddim", "ddpm"):
        drawn = upsampler().sample(SampleRequest((0, 1), sampler=sampler, num_steps=4, options={"low_res": low}))
        torch.testing.assert_close(drawn, told[:, :3], rtol=0, atol=1e-4)


def test_the_cascade_is_the_base_model_and_then_the_upsampler() -> None:
    base, large = glide(), upsampler(replace(SMALL, sample_size=16))
    request = SampleRequest((4, 9), num_steps=4, prompts=PROMPTS[:2], guidance_scale=2.0)
    small = base.sample(request)
    cascade = base.sample(replace(request, options={"upsampler": large, "upsampler_steps": 3}))
    assert small.shape == (2, 3, 8, 8) and cascade.shape == (2, 3, 16, 16)

    heard: list[Tensor] = []
    output = large.output
    large.output = lambda x_t, t, tokens, extra: (heard.append(extra), output(x_t, t, tokens, extra))[1]  # type: ignore[method-assign]
    base.sample(replace(request, options={"upsampler": large, "upsampler_steps": 3}))
    assert len(heard) == 3
    torch.testing.assert_close(heard[0], conditioning(small, torch.zeros(2), torch.zeros(2, 3, 4, 4)[:, :, :1, :1]))


def test_the_same_seed_draws_the_same_picture_in_any_batch() -> None:
    """Through everything at once: guidance, CLIP, a known part, the upsampler with noise on the small picture."""
    base, large = glide(), upsampler(replace(SMALL, sample_size=16))
    mask = torch.zeros(1, 8, 8)
    mask[:, :3] = 1
    options: Mapping[str, Any] = {
        "clip": noisy_clip(),
        "upsampler": large,
        "upsampler_steps": 3,
        "augmentation": 0.05,
        "image": torch.zeros(3, 8, 8),
        "mask": mask,
    }
    together = base.sample(SampleRequest((3, 7, 11), num_steps=4, prompts=PROMPTS, guidance_scale=2.0, options=options))
    alone = base.sample(SampleRequest((7,), num_steps=4, prompts=PROMPTS[1:2], guidance_scale=2.0, options=options))
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    assert (together[0] - together[2]).abs().mean() > 0.05


# -- CLIP guidance -------------------------------------------------------------------------------------------------------------


class LinearTower(nn.Module):
    """f(x_t, t) = W x_t, whose normalised dot product has a gradient by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal((16, 192), stream(5)))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t.flatten(1) @ self.weight.T


def test_clip_guidance_is_the_gradient_of_the_dot_product() -> None:
    """grad exp(s) f/|f| . g = exp(s) W^T (g - u (u . g)) / |f|, u = f / |f|."""
    clip = noisy_clip()
    clip.image = LinearTower()  # type: ignore[assignment]
    x_t, t = normal((3, 3, 8, 8), stream(6)), torch.tensor([5, 300, 900])
    ours = gradient_of(clip.log_prob(PROMPTS))(x_t, t).flatten(1)
    with torch.no_grad():
        weight, texts = clip.image.weight, clip.encode_text(PROMPTS)
        f = x_t.flatten(1) @ weight.T
        u = F.normalize(f, dim=1)
        slope = (texts - u * (u * texts).sum(dim=1, keepdim=True)) / f.norm(dim=1, keepdim=True)
        torch.testing.assert_close(ours, slope @ weight / 0.07, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(clip.log_prob(PROMPTS)(x_t, t), (u * texts).sum(dim=1) / 0.07, rtol=1e-4, atol=1e-5)


def test_clip_gradient_is_the_finite_difference() -> None:
    clip = noisy_clip()
    x_t, t = normal((3, 3, 8, 8), stream(7)), torch.tensor([5, 300, 900])
    log_prob = clip.log_prob(PROMPTS)
    slope = gradient_of(log_prob)(x_t, t)
    direction, step = slope / slope.flatten(1).norm(dim=1)[:, None, None, None], 1e-2
    with torch.no_grad():
        difference = (log_prob(x_t + step * direction, t) - log_prob(x_t - step * direction, t)) / (2 * step)
    torch.testing.assert_close(difference, slope.flatten(1).norm(dim=1), rtol=0.01, atol=0)


def test_the_tower_hears_the_time() -> None:
    clip, x_t = noisy_clip(), normal((2, 3, 8, 8), stream(8))
    early, late = (clip.encode_image(x_t, torch.full((2,), t)) for t in (10, 900))
    assert (early - late).abs().max() > 1e-4


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_clip_guidance_climbs_and_scale_zero_changes_nothing(sampler: str) -> None:
    model, clip = glide(), noisy_clip()
    clip.image = LinearTower()  # type: ignore[assignment]
    request = SampleRequest((0, 1, 2), sampler=sampler, num_steps=20, prompts=PROMPTS)
    plain = model.sample(request)
    off = model.sample(replace(request, options={"clip": clip, "clip_scale": 0.0}))
    torch.testing.assert_close(off, plain, rtol=0, atol=1e-4)
    guided = model.sample(replace(request, options={"clip": clip, "clip_scale": 5.0}))
    score = clip.log_prob(PROMPTS)
    t = torch.zeros(3, dtype=torch.long)
    assert bool((score(guided, t) > score(plain, t) + 0.1).all())


# -- small trainings -----------------------------------------------------------------------------------------------------------


def train_on(model: Any, batch_of: Callable[[int], Batch], *, num_steps: int, rate: float = 3e-3) -> list[float]:
    """Adam, a batch a step; the losses."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for step in range(num_steps):
        loss, _ = model.loss(batch_of(step), stream(0, "train", step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def plain_pictures(step: int, size: int = 8) -> Batch:
    """Pictures of one random colour each."""
    colours = 1.6 * uniform((32, 3, 1, 1), stream(1, "colours", step)) - 0.8
    return Batch(colours.expand(32, 3, size, size), captions=("",) * 32)


def test_a_trained_inpainting_model_matches_the_known_part() -> None:
    model = inpainting(replace(SMALL, attention_levels=(False, False)))
    train_on(model, plain_pictures, num_steps=120)
    picture = plain_pictures(10_000).x[:4]
    mask = torch.ones(1, 8, 8)
    mask[:, 2:7, 2:7] = 0
    drawn = model.sample(SampleRequest((0, 1, 2, 3), sampler="ddim", num_steps=15, options={"image": picture, "mask": mask}))
    hole = (drawn - picture)[..., 2:7, 2:7]
    # Colours have a deviation of .46; without the known part an error of .65.
    assert hole.square().mean().sqrt() < 0.4


def test_noisy_clip_learns_which_caption_belongs_to_which_noisy_picture() -> None:
    clip = noisy_clip()
    captions = ("a red ball", "a blue ball", "a green ball", "a white ball")
    colours = torch.tensor([[0.8, -0.8, -0.8], [-0.8, -0.8, 0.8], [-0.8, 0.8, -0.8], [0.8, 0.8, 0.8]])
    pictures = colours[:, :, None, None].expand(4, 3, 8, 8)
    losses = train_on(clip, lambda step: Batch(pictures, captions=captions), num_steps=80)
    assert sum(losses[-10:]) < 0.6 * sum(losses[:10])
    t = torch.full((4,), 100)
    x_t = clip.config.schedule.add_noise(pictures, normal(pictures.shape, stream(9)), t)
    with torch.no_grad():
        assert (clip.encode_image(x_t, t) @ clip.encode_text(captions).T).argmax(dim=1).tolist() == [0, 1, 2, 3]


# -- refusals -----------------------------------------------------------------------------------------------------


def test_refuses_what_it_cannot_draw() -> None:
    model, mask = glide(), torch.ones(1, 8, 8)

    def sample(text: str = "", **request: Any) -> None:
        model.sample(SampleRequest((0, 1), **request))

    with pytest.raises(DiffusionError, match=r"given labels; expected prompts"):
        sample(labels=(0, 1))
    with pytest.raises(DiffusionError, match=r"guidance scale is 3 without a prompt"):
        sample(guidance_scale=3.0)
    with pytest.raises(DiffusionError, match=r"options.mask is given without options.image"):
        sample(options={"mask": mask})
    with pytest.raises(DiffusionError, match=r"options.image is \(3, 9, 9\); expected a picture \(3, 8, 8\)"):
        sample(options={"image": torch.zeros(3, 9, 9), "mask": mask})
    with pytest.raises(DiffusionError, match=r"options.mask runs from 0 to 255"):
        sample(
            options={"image": torch.zeros(3, 8, 8), "mask": torch.tensor([0.0, 255.0]).repeat(4)[None, None].expand(1, 8, 8)}
        )
    with pytest.raises(DiffusionError, match=r"options.image has 3 pictures for 2 samples"):
        sample(options={"image": torch.zeros(3, 3, 8, 8), "mask": mask})
    with pytest.raises(DiffusionError, match=r"there is no option 'clap'"):
        sample(options={"clap": 1})
    with pytest.raises(DiffusionError, match=r"the option 'clip_scale' is 'three'"):
        sample(options={"clip_scale": "three"})
    with pytest.raises(DiffusionError, match=r"options.clip is a Glide; expected a noisy_clip"):
        sample(options={"clip": model})
    with pytest.raises(DiffusionError, match=r"noisy_clip looks at pictures \(3, 16, 16\); expected the model's \(3, 8, 8\)"):
        sample(options={"clip": noisy_clip(16)})
    with pytest.raises(DiffusionError, match=r"noisy_clip was trained on the schedule linear"):
        sample(options={"clip": noisy_clip(schedule=NoiseSchedule(beta_schedule="linear"))})
    with pytest.raises(DiffusionError, match=r"options.upsampler is a Glide; expected a glide_upsampler"):
        sample(options={"upsampler": model})
    with pytest.raises(DiffusionError, match=r"the batch has no captions"):
        model.loss(Batch(torch.zeros(2, 3, 8, 8)), stream(0))
    with pytest.raises(DiffusionError, match=r"text_dropout is 1.5"):
        glide(text_dropout=1.5)


def test_the_guides_and_the_upsampler_say_what_they_need() -> None:
    with pytest.raises(DiffusionError, match=r"a noisy CLIP draws nothing by itself"):
        noisy_clip().sample(SampleRequest((0,)))
    with pytest.raises(DiffusionError, match=r"there is no picture to enlarge; expected options.low_res, \(3, 4, 4\)"):
        upsampler().sample(SampleRequest((0,)))
    with pytest.raises(DiffusionError, match=r"options.augmentation is 0.5; expected 0 to 0.1"):
        upsampler().sample(SampleRequest((0,), options={"low_res": torch.zeros(3, 4, 4), "augmentation": 0.5}))
    with pytest.raises(DiffusionError, match=r"augmentation is -1"):
        upsampler(augmentation=-1.0)
    with pytest.raises(DiffusionError, match=r"an item of the data has shape \(2,\); expected a picture"):
        NoisyClip.default_config((2,), None)
    with pytest.raises(DiffusionError, match=r"options.classifier is a NoisyClip"):
        DDPM(DDPMConfig(network=MLPConfig())).sample(SampleRequest((0,), labels=(0,), options={"classifier": noisy_clip()}))


def test_the_network_reads_the_captions_once_however_many_steps() -> None:
    model, calls = glide(), []
    layers = [m for name, m in model.network.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v", "pooled_text"))]
    for layer in layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    predict = model.predictor(PROMPTS, 3.0, torch.zeros(3, model.num_extra_channels, 8, 8))
    x_t = normal((3, 3, 8, 8), stream(0, "x"))
    for t in (900, 500, 100):
        once = predict(x_t, torch.full((3,), t)).x0
        said = model.output(
            x_t.repeat(2, 1, 1, 1),
            torch.full((6,), t),
            torch.cat([model.text([""] * 3).tokens, model.text(PROMPTS).tokens]),
            torch.zeros(6, model.num_extra_channels, 8, 8),
        )
        schedule, at = model.config.schedule, torch.full((3,), t)
        guided = said[:3] + 3.0 * (said[3:] - said[:3])
        anew = Prediction.from_output(guided, x_t, schedule.alpha(at), schedule.sigma(at), schedule.prediction_type).x0
        torch.testing.assert_close(once, anew, rtol=1e-4, atol=1e-4)
    assert len(layers) >= 3 and len(calls) == (1 + 3) * len(layers)
