"""Score distillation: its expected gradient and fixed points in closed form, and where gradients must not go."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import orchestrator
from diffusion.distillation import DistillationConfig, Distilled, sample_timesteps, score_distillation, timestep_range
from diffusion.errors import DiffusionError
from diffusion.guidance import rescale
from diffusion.requests import (
    DecodeRequest,
    DenoiseRequest,
    EncodeGradientRequest,
    EncodeRequest,
    Guidance,
    run,
)
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, stream, uniform
from jobs.codec import from_plain
from tests.oracles import GaussianMixture, Oracle, condition

pytestmark = pytest.mark.oracle

SCHEDULE = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
MEAN, VARIANCE = 0.7, 0.25
COND = GaussianMixture.gaussian([MEAN] * 3, torch.eye(3) * VARIANCE)
UNCOND = GaussianMixture.gaussian([0.0] * 3, torch.eye(3))
CONFIG = Path(orchestrator.__file__).parent / "settings/config"
# DreamFusion's range: 2 % to 98 % of T.
ALL_TIMESTEPS = torch.arange(20, 981)


def distil(images: Tensor, oracle: Oracle, t: Tensor, noise: Tensor, *, scale: float = 1.0, **options: Any) -> Distilled:
    generator = score_distillation(
        images,
        condition=condition(len(images)),
        guidance=Guidance(scale=scale),
        schedule=SCHEDULE,
        t=t,
        noise=noise,
        **options,
    )
    return run(generator, oracle)


def views(count: int = 4, seed: int = 0) -> Tensor:
    return uniform((count, 3, 1, 1), stream(seed, "views")).double()


def expected_sds_gradient(value: float, weights: Tensor, scale: float) -> float:
    """E over t of w (eps_hat - eps) at images = value: eps is odd and eps_hat affine, so the noise averages out."""
    a, s = SCHEDULE.alpha(ALL_TIMESTEPS), SCHEDULE.sigma(ALL_TIMESTEPS)
    cond = s * a * (value - MEAN) / (a**2 * VARIANCE + s**2)
    uncond = s * a * value
    return float((weights * (uncond + scale * (cond - uncond))).mean())


@pytest.mark.parametrize("weighting", ["uniform", "sigma2", "alpha_sigma2"])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_expected_sds_gradient_is_its_closed_form(weighting: Any, scale: float) -> None:
    """Antithetic noise averages the odd part out exactly, so there is no Monte Carlo error left."""
    a, s = SCHEDULE.alpha(ALL_TIMESTEPS), SCHEDULE.sigma(ALL_TIMESTEPS)
    weights = {"uniform": torch.ones_like(a), "sigma2": s**2, "alpha_sigma2": a * s**2}[weighting]
    count = len(ALL_TIMESTEPS)
    images = torch.full((2 * count, 3, 1, 1), 0.4, dtype=torch.float64)
    half = normal((count, 3, 1, 1), stream(0, "noise"), dtype=torch.float64)
    answer = distil(
        images,
        Oracle(SCHEDULE, COND, UNCOND),
        ALL_TIMESTEPS.repeat(2),
        torch.cat([half, -half]),
        scale=scale,
        form="sds",
        weighting=weighting,
    )
    assert answer.target is None
    expected = expected_sds_gradient(0.4, weights, scale)
    torch.testing.assert_close(
        answer.gradient.mean(0), torch.full((3, 1, 1), expected, dtype=torch.float64), rtol=0, atol=1e-12
    )


def sds_fixed_point(scale: float) -> float:
    """Where the expected gradient over the whole range vanishes, found by bisection on the function under test."""
    count = len(ALL_TIMESTEPS)
    half = normal((count, 3, 1, 1), stream(0, "noise"), dtype=torch.float64)
    low, high = 0.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        images = torch.full((2 * count, 3, 1, 1), middle, dtype=torch.float64)
        answer = distil(
            images,
            Oracle(SCHEDULE, COND, UNCOND),
            ALL_TIMESTEPS.repeat(2),
            torch.cat([half, -half]),
            scale=scale,
            form="sds",
            weighting="sigma2",
        )
        low, high = (middle, high) if float(answer.gradient.mean()) < 0 else (low, middle)
    return low


def test_sds_settles_on_the_mean_of_a_gaussian() -> None:
    assert sds_fixed_point(1.0) == pytest.approx(MEAN, abs=1e-9)


@pytest.mark.parametrize(("scale", "recorded"), [(7.5, 2.066), (100.0, 2.861)])
def test_guidance_overshoots_by_the_recorded_amount(scale: float, recorded: float) -> None:
    """Conditional mean .7, unconditional N(0, 1), w = sigma^2, t in 20..980."""
    assert sds_fixed_point(scale) == pytest.approx(recorded, abs=5e-3)


def test_x0_form_is_images_minus_target() -> None:
    images, t = views(), torch.tensor([50, 300, 600, 950])
    noise = normal(images.shape, stream(0, "noise"), dtype=torch.float64)
    oracle = Oracle(SCHEDULE, COND, UNCOND)
    answer = distil(images, oracle, t, noise, scale=3.0)
    guided = oracle(DenoiseRequest(SCHEDULE.add_noise(images, noise, t), t, condition(4), Guidance(scale=3.0)))
    assert answer.target is not None
    torch.testing.assert_close(answer.target, guided.x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(answer.gradient, images - answer.target, rtol=0, atol=0)
    weighted = distil(images, oracle, t, noise, scale=3.0, weighting="sigma2")
    torch.testing.assert_close(
        weighted.gradient, SCHEDULE.sigma(t)[:, None, None, None] ** 2 * answer.gradient, rtol=1e-12, atol=0
    )


def test_the_two_forms_are_one_residual() -> None:
    """With an identity autoencoder eps_hat - eps = (a / s) (images - x0_hat)."""
    images, t = views(), torch.tensor([50, 300, 600, 950])
    noise = normal(images.shape, stream(0, "noise"), dtype=torch.float64)
    oracle = Oracle(SCHEDULE, COND, UNCOND)
    x0, sds = (distil(images, oracle, t, noise, scale=5.0, form=form) for form in ("x0", "sds"))
    ratio = (SCHEDULE.alpha(t) / SCHEDULE.sigma(t))[:, None, None, None]
    torch.testing.assert_close(sds.gradient, ratio * x0.gradient, rtol=1e-9, atol=1e-12)


def test_the_form_in_latents_is_the_gradient_of_half_the_squared_distance_in_latents() -> None:
    """1/2 ||A x - x0_hat||^2 with the target held fixed (MVDream), by autograd, for an encoder that halves."""
    images, t = views(), torch.tensor([50, 300, 600, 950])
    noise = normal(images.shape, stream(0, "noise"), dtype=torch.float64)

    class Halving(Oracle):
        def __call__(self, request: Any) -> Any:
            match request:
                case EncodeRequest(pictures):
                    return pictures / 2
                case EncodeGradientRequest(_, gradient):
                    return gradient / 2
            return super().__call__(request)

    oracle = Halving(SCHEDULE, COND, UNCOND)
    answer = distil(images, oracle, t, noise, scale=5.0, form="x0_latents")
    x_t = SCHEDULE.add_noise(images / 2, noise, t)
    target = oracle(DenoiseRequest(x_t, t, condition(4), Guidance(scale=5.0))).x0
    variable = images.clone().requires_grad_()
    (0.5 * (variable / 2 - target).square().sum()).backward()
    torch.testing.assert_close(answer.gradient, variable.grad, rtol=1e-12, atol=1e-12)
    assert answer.target is None


def test_groups_are_rescaled_by_their_common_deviation() -> None:
    """2305.08891 eq. 15-16 with the deviation over all values of a group, as MVDream takes it."""
    guided, cond = (normal((4, 3, 2, 2), stream(0, name), dtype=torch.float64) for name in ("guided", "cond"))
    guided = guided * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)[:, None, None, None]
    ratios = [float(cond[pair].std() / guided[pair].std()) for pair in (slice(0, 2), slice(2, 4))]
    expected = guided * torch.tensor([ratios[0]] * 2 + [ratios[1]] * 2, dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(rescale(guided, cond, 1.0, num_views=2), expected)


@pytest.mark.parametrize(("shared", "distinct"), [("view", 8), ("group", 2), ("batch", 1)])
def test_timesteps_may_be_shared_by_a_group_or_the_batch(shared: Any, distinct: int) -> None:
    config = DistillationConfig(shared_timestep=shared, t_min=0.1, t_max_start=0.9, t_max_end=0.9)
    drawn = [
        sample_timesteps(config, SCHEDULE, progress=0.5, num_views=8, group_views=4, generator=stream(seed))
        for seed in range(400)
    ]
    assert all(len(t.unique()) <= distinct for t in drawn)
    if shared == "group":
        assert all(len(t[:4].unique()) == len(t[4:].unique()) == 1 for t in drawn)
    mean = torch.stack(drawn).double().mean() / 1000
    assert float(mean) == pytest.approx(0.5, abs=0.03)


def test_mvdreams_annealing_has_its_published_ends() -> None:
    """t_max .98 to .5 and t_min .98 to .02 over the first 8,000 of 10,000 steps."""
    config = mvdream_recipe()
    ends = [timestep_range(step / 10_000, config) for step in (0, 4_000, 8_000, 10_000)]
    expected = [(0.98, 0.98), (0.5, 0.74), (0.02, 0.5), (0.02, 0.5)]
    for found, right in zip(ends, expected, strict=True):
        assert found == pytest.approx(right)
    assert config.form == "x0_latents" and config.shared_timestep == "batch"
    assert config.guidance == Guidance(scale=50.0, rescale=0.5, rescale_on="x0", rescale_over="group")


def mvdream_recipe() -> DistillationConfig:
    """What `distillation=mvdream` on the command line gives."""
    values = yaml.safe_load((CONFIG / "distillation/mvdream.yaml").read_text(encoding="utf-8"))
    return from_plain(DistillationConfig, values, path="distillation")


def test_sds_pulls_back_through_the_encoder() -> None:
    """A linear encoder z = A x: the gradient is A^T times the latent residual."""
    matrix = normal((3, 3), stream(0, "encoder"), dtype=torch.float64)

    def encode(images: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", matrix, images)

    images, t = views(), torch.tensor([50, 300, 600, 950])
    noise = normal(images.shape, stream(0, "noise"), dtype=torch.float64)
    ours = distil(images, Oracle(SCHEDULE, COND, encode=encode), t, noise, form="sds").gradient
    latent = distil(encode(images), Oracle(SCHEDULE, COND), t, noise, form="sds").gradient
    torch.testing.assert_close(ours, torch.einsum("ij,bihw->bjhw", matrix, latent), rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["x0", "sds"])
def test_no_gradient_reaches_the_denoiser_or_leaves_with_the_answer(form: Any) -> None:
    """The network's Jacobian is left out: its parameter is not touched, and the answer hangs on no graph."""
    parameter = torch.ones((), dtype=torch.float64, requires_grad=True)
    inner = Oracle(SCHEDULE, COND)

    class Network(Oracle):
        def network(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
            assert not x_t.requires_grad
            return parameter * inner.network(x_t, t, tokens)

    images = views().requires_grad_()
    noise = normal(images.shape, stream(0, "noise"), dtype=torch.float64)
    answer = distil(images, Network(SCHEDULE, COND), torch.tensor([50, 300, 600, 950]), noise, form=form)
    assert not answer.gradient.requires_grad
    assert answer.target is None or not answer.target.requires_grad
    (images * answer.gradient).sum().backward()
    assert parameter.grad is None
    assert images.grad is not None and torch.equal(images.grad, answer.gradient)


def test_requests_in_order() -> None:
    images, t = views(2), torch.tensor([50, 300])
    noise = normal(images.shape, stream(0), dtype=torch.float64)
    for form, last in (("x0", DecodeRequest), ("x0_latents", EncodeGradientRequest), ("sds", EncodeGradientRequest)):
        oracle = Oracle(SCHEDULE, COND)
        distil(images, oracle, t, noise, form=form)
        assert [type(request) for request in oracle.asked] == [EncodeRequest, DenoiseRequest, last]
        torch.testing.assert_close(oracle.asked[1].x_t, SCHEDULE.add_noise(images, noise, t))


def test_x0_distillation_of_pixels_reaches_the_mean() -> None:
    """The whole loop, small: gradient descent on images with the default weighting ends at the data's mean."""
    images = torch.zeros(8, 3, 1, 1, dtype=torch.float64)
    config, oracle = DistillationConfig(guidance_scale=1.0), Oracle(SCHEDULE, COND)
    for step in range(300):
        t = sample_timesteps(config, SCHEDULE, progress=step / 300, num_views=8, generator=stream(0, "t", step))
        noise = normal(images.shape, stream(0, "noise", step), dtype=torch.float64)
        images -= 0.1 * distil(images, oracle, t, noise).gradient
    assert float(images.mean()) == pytest.approx(MEAN, abs=0.05)


# -- the timesteps of a step -----------------------------------------------------------------------


def test_range_anneals_in_a_line() -> None:
    config = DistillationConfig()
    assert timestep_range(0.0, config) == (0.05, 0.95)
    assert timestep_range(1.0, config) == pytest.approx((0.05, 0.45))
    assert timestep_range(0.5, config) == pytest.approx((0.05, 0.7))
    late = DistillationConfig(anneal_from=0.5, anneal_until=0.75)
    assert [timestep_range(p, late)[1] for p in (0.0, 0.5, 0.625, 0.9)] == pytest.approx([0.95, 0.95, 0.7, 0.45])
    sudden = DistillationConfig(anneal_from=0.5, anneal_until=0.5)
    assert [timestep_range(p, sudden)[1] for p in (0.49, 0.5)] == pytest.approx([0.95, 0.45])


def test_timesteps_are_stratified_over_the_views_and_uniform_for_each() -> None:
    config, views_per_step = DistillationConfig(), 4
    rounds = torch.stack(
        [
            sample_timesteps(config, SCHEDULE, progress=0.0, num_views=views_per_step, generator=stream(0, step))
            for step in range(800)
        ]
    )
    assert rounds.dtype == torch.long and int(rounds.min()) >= 50 and int(rounds.max()) < 950
    # One in each quarter of 50..950, every time; and each view meets all quarters.
    quarters = (rounds - 50) // 225
    assert quarters.sort(dim=1).values.tolist() == [[0, 1, 2, 3]] * 800
    for view in range(views_per_step):
        share = torch.bincount(quarters[:, view], minlength=4) / 800
        assert float((share - 0.25).abs().max()) < 0.08
    whole = DistillationConfig(t_min=0.0, t_max_start=1.0)
    edge = sample_timesteps(whole, SCHEDULE, progress=0.0, num_views=1000, generator=stream(0))
    assert edge.sort().values.tolist() == list(range(1000))


def test_config_makes_the_guidance_of_its_form() -> None:
    assert DistillationConfig().guidance == Guidance(scale=7.0, rescale=0.5, rescale_on="x0")
    assert DistillationConfig(form="sds").guidance.rescale_on == "output"


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "vsd"}, "form is 'vsd'; expected one of 'x0', 'x0_latents', 'sds'"),
        ({"weighting": "snr"}, "weighting is 'snr'; expected one of 'uniform'"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; expected a finite number"),
        ({"guidance_rescale": -0.5}, "guidance_rescale is -0.5; expected 0 to 1"),
        ({"t_min": 0.5}, "t_min is 0.5 and t_max_end 0.45; expected 0 <= t_min < t_max_end <= 1"),
        ({"t_max_start": 1.2}, "t_min is 0.05 and t_max_start 1.2"),
        ({"anneal_from": 0.8, "anneal_until": 0.2}, "anneal_from is 0.8 and anneal_until 0.2"),
    ],
)
def test_refuses_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffusionError, match=message):
        DistillationConfig(**settings)


def test_refuses_arguments_that_do_not_fit() -> None:
    images, noise = views(2), torch.zeros(2, 3, 1, 1)
    oracle = Oracle(SCHEDULE, COND)
    with pytest.raises(DiffusionError, match="form is 'vsd'"):
        distil(images, oracle, torch.tensor([5, 5]), noise, form="vsd")
    with pytest.raises(DiffusionError, match="weighting is 'snr'"):
        distil(images, oracle, torch.tensor([5, 5]), noise, weighting="snr")
    with pytest.raises(DiffusionError, match="1 timesteps for 2 views; expected one a view"):
        distil(images, oracle, torch.tensor([5]), noise)
    with pytest.raises(DiffusionError, match=r"noise has shape \(2, 4, 1, 1\); expected the latents' \(2, 3, 1, 1\)"):
        distil(images, oracle, torch.tensor([5, 5]), torch.zeros(2, 4, 1, 1))
