"""Rectified flow: its levels, its samplers and its score distillation against closed forms, exact flows and diffusers."""

import math
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from scipy.integrate import solve_ivp
from torch import Tensor

from diffusion.distillation import DistillationConfig, Distilled, sample_timesteps, score_distillation
from diffusion.errors import DiffusionError
from diffusion.flow_schedule import EmpiricalShift, FlowSchedule, ResolutionShift
from diffusion.parameterisation import KINDS, Prediction, training_target
from diffusion.requests import Guidance, run
from diffusion.samplers import SAMPLERS, sdedit, timesteps_for
from diffusion.samplers.timesteps import FLOW_SAMPLERS
from diffusion.seeding import normal, step_noise, stream
from tests.oracles import FIVE_MODES, GaussianMixture, Oracle, condition, gaussian_flow

pytestmark = pytest.mark.oracle

FLOW = FlowSchedule(timestep_spacing="trailing")
MEAN, VARIANCE = 0.7, 0.25
ONE_GAUSSIAN = GaussianMixture.gaussian([MEAN], [[VARIANCE]])


def sample(name: str, x_T: Tensor, oracle: Oracle, timesteps: Tensor, *, scale: float = 1.0, **options: Any) -> Tensor:
    sampling = SAMPLERS[name](
        x_T,
        schedule=oracle.schedule,
        timesteps=timesteps,
        condition=condition(len(x_T)),
        guidance=Guidance(scale=scale),
        **options,
    )
    return run(sampling, oracle)


def start(rows: int, dim: int = 1) -> Tensor:
    return normal((rows, 1, 1, dim), stream(0, "start"), dtype=torch.float64)


def noise(rows: int, dim: int = 2) -> Any:
    return step_noise([(0, row) for row in range(rows)], (1, 1, dim))


# -- levels ------------------------------------------------------------------------------------------------------------


def test_each_row_has_its_own_continuous_level() -> None:
    t = torch.tensor([0.0, 123.456, 500.0, 1000.0], dtype=torch.float64)
    x0, eps = (normal((4, 2, 3, 3), stream(0, name), dtype=torch.float64) for name in ("x0", "eps"))
    for row, level in enumerate(t.tolist()):
        expected = (1 - level / 1000) * x0[row] + level / 1000 * eps[row]
        torch.testing.assert_close(FLOW.add_noise(x0, eps, t)[row], expected, rtol=0, atol=1e-15)
    torch.testing.assert_close(FLOW.snr(t[1:]), ((1000 - t[1:]) / t[1:]).square())
    assert torch.equal(FLOW.alpha(torch.tensor([250])), torch.tensor([0.75], dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_of_any_kind_gives_everything_back(kind: str) -> None:
    t = torch.tensor([1.0, 300.5, 990.0], dtype=torch.float64)
    x0, eps = (normal((3, 2, 2, 2), stream(1, name), dtype=torch.float64) for name in ("x0", "eps"))
    alpha, sigma = FLOW.alpha(t), FLOW.sigma(t)
    output = training_target(x0, eps, alpha, sigma, kind)
    found = Prediction.from_output(output, FLOW.add_noise(x0, eps, t), alpha, sigma, kind)
    torch.testing.assert_close(found.x0, x0, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.eps, eps, rtol=0, atol=1e-11)
    torch.testing.assert_close(found.velocity, eps - x0, rtol=0, atol=1e-11)


def test_a_velocity_says_everything_without_signal_and_without_noise() -> None:
    """x0 = x_t - sigma u and eps = x_t + (1 - sigma) u: nothing is divided by."""
    x0, eps = (normal((2, 1, 2, 2), stream(1, name)) for name in ("x0", "eps"))
    t = torch.tensor([0, 1000])
    found = Prediction.from_output(eps - x0, FLOW.add_noise(x0, eps, t), FLOW.alpha(t), FLOW.sigma(t), "velocity")
    torch.testing.assert_close(found.x0, x0)
    torch.testing.assert_close(found.eps, eps)


def test_a_shift_keeps_the_ends_and_multiplies_the_noise_to_signal_ratio() -> None:
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = FlowSchedule(shift=3.0).shifted(sigma)
    assert shifted[0] == 0 and shifted[-1] == 1
    torch.testing.assert_close(shifted[1:-1] / (1 - shifted[1:-1]), 3 * sigma[1:-1] / (1 - sigma[1:-1]))
    assert torch.equal(FLOW.shifted(sigma), sigma)


def test_stable_diffusion_3s_last_step_starts_where_the_shift_has_counted_twice() -> None:
    """diffusers shifts the lowest sigma before it shifts all of them: 8.93 and not 2.99."""
    timesteps = FlowSchedule(shift=3.0).timesteps(28)
    assert float(timesteps[0]) == 1000
    assert float(timesteps[-1]) == pytest.approx(8.9286, abs=1e-4)
    assert float(FlowSchedule(shift=3.0, low_end_is_shifted=False).timesteps(28)[-1]) == pytest.approx(2.994, abs=1e-3)


@pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("num_steps", [1, 4, 28])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_timesteps_are_diffusers(shift: float, num_steps: int, spacing: Any) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    sigmas = None if spacing == "linspace" else torch.linspace(1, 1 / num_steps, num_steps).tolist()
    scheduler.set_timesteps(num_steps, sigmas=sigmas)
    ours = FlowSchedule.from_config(dict(scheduler.config)).timesteps(num_steps, spacing=spacing)
    torch.testing.assert_close(ours.float(), scheduler.timesteps, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("latents", [(32, 32), (64, 96), (128, 128)])
def test_a_shift_by_the_size_of_the_picture_is_diffusers(latents: tuple[int, int]) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = calculate_shift(latents[0] * latents[1] // 4)
    for spacing, sigmas in (("linspace", None), ("trailing", torch.linspace(1, 0.1, 10).tolist())):
        scheduler.set_timesteps(10, sigmas=sigmas, mu=mu)
        fitted = FlowSchedule.from_config(dict(scheduler.config)).fitted(latents, patch=2, num_steps=20)
        assert fitted.shift == pytest.approx(math.exp(mu))
        torch.testing.assert_close(fitted.timesteps(10, spacing=spacing).float(), scheduler.timesteps, rtol=1e-5, atol=1e-4)
    assert ResolutionShift().shift(4096, 28) == pytest.approx(math.exp(1.15))


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_named_levels_run_from_noise_alone_to_the_lowest_level(spacing: Any) -> None:
    """As diffusers' own, between the ends of the whole range."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **{f"use_{spacing}_sigmas": True})
    low = 3 * 0.001 / (1 + 2 * 0.001)
    # Unshifted ends whose shifted ones are ours.
    scheduler.set_timesteps(8, sigmas=torch.linspace(1, 0.001, 8).tolist())
    ours = timesteps_for("euler", FlowSchedule(shift=3.0), 8, spacing=spacing)
    torch.testing.assert_close(ours.float(), scheduler.timesteps, rtol=1e-4, atol=1e-3)
    assert float(ours[-1]) == pytest.approx(1000 * low, rel=1e-9)


def test_a_schedule_survives_its_configuration() -> None:
    for schedule in (FlowSchedule(shift=3.0), FlowSchedule(resolution_shift=ResolutionShift(), low_end_is_shifted=False)):
        assert FlowSchedule.from_config(schedule.to_config()) == schedule
        diffusers.FlowMatchEulerDiscreteScheduler.from_config(schedule.to_config())


@pytest.mark.parametrize(("latents", "num_steps"), [((128, 128), 50), ((64, 96), 4), ((128, 128), 4), ((160, 160), 28)])
def test_levels_of_flux_2_are_those_of_its_pipeline(latents: tuple[int, int], num_steps: int) -> None:
    """mu depends on patches and steps, beyond 4,300 patches on these alone."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    num_patches = latents[0] * latents[1] // 4
    mu = compute_empirical_mu(num_patches, num_steps)
    assert EmpiricalShift().shift(num_patches, num_steps) == pytest.approx(math.exp(mu), rel=1e-12)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    schedule = FlowSchedule(shift=3.0, resolution_shift=EmpiricalShift(), timestep_spacing="trailing")
    ours = schedule.fitted(latents, patch=2, num_steps=num_steps).timesteps(num_steps)
    torch.testing.assert_close(ours.float(), theirs.timesteps, rtol=2e-6, atol=0)


# -- samplers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "num_steps", "scale"), [(1.0, 5, 1.0), (3.0, 28, 1.0), (3.0, 12, 4.0)])
def test_euler_is_its_closed_form_on_a_gaussian(shift: float, num_steps: int, scale: float) -> None:
    """Every step is affine: x' = x + (s' - s) u with u = (x - E[x0 | x]) / s, E[x0 | x] = k x + b; guided, too."""
    schedule = FlowSchedule(shift=shift)
    uncond = GaussianMixture.gaussian([0.0], [[1.0]])
    slope, intercept = 1.0, 0.0
    for s, s_there in pairwise([*(schedule.timesteps(num_steps) / 1000).tolist(), 0.0]):
        a = 1 - s
        (k, b), (k_u, b_u) = (
            (gain, mean - gain * a * mean)
            for mean, variance in ((MEAN, VARIANCE), (0.0, 1.0))
            for gain in [a * variance / (a * a * variance + s * s)]
        )
        k, b = k_u + scale * (k - k_u), b_u + scale * (b - b_u)
        gain, shift_by = 1 + (s_there - s) * (1 - k) / s, -(s_there - s) * b / s
        slope, intercept = gain * slope, gain * intercept + shift_by
    x = start(16)
    oracle = Oracle(schedule, ONE_GAUSSIAN, uncond)
    ours = sample("euler", x, oracle, schedule.timesteps(num_steps), scale=scale)
    torch.testing.assert_close(ours, slope * x + intercept, rtol=0, atol=1e-10)
    torch.testing.assert_close(sample("ddim", x, oracle, schedule.timesteps(num_steps), scale=scale), ours)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_point_mass_is_hit_by_every_sampler(name: str, num_steps: int) -> None:
    point = GaussianMixture.gaussian([0.3, -1.1], [[0.0, 0.0], [0.0, 0.0]])
    hit = sample(name, start(8, 2), Oracle(FLOW, point), FLOW.timesteps(num_steps), noise=noise(8))
    torch.testing.assert_close(hit, point.means.expand(8, 1, 1, 2), rtol=0, atol=1e-9)


def flow_errors(name: str, counts: list[int], schedule: FlowSchedule) -> list[float]:
    mean, variance = (torch.tensor(v, dtype=torch.float64) for v in ([0.5, -0.3], [0.05, 0.6]))
    oracle, x = Oracle(schedule, GaussianMixture.gaussian(mean, variance.diag())), start(200, 2)
    exact = gaussian_flow(mean, variance, x, (0.0, 1.0), (1.0, 0.0))
    return [float((sample(name, x, oracle, schedule.timesteps(n)) - exact).square().mean().sqrt()) for n in counts]


@pytest.mark.parametrize(("name", "low", "high"), [("euler", 0.95, 1.05), ("flow_heun", 1.85, 2.2)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_order_of_convergence_to_the_exact_flow_of_a_gaussian(name: str, low: float, high: float, shift: float) -> None:
    """From noise alone, where alpha is 0."""
    counts = [20, 40, 80, 160]
    errors = flow_errors(name, counts, FlowSchedule(shift=shift, timestep_spacing="trailing"))
    order = math.log2(errors[0] / errors[-1]) / math.log2(counts[-1] / counts[0])
    assert low < order < high, (order, errors)


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc"])
def test_multistep_solvers_are_closer_than_euler_at_the_same_number_of_calls(name: str) -> None:
    """In log-SNR the first step of a flow is infinite, so that their order shows late."""
    for ours, eulers in zip(*(flow_errors(n, [20, 40, 80], FLOW) for n in (name, "euler")), strict=True):
        assert ours < eulers / 4


def test_order_of_convergence_to_the_exact_flow_of_five_modes() -> None:
    """The flow is solved in sigma: dx/dsigma = (x - E[x0 | x]) / sigma."""
    x = start(12, 2)

    def velocity(s: float, flat: Any) -> Any:
        y = torch.as_tensor(flat).reshape(12, 2)
        level = torch.full((12,), s, dtype=torch.float64)
        return ((y - FIVE_MODES.x0_hat(y, 1 - level, level)) / s).flatten().numpy()

    low = 1e-3
    solved = solve_ivp(velocity, (1.0, low), x.flatten().numpy(), rtol=1e-8, atol=1e-9)
    exact = torch.as_tensor(solved.y[:, -1] - low * velocity(low, solved.y[:, -1])).reshape(12, 1, 1, 2)
    oracle = Oracle(FLOW, FIVE_MODES)
    for name, least, bound in (("euler", 0.85, 0.02), ("flow_heun", 1.6, 0.002)):
        coarse, fine = (
            float((sample(name, x, oracle, FLOW.timesteps(n)) - exact).flatten(1).norm(dim=1).median()) for n in (50, 200)
        )
        assert fine < bound and math.log2(coarse / fine) / 2 > least, (name, coarse, fine)


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m_sde", "ddim"])
def test_samplers_with_noise_reach_the_variance_of_the_data(name: str) -> None:
    """The output is affine in each noise, so unit noises read off every coefficient; the rest is the step's own error."""
    num_steps = 400
    units = torch.eye(num_steps + 2, dtype=torch.float64)
    units[-1] = 0
    out = sample(
        name,
        units[:, num_steps].reshape(-1, 1, 1, 1),
        Oracle(FLOW, ONE_GAUSSIAN),
        FLOW.timesteps(num_steps),
        noise=lambda step: units[:, step].reshape(-1, 1, 1, 1),
        **({"eta": 1.0} if name == "ddim" else {}),
    ).flatten()
    assert float(out[-1]) == pytest.approx(MEAN, abs=0.01)
    assert float((out[:-1] - out[-1]).square().sum()) == pytest.approx(VARIANCE, rel=0.03)


@pytest.mark.parametrize(
    ("name", "cls"),
    [("euler", diffusers.FlowMatchEulerDiscreteScheduler), ("flow_heun", diffusers.FlowMatchHeunDiscreteScheduler)],
)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_equals_diffusers_pointwise(name: str, cls: Any, shift: float) -> None:
    """diffusers steps in float32."""
    scheduler = cls(shift=shift)
    scheduler.set_timesteps(12)
    oracle = Oracle(FlowSchedule(shift=shift), FIVE_MODES)
    x = theirs = start(64, 2)
    for t in scheduler.timesteps:
        output = oracle.network(theirs, t.double().expand(64), torch.ones(64, 1, 1))
        theirs = scheduler.step(output, t, theirs).prev_sample.double()
    ours = sample(name, x, oracle, timesteps_for(name, oracle.schedule, 12))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_stays_in_the_dtype_of_the_start_and_finite(name: str) -> None:
    out = sample(name, start(2, 2).float(), Oracle(FLOW, FIVE_MODES), FLOW.timesteps(20), noise=noise(2))
    assert out.dtype == torch.float32
    assert bool(out.isfinite().all()) and float(out.abs().max()) < 4


def test_the_network_is_asked_at_the_timesteps_of_the_list() -> None:
    for name, calls in {"euler": 7, "flow_heun": 13}.items():
        oracle = Oracle(FLOW, FIVE_MODES)
        sample(name, start(3, 2), oracle, FLOW.timesteps(7))
        assert len(oracle.asked) == calls
        assert {float(request.t[0]) for request in oracle.asked} == set(FLOW.timesteps(7).tolist())
        assert all(request.t.dtype == torch.float64 for request in oracle.asked)


# -- SDEdit and inpainting ---------------------------------------------------------------------------------------------

SHAPE = (1, 2, 4)
EIGHT = GaussianMixture.gaussian(torch.full((8,), 0.5), torch.eye(8) * 0.3)


def edit(reference: Tensor, strength: float, name: str = "euler", **options: Any) -> Tensor:
    timesteps = FLOW.timesteps(options.pop("num_steps", 20))
    generator = sdedit(
        reference,
        sampler=SAMPLERS[name],
        strength=strength,
        start_noise=normal(reference.shape, stream(0, "start"), dtype=torch.float64),
        schedule=FLOW,
        timesteps=timesteps,
        condition=condition(len(reference)),
        guidance=Guidance(scale=1),
        noise=step_noise([(0, row) for row in range(len(reference))], SHAPE),
        **options,
    )
    return run(generator, Oracle(FLOW, EIGHT))


def picture() -> Tensor:
    return normal((3, *SHAPE), stream(1, "picture"), dtype=torch.float64)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_strength_zero_is_the_picture_and_one_forgets_it(name: str) -> None:
    """At t = T nothing is left of the picture: what is drawn does not depend on it at all."""
    assert torch.equal(edit(picture(), 0.0, name), picture())
    assert torch.equal(edit(picture(), 1.0, name), edit(-picture(), 1.0, name))


def test_small_strength_is_the_flow_from_there() -> None:
    reference = picture()
    eps = normal(reference.shape, stream(0, "start"), dtype=torch.float64)
    x_t = 0.7 * reference + 0.3 * eps
    mean, variance = torch.full(SHAPE, 0.5, dtype=torch.float64), torch.full(SHAPE, 0.3, dtype=torch.float64)
    exact = gaussian_flow(mean, variance, x_t, (0.7, 0.3), (1.0, 0.0))
    torch.testing.assert_close(edit(reference, 0.3, num_steps=1000), exact, rtol=0, atol=0.004)
    torch.testing.assert_close(edit(reference, 0.3, "flow_heun", num_steps=200), exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", FLOW_SAMPLERS)
def test_the_kept_region_is_the_picture_and_the_rest_is_as_without_a_mask(name: str) -> None:
    reference, mask = picture(), torch.zeros(1, 1, 2, 4)
    mask[..., :2] = 1
    edited = edit(reference, 0.6, name, mask=mask)
    torch.testing.assert_close(edited[..., :2], reference[..., :2], rtol=0, atol=1e-12)
    torch.testing.assert_close(edited[..., 2:], edit(reference, 0.6, name)[..., 2:], rtol=0, atol=1e-9)


# -- score distillation ------------------------------------------------------------------------------------------------

COND = GaussianMixture.gaussian([MEAN] * 3, torch.eye(3) * VARIANCE)
UNCOND = GaussianMixture.gaussian([0.0] * 3, torch.eye(3))
LEVELS = torch.linspace(20, 980, 193, dtype=torch.float64)


def distil(value: float, form: str, scale: float, weighting: Any = "uniform") -> Distilled:
    """At images = value over all levels, each with its noise and the opposite one, so that what is odd averages out."""
    half = normal((len(LEVELS), 3, 1, 1), stream(0, "noise"), dtype=torch.float64)
    generator = score_distillation(
        torch.full((2 * len(LEVELS), 3, 1, 1), value, dtype=torch.float64),
        condition=condition(2 * len(LEVELS)),
        guidance=Guidance(scale=scale),
        schedule=FLOW,
        t=LEVELS.repeat(2),
        noise=torch.cat([half, -half]),
        form=form,
        weighting=weighting,
    )
    return run(generator, Oracle(FLOW, COND, UNCOND))


def pull(value: float, scale: float, weight: Tensor) -> float:
    """E over sigma of weight * (eps_hat - eps): s (1-s) (value - m) / ((1-s)^2 c + s^2) of each law, guided."""
    s = LEVELS / 1000
    a = 1 - s
    cond, uncond = s * a * (value - MEAN) / (a * a * VARIANCE + s * s), s * a * value / (a * a + s * s)
    return float((weight * (uncond + scale * (cond - uncond))).mean())


# Each form is a weight on DreamFusion's residual: u_hat - u = (eps_hat - eps) / (1-s), x - x0_hat = s / (1-s) (eps_hat - eps).
FORM_WEIGHTS = {"sds": lambda s: torch.ones_like(s), "flow": lambda s: 1 / (1 - s), "x0": lambda s: s / (1 - s)}


@pytest.mark.parametrize("form", sorted(FORM_WEIGHTS))
@pytest.mark.parametrize("weighting", ["uniform", "sigma2", "alpha_sigma2"])
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_expected_gradients_are_their_closed_form(form: str, weighting: str, scale: float) -> None:
    s = LEVELS / 1000
    weight = {"uniform": torch.ones_like(s), "sigma2": s**2, "alpha_sigma2": (1 - s) * s**2}[weighting]
    expected = pull(0.4, scale, weight * FORM_WEIGHTS[form](s))
    answer = distil(0.4, form, scale, weighting)
    torch.testing.assert_close(
        answer.gradient.mean(0), torch.full((3, 1, 1), expected, dtype=torch.float64), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("form", sorted(FORM_WEIGHTS))
@pytest.mark.parametrize("scale", [1.0, 7.5, 100.0])
def test_fixed_points_are_their_closed_form(form: str, scale: float) -> None:
    """The expected gradient is affine in the image, so its zero is a quotient of two sums; without guidance it is the mean."""
    weight = FORM_WEIGHTS[form](LEVELS / 1000)
    at_zero, at_one = pull(0.0, scale, weight), pull(1.0, scale, weight)
    fixed = -at_zero / (at_one - at_zero)
    if scale == 1:
        assert fixed == pytest.approx(MEAN)
    assert float(distil(fixed, form, scale).gradient.mean()) == pytest.approx(0, abs=1e-9)
    below, above = (float(distil(fixed + by, form, scale).gradient.mean()) for by in (-0.1, 0.1))
    assert below < 0 < above


def test_levels_are_drawn_from_the_whole_range_without_rounding() -> None:
    config = DistillationConfig(t_min=0.02, t_max_start=0.98, t_max_end=0.98)
    t = sample_timesteps(config, FLOW, progress=0.5, num_views=64, generator=stream(0, "t"))
    assert t.dtype == torch.float64 and len(set(t.tolist())) == 64
    # Stratified: one in each 64th of the range.
    assert sorted(((t - 20) / 960 * 64).floor().tolist()) == list(range(64))


def test_levels_of_distillation_are_shifted_after_they_are_drawn() -> None:
    """As RFDS draws them, from the scheduler's own list: 0.02 to 0.7 of it are sigma 0.058 to 0.875 with shift 3."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    fractions = torch.tensor([0.02, 0.1, 0.7, 1.0], dtype=torch.float64)
    theirs = torch.stack([scheduler.timesteps[1000 - int(fraction * 1000)] for fraction in fractions.tolist()])
    torch.testing.assert_close(FlowSchedule(shift=3.0).timesteps_at(fractions).float(), theirs, rtol=1e-5, atol=1e-3)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - set(FLOW_SAMPLERS)))
def test_refuses_samplers_whose_formula_does_not_hold(name: str) -> None:
    with pytest.raises(DiffusionError, match=f"sampler '{name}' was given a rectified flow; expected one of 'euler'"):
        timesteps_for(name, FLOW, 10)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shift": 0.0}, "shift is 0.0; expected a positive number"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0; expected at least 1"),
        ({"timestep_spacing": "leading"}, "spacing of a flow is 'leading'; expected 'linspace' or 'trailing'"),
    ],
)
def test_refuses_settings_that_are_none(settings: Any, words: str) -> None:
    with pytest.raises(DiffusionError, match=words):
        FlowSchedule(**settings)


def test_refuses_levels_outside_and_flows_of_another_kind() -> None:
    with pytest.raises(DiffusionError, match=r"timesteps run from -1.0 to 1001.0; expected 0 to 1000"):
        FLOW.sigma(torch.tensor([-1.0, 1001.0]))
    with pytest.raises(DiffusionError, match="num_steps is 0; expected 1 to 1000"):
        FLOW.timesteps(0)
    with pytest.raises(DiffusionError, match=r"the flow scheduler's shift_terminal is 0\.02; expected None"):
        FlowSchedule.from_config({"shift_terminal": 0.02})
