"""Samplers against exact answers.

On a Gaussian every step of every sampler is affine, so that its result has a closed form which one wrong timestep,
alpha or coefficient breaks; a distance between clouds of samples would not notice.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.requests import DenoiseRequest, Guidance, run
from diffusion.samplers import SAMPLERS, STOCHASTIC, ddim, ddpm, dpmpp_2m, euler, heun, pndm
from diffusion.samplers.chain import Level, levels, transitions, use_second_order
from diffusion.schedule import NoiseSchedule, TimestepSpacing
from diffusion.seeding import normal, normal_rows, step_noise, stream
from tests.oracles import FIVE_MODES, GaussianMixture, Oracle, condition, gaussian_flow

pytestmark = pytest.mark.oracle

LINEAR = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, steps_offset=0, set_alpha_to_one=True)
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


def start(rows: int, dim: int = 1, seed: int = 0) -> Tensor:
    return normal((rows, 1, 1, dim), stream(seed, "start"), dtype=torch.float64)


def abars(schedule: NoiseSchedule, timesteps: Tensor) -> list[float]:
    """abar at each timestep and, last, after the last step."""
    return [*schedule.alphas_cumprod[timesteps].tolist(), schedule.final_alphas_cumprod]


def posterior_mean(abar: float, mean: float, variance: float) -> tuple[float, float]:
    """E[x0 | x] = k x + b on N(mean, variance)."""
    k = abar**0.5 * variance / (abar * variance + 1 - abar)
    return k, mean - k * abar**0.5 * mean


# -- DDIM ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LINEAR, NoiseSchedule()], ids=["linear", "stable-diffusion"])
@pytest.mark.parametrize(("num_steps", "spacing"), [(5, "leading"), (50, "leading"), (30, "trailing"), (7, "linspace")])
def test_ddim_is_its_closed_form_on_a_gaussian(schedule: NoiseSchedule, num_steps: int, spacing: Any) -> None:
    timesteps = schedule.timesteps(num_steps, spacing=spacing)
    slope, shift = 1.0, 0.0
    levels = abars(schedule, timesteps)
    for here, there in pairwise(levels):
        k, b = posterior_mean(here, MEAN, VARIANCE)
        # x' = a' x0 + s' (x - a x0) / s
        along = ((1 - there) / (1 - here)) ** 0.5
        toward = there**0.5 - along * here**0.5
        slope, shift = (along + toward * k) * slope, (along + toward * k) * shift + toward * b
    x = start(16)
    ours = sample("ddim", x, Oracle(schedule, ONE_GAUSSIAN), timesteps)
    torch.testing.assert_close(ours, slope * x + shift, rtol=0, atol=1e-12)


def test_ddim_with_guidance_is_its_closed_form_on_two_gaussians() -> None:
    """The guided x0 of two Gaussians is affine too (`cfg_affine`)."""
    scale, timesteps = 4.0, LINEAR.timesteps(25)
    uncond = GaussianMixture.gaussian([0.0], [[1.0]])
    slope, shift = 1.0, 0.0
    levels = abars(LINEAR, timesteps)
    for here, there in pairwise(levels):
        (kc, bc), (ku, bu) = posterior_mean(here, MEAN, VARIANCE), posterior_mean(here, 0.0, 1.0)
        k, b = ku + scale * (kc - ku), bu + scale * (bc - bu)
        along = ((1 - there) / (1 - here)) ** 0.5
        toward = there**0.5 - along * here**0.5
        slope, shift = (along + toward * k) * slope, (along + toward * k) * shift + toward * b
    x = start(16)
    ours = sample("ddim", x, Oracle(LINEAR, ONE_GAUSSIAN, uncond), timesteps, scale=scale)
    torch.testing.assert_close(ours, slope * x + shift, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"lcm"}))
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_a_point_mass_is_hit_by_every_sampler(name: str, num_steps: int) -> None:
    """One step is enough, and more do not lose it. (LCM's f(x, 0) is x, by its boundary condition.)"""
    point = GaussianMixture.gaussian([0.3, -1.1], [[0.0, 0.0], [0.0, 0.0]])
    noise = step_noise([(0, row) for row in range(8)], (1, 1, 2))
    hit = sample(name, start(8, 2), Oracle(LINEAR, point), LINEAR.timesteps(num_steps), noise=noise)
    torch.testing.assert_close(hit, point.means.expand(8, 1, 1, 2), rtol=0, atol=1e-9)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_with_eta_one_is_ddpm_with_the_small_variance(spacing: Any) -> None:
    noise = step_noise([(0, row) for row in range(8)], (1, 1, 2))
    timesteps = LINEAR.timesteps(20, spacing=spacing)
    x, oracle = start(8, 2), Oracle(LINEAR, FIVE_MODES)
    ours = sample("ddim", x, oracle, timesteps, noise=noise, eta=1.0)
    torch.testing.assert_close(
        ours, sample("ddpm", x, oracle, timesteps, noise=noise, variance="fixed_small"), rtol=0, atol=1e-10
    )


def test_euler_is_ddim_where_both_end_without_noise() -> None:
    x, oracle = start(8, 2), Oracle(LINEAR, FIVE_MODES)
    timesteps = LINEAR.timesteps(20)
    assert torch.equal(sample("euler", x, oracle, timesteps), sample("ddim", x, oracle, timesteps))


# -- DDPM ------------------------------------------------------------------------------------------


def ddpm_moments(timesteps: Tensor, variance: str) -> tuple[float, float]:
    """Mean and variance of DDPM's output from N(0, 1) on the Gaussian, by the recursion over its affine steps."""
    mean, spread = 0.0, 1.0
    levels = abars(LINEAR, timesteps)
    for index, (here, there) in enumerate(pairwise(levels)):
        k, b = posterior_mean(here, MEAN, VARIANCE)
        beta = 1 - here / there
        g = there**0.5 * beta / (1 - here)
        h = (here / there) ** 0.5 * (1 - there) / (1 - here)
        mean, spread = (g * k + h) * mean + g * b, (g * k + h) ** 2 * spread
        if index < len(timesteps) - 1:
            spread += beta if variance == "fixed_large" else beta * (1 - there) / (1 - here)
    return mean, spread


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("num_steps", [5, 20, 100])
def test_ddpm_moments_are_their_closed_form(variance: str, num_steps: int) -> None:
    """Without sampling: the output is affine in each noise, so that unit noises read off every coefficient."""
    timesteps = LINEAR.timesteps(num_steps, spacing="trailing")
    rows = num_steps + 2
    # Row i < N: a unit noise at step i. Row N: a unit start. The last row: nothing but the mean.
    units = torch.eye(rows, dtype=torch.float64)
    units[-1] = 0
    x_T = units[:, num_steps].reshape(rows, 1, 1, 1)
    out = sample(
        "ddpm",
        x_T,
        Oracle(LINEAR, ONE_GAUSSIAN),
        timesteps,
        noise=lambda step: units[:, step].reshape(rows, 1, 1, 1),
        variance=variance,
    ).flatten()
    mean, spread = ddpm_moments(timesteps, variance)
    assert float(out[-1]) == pytest.approx(mean, abs=1e-12)
    assert float(((out[:-1] - out[-1]) ** 2).sum()) == pytest.approx(spread, abs=1e-12)


def test_ddpm_variances_are_the_recorded_ones() -> None:
    """Target variance .25; the large variance without noise on the last step."""
    recorded = {5: 0.0617, 10: 0.111, 20: 0.153, 50: 0.197, 100: 0.219}
    for num_steps, expected in recorded.items():
        assert ddpm_moments(LINEAR.timesteps(num_steps, spacing="trailing"), "fixed_small")[1] == pytest.approx(
            expected, abs=6e-4
        )
    assert ddpm_moments(LINEAR.timesteps(5, spacing="trailing"), "fixed_large")[1] == pytest.approx(0.1296, abs=1e-4)


@pytest.mark.slow
def test_ddpm_samples_have_those_moments() -> None:
    timesteps = LINEAR.timesteps(10, spacing="trailing")
    count = 40_000
    noise: Callable[[int], Tensor] = lambda step: normal((count, 1, 1, 1), stream(5, step))  # noqa: E731
    out = sample("ddpm", start(count), Oracle(LINEAR, ONE_GAUSSIAN), timesteps, noise=noise).flatten()
    mean, spread = ddpm_moments(timesteps, "fixed_small")
    assert abs(float(out.mean()) - mean) < 4 * (spread / count) ** 0.5
    assert abs(float(out.var()) - spread) < 4 * spread * (2 / count) ** 0.5


# -- convergence to the exact probability flow -----------------------------------------------------


def flow_errors(name: str, counts: list[int], *, spacing: Any, schedule: NoiseSchedule = LINEAR, **options: Any) -> list[float]:
    """RMS distance to the exact flow of a Gaussian from each run's own first level."""
    mean = torch.tensor([0.5, -0.3], dtype=torch.float64)
    variance = torch.tensor([0.05, 0.6], dtype=torch.float64)
    oracle = Oracle(schedule, GaussianMixture.gaussian(mean, variance.diag()))
    x = start(200, 2)
    errors = []
    for count in counts:
        timesteps = schedule.timesteps(count, spacing=spacing)
        first = timesteps[:1]
        here = (float(schedule.alpha(first)), float(schedule.sigma(first)))
        exact = gaussian_flow(mean, variance, x, here, (1.0, 0.0))
        errors.append(float((sample(name, x, oracle, timesteps, **options) - exact).square().mean().sqrt()))
    return errors


@pytest.mark.parametrize(
    ("name", "spacing", "counts", "low", "high"),
    [
        ("ddim", "leading", [20, 40, 80, 160], 0.93, 1.05),
        ("ddim", "trailing", [30, 60, 120, 240], 0.9, 1.05),  # none divides 1000: diffusers stalls here
        ("euler", "linspace", [20, 40, 80, 160], 0.93, 1.05),
        ("heun", "leading", [10, 20, 40], 1.9, 2.4),
        ("dpmpp_2m", "trailing", [20, 40, 80], 1.9, 2.8),
        ("pndm", "leading", [10, 20, 40], 1.9, 3.2),
        ("unipc", "trailing", [20, 40, 80], 1.9, 3.2),
    ],
)
def test_order_of_convergence(name: str, spacing: Any, counts: list[int], low: float, high: float) -> None:
    errors = flow_errors(name, counts, spacing=spacing)
    order = math.log2(errors[0] / errors[-1]) / math.log2(counts[-1] / counts[0])
    assert low < order < high, (order, errors)


def test_higher_orders_are_closer_at_the_same_number_of_steps() -> None:
    first = flow_errors("ddim", [40], spacing="trailing")[0]
    # With "trailing" Heun's last step, an Euler step from t = 24, dominates.
    for name, factor in (("heun", 3), ("dpmpp_2m", 3), ("pndm", 20)):
        assert flow_errors(name, [40], spacing="trailing")[0] < first / factor, name
    assert flow_errors("pndm", [40], spacing="leading", skip_prk=False)[0] < first / 10


GUARD = {"first_order_from_noise": True}
NO_SIGNAL_AT_FIRST = [
    NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", set_alpha_to_one=True),
    NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True, set_alpha_to_one=True),
]


@pytest.mark.parametrize("schedule", NO_SIGNAL_AT_FIRST, ids=["cosine", "zero-snr"])
@pytest.mark.parametrize(
    ("name", "options"), [("heun", GUARD), ("pndm", GUARD), ("pndm_prk", GUARD), ("dpmpp_2m", {}), ("unipc", {})], ids=str
)
def test_higher_orders_are_closer_where_the_first_step_starts_without_signal(
    schedule: NoiseSchedule, name: str, options: dict[str, Any]
) -> None:
    """alpha is 5e-5 and 0 there, and one step takes it to about 0.1: the slopes at its two ends have no useful mean."""
    counts = [10, 20, 40]
    first_order = flow_errors("ddim", counts, spacing="trailing", schedule=schedule)
    errors = flow_errors(name, counts, spacing="trailing", schedule=schedule, **options)
    for ours, theirs in zip(errors, first_order, strict=True):
        assert ours < 0.8 * theirs, (errors, first_order)


@pytest.mark.parametrize("ratio", [1.5, 1.9, 2.2, 10.0])
def test_the_mean_of_two_slopes_is_used_where_it_is_closer_to_the_flow(ratio: float) -> None:
    """One step between two levels of high noise, where the rule's derivation is exact; C cancels."""
    variance, there = 0.7, 60.0
    here = ratio * there

    def slope(y: float, r: float) -> float:
        return y * r / (variance + r * r)

    y = (variance + here**2) ** 0.5
    exact = (variance + there**2) ** 0.5
    euler = y + (there - here) * slope(y, here)
    mean = y + (there - here) * (slope(y, here) + slope(euler, there)) / 2

    def level(r: float) -> Level:
        return Level(1, (1 + r * r) ** -0.5, r * (1 + r * r) ** -0.5)

    assert use_second_order(level(here), level(there)) == (abs(mean - exact) < abs(euler - exact))


def test_the_rule_never_strikes_on_stable_diffusions_schedule() -> None:
    """From seven steps on: there Heun and PNDM are diffusers' to the last step even with it."""
    schedule = NoiseSchedule()
    for spacing in get_args(TimestepSpacing):
        for num_steps in range(7, 101):
            chain = levels(schedule, schedule.timesteps(num_steps, spacing=spacing))
            assert all(use_second_order(here, there) for _, here, there in transitions(chain)), (spacing, num_steps)


def test_samplers_approach_the_flow_of_five_modes() -> None:
    """No closed form here: an adaptive solver in r = sigma / alpha, where dy/dr = eps, stands for the flow."""
    timesteps = LINEAR.timesteps(200, spacing="trailing")
    x = start(24, 2)
    first = timesteps[:1]
    a, s = LINEAR.alpha(first), LINEAR.sigma(first)

    def slope(r: float, flat: Any) -> Any:
        y = torch.as_tensor(flat).reshape(24, 2)
        alpha = torch.full((24,), (1 + r * r) ** -0.5, dtype=torch.float64)
        x0 = FIVE_MODES.x0_hat(alpha[:, None] * y, alpha, r * alpha)
        return ((y - x0) / r).flatten().numpy()

    end = 1e-3
    solved = solve_ivp(slope, (float(s / a), end), (x / a).flatten().numpy(), rtol=1e-7, atol=1e-8)
    y = torch.as_tensor(solved.y[:, -1]).reshape(24, 1, 1, 2)
    exact = y - end * torch.as_tensor(slope(end, solved.y[:, -1])).reshape(24, 1, 1, 2)

    oracle = Oracle(LINEAR, FIVE_MODES)
    bounds = {"ddim": 0.03, "euler": 0.03, "heun": 0.01, "dpmpp_2m": 0.003, "pndm": 0.003}
    for name, bound in bounds.items():
        error = (sample(name, x, oracle, timesteps) - exact).flatten(1).norm(dim=1).median()
        assert float(error) < bound, name


def test_the_network_is_called_as_often_as_documented() -> None:
    calls = {"ddim": 20, "ddpm": 20, "euler": 20, "euler_ancestral": 20, "heun": 39, "dpmpp_2m": 20, "pndm": 21, "pndm_prk": 29}
    calls |= {"dpmpp_2m_sde": 20, "unipc": 20, "lcm": 20}
    noise = step_noise([(0,), (1,)], (1, 1, 2))
    for name, expected in calls.items():
        oracle = Oracle(LINEAR, FIVE_MODES)
        sample(name, start(2, 2), oracle, LINEAR.timesteps(20), noise=noise)
        assert len(oracle.asked) == expected, name
    oracle = Oracle(LINEAR, FIVE_MODES)
    sample("pndm", start(2, 2), oracle, LINEAR.timesteps(20), skip_prk=False)
    assert len(oracle.asked) == 20 + 9


def test_a_step_from_almost_no_signal_costs_one_call() -> None:
    """Heun saves its second call on the cosine schedule's first step of ten; PNDM makes it on the next step instead."""
    for name, expected in {"heun": 18, "pndm": 11}.items():
        oracle = Oracle(NO_SIGNAL_AT_FIRST[0], FIVE_MODES)
        sample(name, start(2, 2), oracle, oracle.schedule.timesteps(10, spacing="trailing"), **GUARD)
        assert len(oracle.asked) == expected, name


def test_requests_carry_the_timesteps_of_the_list() -> None:
    oracle, timesteps = Oracle(NoiseSchedule(), FIVE_MODES), NoiseSchedule().timesteps(7)
    sample("ddim", start(3, 2), oracle, timesteps)
    asked = [request.t for request in oracle.asked if isinstance(request, DenoiseRequest)]
    assert [t.tolist() for t in asked] == [[t] * 3 for t in timesteps.tolist()]
    assert all(t.dtype == torch.long for t in asked)


# -- independence and dtype ------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("style", ["streams", "function"])
def test_an_item_does_not_depend_on_its_neighbours(name: str, style: str) -> None:
    shape, timesteps, oracle = (1, 1, 2), LINEAR.timesteps(12), Oracle(LINEAR, FIVE_MODES)

    def drawn(items: list[int]) -> Tensor:
        x_T = normal_rows(shape, [stream(0, item, "start") for item in items], dtype=torch.float64)
        if style == "streams":
            return sample(name, x_T, oracle, timesteps, noise=[stream(0, item, "noise") for item in items])
        return sample(name, x_T, oracle, timesteps, noise=step_noise([(0, item) for item in items], shape))

    together = drawn([3, 1, 4, 2])
    for row, item in enumerate([3, 1, 4, 2]):
        torch.testing.assert_close(together[row : row + 1], drawn([item]), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_stays_in_the_dtype_of_the_start_and_finite_on_a_zero_snr_schedule(name: str) -> None:
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    noise = step_noise([(0,), (1,)], (1, 1, 2))
    out = sample(name, start(2, 2).float(), Oracle(schedule, FIVE_MODES), schedule.timesteps(20), noise=noise)
    assert out.dtype == torch.float32
    assert bool(out.isfinite().all()) and float(out.abs().max()) < 4


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("timesteps", [[], [3, 3], [1, 5], [[4, 2]]])
def test_refuses_timesteps_that_do_not_fall(timesteps: list[Any]) -> None:
    with pytest.raises(DiffusionError, match="expected a strictly decreasing list of at least one"):
        sample("ddim", start(1), Oracle(LINEAR, ONE_GAUSSIAN), torch.tensor(timesteps, dtype=torch.long))


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_refuses_to_make_up_noise(name: str) -> None:
    with pytest.raises(DiffusionError, match=r"adds noise and was given none; expected .* one random stream for each"):
        sample(name, start(1), Oracle(LINEAR, ONE_GAUSSIAN), LINEAR.timesteps(3))


def test_refuses_noise_of_another_shape() -> None:
    oracle = Oracle(LINEAR, ONE_GAUSSIAN)
    with pytest.raises(DiffusionError, match="2 noise streams for 3 rows; expected one a row"):
        sample("ddpm", start(3), oracle, LINEAR.timesteps(3), noise=[stream(0), stream(1)])
    with pytest.raises(DiffusionError, match=r"noise of step 0 has shape \(1,\); expected x's \(3, 1, 1, 1\)"):
        sample("ddpm", start(3), oracle, LINEAR.timesteps(3), noise=lambda step: torch.zeros(1))


def test_refuses_an_unknown_variance() -> None:
    with pytest.raises(DiffusionError, match="variance is 'learnt'; expected 'fixed_small', 'fixed_large' or 'learned'"):
        sample("ddpm", start(1), Oracle(LINEAR, ONE_GAUSSIAN), LINEAR.timesteps(3), variance="learnt")


def test_the_registry_names_the_functions() -> None:
    assert {name: function.__name__ for name, function in SAMPLERS.items()} == {name: name for name in SAMPLERS}
    assert {ddim, ddpm, dpmpp_2m, euler, heun, pndm} <= set(SAMPLERS.values())
