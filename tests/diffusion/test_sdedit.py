"""SDEdit: its two ends, its law at small strength, and the kept region."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.requests import Guidance, run
from diffusion.samplers import SAMPLERS, sdedit
from diffusion.samplers.sdedit import timesteps_of_strength
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, step_noise, stream
from tests.oracles import GaussianMixture, Oracle, condition, gaussian_flow

pytestmark = pytest.mark.oracle

SCHEDULE = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, steps_offset=0, set_alpha_to_one=True)
SHAPE = (1, 2, 4)
EIGHT_DIMENSIONS = GaussianMixture.gaussian([0.5] * 8, torch.eye(8) * 0.3)


def edit(reference: Tensor, strength: float, *, name: str = "ddim", num_steps: int = 20, **options: Any) -> Tensor:
    rows = len(reference)
    generator = sdedit(
        reference,
        sampler=SAMPLERS[name],
        strength=strength,
        start_noise=normal(reference.shape, stream(0, "start"), dtype=torch.float64),
        schedule=SCHEDULE,
        timesteps=SCHEDULE.timesteps(num_steps),
        condition=condition(rows),
        guidance=Guidance(scale=1),
        **{"noise": step_noise([(0, row) for row in range(rows)], reference.shape[1:]), **options},
    )
    return run(generator, Oracle(SCHEDULE, EIGHT_DIMENSIONS))


def picture(rows: int = 3) -> Tensor:
    return normal((rows, *SHAPE), stream(1, "picture"), dtype=torch.float64)


def test_strength_zero_is_the_picture() -> None:
    assert torch.equal(edit(picture(), 0.0), picture())


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_strength_one_is_plain_sampling_from_the_noised_picture(name: str) -> None:
    reference, timesteps = picture(), SCHEDULE.timesteps(20)
    eps = normal(reference.shape, stream(0, "start"), dtype=torch.float64)
    plain = SAMPLERS[name](
        SCHEDULE.add_noise(reference, eps, timesteps[0].expand(3)),
        schedule=SCHEDULE,
        timesteps=timesteps,
        condition=condition(3),
        guidance=Guidance(scale=1),
        noise=step_noise([(0, row) for row in range(3)], SHAPE),
    )
    assert torch.equal(edit(reference, 1.0, name=name), run(plain, Oracle(SCHEDULE, EIGHT_DIMENSIONS)))


def test_strength_cuts_the_timesteps_as_diffusers_does() -> None:
    timesteps = SCHEDULE.timesteps(50)
    for strength in (0.0, 0.01, 0.3, 0.55, 0.99, 1.0):
        start = max(50 - min(int(50 * strength), 50), 0)
        assert timesteps_of_strength(timesteps, strength).tolist() == timesteps.tolist()[start:]


def noised_reference(strength: float, num_steps: int, rows: int) -> tuple[Tensor, float, float]:
    """x_t0 that `edit` starts from, and alpha, sigma there."""
    t0 = timesteps_of_strength(SCHEDULE.timesteps(num_steps), strength)[:1]
    eps = normal((rows, *SHAPE), stream(0, "start"), dtype=torch.float64)
    x_t = SCHEDULE.add_noise(picture(rows), eps, t0.expand(rows))
    return x_t, float(SCHEDULE.alpha(t0)), float(SCHEDULE.sigma(t0))


def test_ddim_at_small_strength_is_the_flow_from_there() -> None:
    """At strength .3, where it differs from sampling without a picture."""
    x_t, a, s = noised_reference(0.3, 1000, 3)
    mean, variance = torch.full(SHAPE, 0.5, dtype=torch.float64), torch.full(SHAPE, 0.3, dtype=torch.float64)
    exact = gaussian_flow(mean, variance, x_t, (a, s), (1.0, 0.0))
    torch.testing.assert_close(edit(picture(), 0.3, num_steps=1000), exact, rtol=0, atol=0.006)


def test_ddpm_at_small_strength_draws_from_the_posterior() -> None:
    """x0 ~ p(x0 | x_t0) = N(m + k (x_t0 - a m), c s^2 / (a^2 c + s^2)), with k = a c / (a^2 c + s^2)."""
    rows = 400
    x_t, a, s = noised_reference(0.3, 1000, rows)
    mean, variance = 0.5, 0.3
    total = a**2 * variance + s**2
    edited = edit(
        picture(rows),
        0.3,
        name="ddpm",
        num_steps=1000,
        noise=lambda step: normal((rows, *SHAPE), stream(3, step)),
    )
    away = edited - (mean + a * variance / total * (x_t - a * mean))
    spread = variance * s**2 / total
    count = away.numel()
    assert abs(float(away.mean())) < 4 * (spread / count) ** 0.5
    # fixed_small is a little narrow at finitely many steps: .86 of this at a tenth of them.
    assert 0.95 < float(away.var()) / spread < 1.03
    assert abs(float((away * (x_t - x_t.mean())).mean())) < 4 * (spread * float(x_t.var()) / count) ** 0.5


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_kept_region_is_the_picture_and_the_rest_is_not(name: str) -> None:
    reference = picture()
    mask = torch.zeros(1, 1, 2, 4)
    mask[..., :2] = 1
    edited = edit(reference, 0.6, name=name, mask=mask)
    torch.testing.assert_close(edited[..., :2], reference[..., :2], rtol=0, atol=1e-12)
    assert float((edited[..., 2:] - reference[..., 2:]).abs().min()) > 1e-3
    # Independent dimensions: what is kept here must not change what is drawn there.
    torch.testing.assert_close(edited[..., 2:], edit(reference, 0.6, name=name)[..., 2:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m", "pndm", "euler"])
def test_the_network_sees_the_kept_region_noised_with_the_same_noise(name: str) -> None:
    """The paper's reset, for samplers without noise of their own: a x_ref + s eps at every level, with one eps."""
    reference = picture()
    eps = normal(reference.shape, stream(0, "start"), dtype=torch.float64)
    oracle = Oracle(SCHEDULE, EIGHT_DIMENSIONS)
    generator = sdedit(
        reference,
        sampler=SAMPLERS[name],
        strength=0.5,
        start_noise=eps,
        schedule=SCHEDULE,
        timesteps=SCHEDULE.timesteps(10),
        condition=condition(3),
        guidance=Guidance(scale=1),
        mask=torch.ones(1, 1, 1, 1),
    )
    run(generator, oracle)
    for request in oracle.asked:
        expected = SCHEDULE.add_noise(reference, eps, request.t)
        torch.testing.assert_close(request.x_t, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("strength", [-0.1, 1.1])
def test_refuses_a_strength_outside_its_range(strength: float) -> None:
    with pytest.raises(DiffusionError, match=f"strength is {strength}; expected 0 to 1"):
        edit(picture(), strength)
