"""Every sampler, pointwise, against diffusers' scheduler with the same exact denoiser.

Where diffusers is known to differ from the papers the comparison is left out, and said so: PNDM with v-prediction adds
up v of different timesteps; DDIM and PNDM miss the next timestep where N does not divide T, except with "leading".
Ancestral Euler is not implemented there for x0 predictions. Each takes its own timesteps: ours are compared with those of
diffusers' class.
"""

from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diffusion.requests import Guidance, run
from diffusion.samplers import SAMPLERS, STOCHASTIC, timesteps_for
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, stream
from tests.oracles import FIVE_MODES, Oracle, condition

ROWS = 64
KINDS = ("epsilon", "v_prediction", "sample")

DIFFUSERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (diffusers.DDIMScheduler, {}),
    "ddpm": (diffusers.DDPMScheduler, {"variance_type": "fixed_small"}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "pndm_prk": (diffusers.PNDMScheduler, {"skip_prk_steps": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_ancestral": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {"lower_order_final": True}),
    "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
}

VARIANCE_PRESERVING = (diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler)

CASES = [
    (name, kind)
    for name in sorted(DIFFUSERS)
    for kind in KINDS
    if (not name.startswith("pndm") or kind == "epsilon") and (name, kind) != ("euler_ancestral", "sample")
]

# diffusers hands torch tensors to np.array.
pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]


def scheduler_of(name: str, schedule: NoiseSchedule, num_steps: int, **options: Any) -> Any:
    config = {key: value for key, value in schedule.to_config().items() if key != "_class_name"}
    cls, more = DIFFUSERS[name]
    known = set(cls.__init__.__wrapped__.__code__.co_varnames)
    scheduler = cls(**{key: value for key, value in {**config, **more, **options}.items() if key in known})
    scheduler.set_timesteps(num_steps)
    return scheduler


def diffusers_result(scheduler: Any, oracle: Oracle, x_T: Tensor, timesteps: Tensor, **step_options: Any) -> Tensor:
    """diffusers' sampling loop from our variance-preserving x_T.

    Multistep solvers round what they tell the network between two timesteps; it is told `timesteps` instead.
    """
    first, told = timesteps[0], scheduler.timesteps
    if isinstance(scheduler, VARIANCE_PRESERVING):
        told = timesteps
    exploding = "sigmas" in vars(scheduler) and not isinstance(scheduler, VARIANCE_PRESERVING)
    x = x_T / oracle.schedule.alpha(first[None]) if exploding else x_T
    for t, heard in zip(scheduler.timesteps, told, strict=True):
        scaled = scheduler.scale_model_input(x, t)
        output = oracle.network(
            scaled, (heard.double() if heard % 1 else heard.long()).expand(len(x)), torch.ones(len(x), 1, 1)
        )
        x = scheduler.step(output, t, x, **step_options).prev_sample
    return x


def compare(
    name: str,
    schedule: NoiseSchedule,
    num_steps: int,
    monkeypatch: pytest.MonkeyPatch,
    *,
    spacing: Any = None,
    atol: float = 5e-5,
    **options: Any,
) -> None:
    eta = {"eta": options["eta"]} if "eta" in options else {}
    theirs_only = {"skip_prk": "skip_prk_steps", "variance": "variance_type"}
    more = {theirs_only.get(k, k): v for k, v in options.items()}
    if spacing is not None:
        more |= {f"use_{spacing}_sigmas": True}
        schedule = replace(schedule, timestep_spacing="linspace")
    scheduler = scheduler_of(name, schedule, num_steps, **more)
    timesteps = timesteps_for(name, schedule, num_steps, spacing=spacing)
    if spacing is None and not name.startswith("pndm"):
        theirs_t = torch.as_tensor(scheduler.timesteps).double().unique().flip(0)
        torch.testing.assert_close(timesteps.double(), theirs_t, rtol=0, atol=1e-4)
    x_T = normal((ROWS, 1, 1, 2), stream(0, "start"), dtype=torch.float64)
    draws = [normal((ROWS, 1, 1, 2), stream(0, "step", i), dtype=torch.float64) for i in range(num_steps)]
    waiting = iter(draws)
    for module in ("ddim", "ddpm", "euler_ancestral_discrete", "dpmsolver_multistep", "lcm"):
        path = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
        monkeypatch.setattr(path, lambda *_, **__: next(waiting))

    oracle = Oracle(schedule, FIVE_MODES)
    theirs = diffusers_result(scheduler, oracle, x_T, timesteps, **eta)
    sampling = SAMPLERS[name](
        x_T,
        schedule=schedule,
        timesteps=timesteps,
        condition=condition(ROWS),
        guidance=Guidance(scale=1),
        noise=draws.__getitem__ if name in STOCHASTIC or eta else None,
        **options,
    )
    ours = run(sampling, oracle)
    # diffusers' tables are float32. Where fresh noise throws a point near the border of two modes, that shows.
    atol *= 4 if name in ("dpmpp_2m_sde", "lcm") else 1
    torch.testing.assert_close(ours, theirs.double(), rtol=0, atol=atol)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_equals_diffusers(name: str, kind: str, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = NoiseSchedule(prediction_type=kind, timestep_spacing=spacing)
    compare(name, schedule, 20, monkeypatch)


@pytest.mark.parametrize("name", sorted(DIFFUSERS))
def test_equals_diffusers_on_the_cosine_schedule(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """squaredcos_cap_v2 ends at abar = 2e-9, where float32 tables are at their coarsest; v-prediction copes."""
    kind = "epsilon" if name.startswith("pndm") else "v_prediction"
    schedule = NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type=kind)
    compare(name, schedule, 25, monkeypatch)


@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_final_alpha_follows_the_configuration(set_alpha_to_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = NoiseSchedule(set_alpha_to_one=set_alpha_to_one)
    compare("ddim", schedule, 30, monkeypatch)
    compare("pndm", schedule, 30, monkeypatch)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise(eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    compare("ddim", NoiseSchedule(), 20, monkeypatch, eta=eta)


@pytest.mark.parametrize("num_steps", [7, 20])
def test_pndm_with_runge_kutta_warmup(num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long steps tell the four slopes of one apart."""
    compare("pndm", NoiseSchedule(), num_steps, monkeypatch, skip_prk=False)


def test_ddpm_with_the_large_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the last timestep is 0: from any other diffusers adds noise to the final picture."""
    schedule = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, steps_offset=0)
    compare("ddpm", schedule, 20, monkeypatch, variance="fixed_large")


@pytest.mark.parametrize("num_steps", [7, 50])
@pytest.mark.parametrize("name", ["heun", "pndm"])
def test_short_and_long_runs_equal_diffusers(name: str, num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compare(name, NoiseSchedule(), num_steps, monkeypatch)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
@pytest.mark.parametrize(("spacing", "num_steps"), [("linspace", 9), ("karras", 12), ("exponential", 12), ("beta", 12)])
def test_equals_diffusers_at_its_other_levels(name: str, spacing: str, num_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A perfect network between its timesteps. Between two of them diffusers draws a line in sigma for Euler's "linspace",
    in log sigma otherwise, and rounds what the network of the multistep solvers is told: here it is told ours."""
    if spacing == "linspace":
        compare(name, NoiseSchedule(timestep_spacing="linspace"), num_steps, monkeypatch, atol=5e-4)
        return
    compare(name, NoiseSchedule(), num_steps, monkeypatch, spacing=spacing)


def test_pndm_does_not_depend_on_the_parameterisation() -> None:
    """What diffusers gets wrong: the same exact denoiser as v or as x0 must give the same picture."""
    x_T = normal((ROWS, 1, 1, 2), stream(0, "start"), dtype=torch.float64)
    results = []
    for kind in KINDS:
        schedule = NoiseSchedule(prediction_type=kind)
        sampling = SAMPLERS["pndm"](
            x_T,
            schedule=schedule,
            timesteps=schedule.timesteps(10),
            condition=condition(ROWS),
            guidance=Guidance(scale=1),
        )
        results.append(run(sampling, Oracle(schedule, FIVE_MODES)))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=1e-10)
