"""The figures of diffusers' own scheduler tests: ten steps with a network that answers x t / (t + 1).

Left out: those that clip or threshold (latents never are), Heun's and Euler's for v, which are 0 to the digits published,
PNDM's for v (it adds up v of different timesteps; ours is the epsilon form's), and DPM-Solver++'s, whose published figure is
of an option that we lack: `test_samplers_against_diffusers` has that solver. Its Euler loops step from the *scaled* sample; the
loop here does the same, one step of ours at a time.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.parameterisation import Prediction
from diffusion.requests import Condition, DenoiseRequest, Guidance, run
from diffusion.samplers import SAMPLERS, timesteps_for
from diffusion.schedule import NoiseSchedule

pytestmark = pytest.mark.oracle

NUM = 4 * 3 * 8 * 8
START = (torch.arange(NUM, dtype=torch.float64) / NUM).reshape(3, 8, 8, 4).permute(3, 0, 1, 2)


def schedule_of(**config: Any) -> NoiseSchedule:
    linear = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "steps_offset": 0}
    return NoiseSchedule(**{**linear, **config})


def answer(request: DenoiseRequest, schedule: NoiseSchedule) -> Prediction:
    t = request.t[0].double()
    scales = schedule.alpha(request.t), schedule.sigma(request.t)
    return Prediction.from_output(request.x_t * t / (t + 1), request.x_t, *scales, schedule.prediction_type)


def sampling(name: str, x: Tensor, schedule: NoiseSchedule, timesteps: Tensor, **options: Any) -> Any:
    rest = {"condition": Condition(torch.zeros(4, 1, 1)), "guidance": Guidance(scale=1)}
    return SAMPLERS[name](x, schedule=schedule, timesteps=timesteps, **rest, **options)


SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V = {"prediction_type": "v_prediction"}
ABAR_0 = {"final_abar": 1 - 1e-4}


@pytest.mark.parametrize(
    ("name", "spacing", "num_steps", "options", "config", "published"),
    [
        ("pndm_prk", "leading", 10, {}, {}, 198.1318),
        ("pndm_prk", "leading", 10, {}, {"beta_start": 0.01, "set_alpha_to_one": True}, 230.0399),
        ("pndm_prk", "leading", 10, {}, {"beta_start": 0.01}, 186.9482),
        ("lcm", None, 1, {}, SD, 18.7097),
        ("lcm", None, 10, {}, SD, 197.7616),
    ],
)
def test_sums(name: str, spacing: Any, num_steps: int, options: Any, config: Any, published: float) -> None:
    schedule = schedule_of(**config)
    timesteps = timesteps_for(name, schedule, num_steps, spacing=spacing)
    drawing = sampling(name, START, schedule, timesteps, noise=drawn_in_turn(), **options)
    result = run(drawing, lambda request: answer(request, schedule))
    assert float(result.abs().sum()) == pytest.approx(published, abs=1e-2)


@pytest.mark.parametrize(
    ("spacing", "config", "published"),
    [("linspace", {}, 0.2464), ("karras", {}, 0.2925), ("linspace", V, 0.1014), ("karras", V, 0.1966)],
)
def test_means_of_unipc(spacing: Any, config: Any, published: float) -> None:
    """Those runs end at the schedule's smallest noise. Karras levels tell the network between its timesteps here."""
    schedule = schedule_of(**config)
    timesteps = timesteps_for("unipc", schedule, 10, spacing=spacing)
    result = run(sampling("unipc", START, schedule, timesteps, **ABAR_0), lambda request: answer(request, schedule))
    assert float(result.abs().mean()) == pytest.approx(published, abs=1e-3)


def drawn_in_turn() -> Any:
    """The noise of diffusers' tests: one generator's, step by step."""
    generator = torch.manual_seed(0)
    return lambda _: torch.randn(START.shape, generator=generator).double()


@pytest.mark.parametrize(
    ("name", "spacing", "config", "published"),
    [
        ("euler", "linspace", {}, 10.0807),
        ("euler", "karras", {}, 124.52299499511719),
        ("euler_ancestral", "linspace", {}, 152.3192),
        ("euler_ancestral", "linspace", V, 108.4439),
    ],
)
def test_sums_of_eulers_loop(name: str, spacing: Any, config: Any, published: float) -> None:
    schedule = schedule_of(num_train_timesteps=1100, **config)
    timesteps, noise = timesteps_for(name, schedule, 10, spacing=spacing), drawn_in_turn()
    sigmas = schedule.sigma(timesteps) / schedule.alpha(timesteps)
    x = START * (sigmas[0] ** 2 + 1).sqrt()
    for index, alpha in enumerate(schedule.alpha(timesteps)):
        # The scaled sample alpha x stands for the sample itself, so that it is scaled once more for our step.
        step = sampling(name, alpha**2 * x, schedule, timesteps[index:], noise=noise)
        request = next(step)
        t, scales = request.t[0].double(), (schedule.alpha(request.t), schedule.sigma(request.t))
        try:
            reply = Prediction.from_output(alpha * x * t / (t + 1), request.x_t, *scales, schedule.prediction_type)
            x = step.send(reply).x_t / schedule.alpha(timesteps[index + 1 : index + 2])
        except StopIteration as finished:
            x = finished.value
    assert float(x.abs().sum()) == pytest.approx(published, abs=1e-2)


def test_pndm_calls_the_timesteps_of_its_paper() -> None:
    """diffusers' `test_steps_offset`, and the linear schedule of DDPM from ten steps on: no step is left out."""
    schedule = schedule_of(steps_offset=1)
    asked: list[int] = []

    def noted(request: DenoiseRequest) -> Prediction:
        asked.append(int(request.t[0]))
        return answer(request, schedule)

    run(sampling("pndm_prk", START, schedule, schedule.timesteps(10)), noted)
    halves = [t for high in (901, 801, 701) for t in (high, high - 50, high - 50, high - 100)]
    assert asked == [*halves, 601, 501, 401, 301, 201, 101, 1]


@pytest.mark.parametrize(
    ("name", "num_steps", "spacing", "expected"),
    [
        ("dpmpp_2m", 10, "leading", [901, 811, 721, 631, 541, 451, 361, 271, 181, 91]),
        ("unipc", 10, "leading", [901, 811, 721, 631, 541, 451, 361, 271, 181, 91]),
        ("dpmpp_2m", 4, "linspace", [999, 749, 500, 250]),
        ("euler", 3, "linspace", [999, 499.5, 0]),
        ("euler", 4, "trailing", [999, 749, 499, 249]),
        ("lcm", 4, None, [999, 759, 499, 259]),
        ("lcm", 4, "trailing", [999, 749, 499, 249]),
    ],
)
def test_timesteps(name: str, num_steps: int, spacing: Any, expected: list[float]) -> None:
    assert timesteps_for(name, NoiseSchedule(), num_steps, spacing=spacing).tolist() == expected


@pytest.mark.parametrize("num_steps", [1, 2, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras", "exponential", "beta"])
@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"ddpm", "pndm", "pndm_prk"}))
def test_any_number_of_steps_falls_strictly_inside_the_schedule(name: str, spacing: Any, num_steps: int) -> None:
    timesteps = timesteps_for(name, NoiseSchedule(), num_steps, spacing=spacing)
    assert len(timesteps) == num_steps and float(timesteps[-1]) >= 0 and float(timesteps[0]) <= 999
    assert bool((timesteps.diff() < 0).all())


def test_karras_levels_are_their_formula() -> None:
    schedule = NoiseSchedule()
    sigmas = schedule.sigma(t := timesteps_for("euler", schedule, 5, spacing="karras")) / schedule.alpha(t)
    high, low = (float(schedule.ratios[i]) ** (1 / 7) for i in (-1, 0))
    expected = torch.tensor([(high + i / 4 * (low - high)) ** 7 for i in range(5)], dtype=torch.float64)
    torch.testing.assert_close(sigmas, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    ("name", "num_steps", "spacing", "message"),
    [
        ("pndm", 10, "karras", "'pndm' was given 'karras' noise levels; expected 'leading', 'trailing' or 'linspace'"),
        ("euler", 10, "sgm", "the timestep spacing is 'sgm'; expected one of 'leading'"),
        ("lcm", 51, None, "'lcm' was asked for 51 steps; expected 1 to 50"),
        ("euler", 1001, None, "num_steps is 1001; expected 1 to 1000"),
    ],
)
def test_refuses(name: str, num_steps: int, spacing: Any, message: str) -> None:
    from diffusion.errors import DiffusionError

    with pytest.raises(DiffusionError, match=message):
        timesteps_for(name, NoiseSchedule(), num_steps, spacing=spacing)
