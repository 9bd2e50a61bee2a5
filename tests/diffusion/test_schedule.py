"""Noise schedules: the tables and lists of diffusers, in double precision, and what they refuse."""

import pickle
from typing import Any

import diffusers
import pytest
import torch

from diffusion.errors import DiffusionError
from diffusion.schedule import NoiseSchedule

pytestmark = pytest.mark.oracle

LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@pytest.mark.parametrize("total", [1000, 50])
def test_table_is_diffusers_in_double_precision(beta_schedule: Any, total: int) -> None:
    ours = NoiseSchedule(num_train_timesteps=total, beta_schedule=beta_schedule, beta_start=1e-4, beta_end=0.02)
    theirs = diffusers.DDPMScheduler(num_train_timesteps=total, beta_schedule=beta_schedule, beta_start=1e-4, beta_end=0.02)
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=2e-4, atol=3e-7)
    assert ours.alphas_cumprod.dtype == torch.float64


def test_zero_snr_table_is_diffusers() -> None:
    ours = NoiseSchedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    theirs = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    )
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert ours.alphas_cumprod[-1] == 0
    assert ours.alphas_cumprod[0] == NoiseSchedule().alphas_cumprod[0]


def test_defaults_are_stable_diffusion() -> None:
    assert NoiseSchedule.from_config(STABLE_DIFFUSION) == NoiseSchedule()
    # abar at both ends, from the published betas: 1 - .00085 and sqrt(abar_999) = .0682...
    assert float(NoiseSchedule().alphas_cumprod[0]) == pytest.approx(1 - 0.00085, abs=1e-12)
    assert float(NoiseSchedule().alpha(torch.tensor([999]))) == pytest.approx(0.06826, abs=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_steps", [1, 3, 7, 20, 30, 50, 333, 999])
def test_timesteps_are_diffusers(spacing: Any, num_steps: int) -> None:
    ours = NoiseSchedule(timestep_spacing=spacing, steps_offset=1)
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    theirs.set_timesteps(num_steps)
    assert ours.timesteps(num_steps).tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_stays_inside_and_falls(spacing: Any) -> None:
    schedule = NoiseSchedule(num_train_timesteps=100, steps_offset=1)
    for num_steps in range(1, 101):
        timesteps = schedule.timesteps(num_steps, spacing=spacing)
        assert len(timesteps) == num_steps
        assert timesteps[0] <= 99 and timesteps[-1] >= 0
        assert bool((timesteps.diff() < 0).all())


def test_configuration_round_trip_and_diffusers_reads_it() -> None:
    schedule = NoiseSchedule(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing")
    assert NoiseSchedule.from_config(schedule.to_config()) == schedule
    theirs = diffusers.DDIMScheduler.from_config(schedule.to_config())
    theirs.set_timesteps(20)
    assert theirs.config.prediction_type == "v_prediction"
    assert theirs.timesteps.tolist() == schedule.timesteps(20).tolist()


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_absent_fields_take_the_defaults_of_the_class(name: str) -> None:
    theirs = getattr(diffusers, name)().config
    ours = NoiseSchedule.from_config({"_class_name": name})
    assert ours.timestep_spacing == theirs.timestep_spacing
    assert (ours.beta_schedule, ours.beta_start, ours.beta_end) == ("linear", theirs.beta_start, theirs.beta_end)
    if "set_alpha_to_one" in theirs:
        assert ours.set_alpha_to_one == theirs.set_alpha_to_one


def test_trained_betas_replace_the_named_schedule() -> None:
    named = NoiseSchedule(num_train_timesteps=4, **LINEAR)
    explicit = NoiseSchedule(num_train_timesteps=4, trained_betas=tuple(torch.linspace(1e-4, 0.02, 4).tolist()))
    torch.testing.assert_close(explicit.alphas_cumprod, named.alphas_cumprod, rtol=1e-8, atol=0)
    assert NoiseSchedule.from_config(explicit.to_config()) == explicit


def test_scales_and_noise() -> None:
    schedule = NoiseSchedule()
    t = torch.tensor([0, 400, 999])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-15)
    torch.testing.assert_close(schedule.snr(t), (alpha / sigma) ** 2)
    x0, eps = torch.full((3, 2, 4, 4), 2.0), torch.full((3, 2, 4, 4), -1.0)
    x_t = schedule.add_noise(x0, eps, t)
    assert x_t.dtype == torch.float32
    torch.testing.assert_close(x_t[:, 0, 0, 0], (2 * alpha - sigma).float())


def test_float_timesteps_interpolate_the_log_snr() -> None:
    schedule = NoiseSchedule()
    whole = torch.tensor([0, 17, 998, 999])
    torch.testing.assert_close(schedule.abar(whole.double()), schedule.abar(whole), rtol=1e-12, atol=0)
    half = schedule.snr(torch.tensor([17.5])).log()
    torch.testing.assert_close(half, schedule.snr(torch.tensor([17, 18])).log().mean()[None], rtol=1e-12, atol=0)
    zero_snr = NoiseSchedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert bool(zero_snr.alpha(torch.tensor([998.5])).isfinite())


def test_equal_schedules_are_equal_and_travel() -> None:
    schedule = NoiseSchedule(**LINEAR)
    assert schedule == NoiseSchedule(**LINEAR) and schedule != NoiseSchedule()
    travelled = pickle.loads(pickle.dumps(schedule))
    assert travelled == schedule and hash(travelled) == hash(schedule)
    torch.testing.assert_close(travelled.alphas_cumprod, schedule.alphas_cumprod, rtol=0, atol=0)


def test_a_schedule_used_on_a_gpu_travels_to_a_process_without_one() -> None:
    schedule = NoiseSchedule()
    schedule.alpha(torch.tensor([5], device="meta"))
    travelled = pickle.loads(pickle.dumps(schedule))
    assert travelled._tables.keys() == {torch.device("cpu")}
    assert torch.equal(travelled.alphas_cumprod, schedule.alphas_cumprod)
    assert torch.device("meta") in schedule._tables


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta_schedule": "quadratic"}, "beta_schedule is 'quadratic'; expected one of 'linear'"),
        ({"prediction_type": "flow"}, "prediction_type is 'flow'"),
        ({"timestep_spacing": "karras"}, "timestep_spacing is 'karras'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0; expected at least 1"),
        ({**LINEAR, "beta_start": -0.1}, "betas run from -0.1 .* every beta strictly between 0 and 1"),
        ({**LINEAR, "beta_end": 1.5}, "betas run from 0.0001 to 1.5"),
        ({"trained_betas": (0.1, 0.2)}, "trained_betas has 2 entries; expected num_train_timesteps = 1000"),
        ({"num_train_timesteps": 2, "trained_betas": (0.1, 1e-18)}, "does not fall strictly"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is set with prediction_type 'epsilon'"),
    ],
)
def test_refuses_impossible_schedules(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DiffusionError, match=message):
        NoiseSchedule(**settings)


@pytest.mark.parametrize("switch", ["clip_sample", "thresholding", "use_karras_sigmas", "use_exponential_sigmas"])
def test_switches_of_a_sampler_never_block_a_schedule(switch: str) -> None:
    assert NoiseSchedule.from_config({**STABLE_DIFFUSION, switch: True}) == NoiseSchedule.from_config(STABLE_DIFFUSION)


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_max": 80.0},
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True},
        {"_class_name": "CMStochasticIterativeScheduler"},
    ],
)
def test_another_process_never_passes_as_betas(config: dict[str, Any]) -> None:
    with pytest.raises(DiffusionError, match=f"the scheduler is a {config['_class_name']}.*stands for another process"):
        NoiseSchedule.from_config(config)


def test_absent_fields_are_those_of_the_class_and_zero_snr_begins_at_the_end() -> None:
    lcm = NoiseSchedule.from_config({"_class_name": "LCMScheduler"})
    assert (lcm.beta_schedule, lcm.beta_end, lcm.set_alpha_to_one) == ("scaled_linear", 0.012, True)
    assert NoiseSchedule.from_config({"_class_name": "UniPCMultistepScheduler"}).timestep_spacing == "linspace"
    zero = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    assert NoiseSchedule.from_config(zero).timesteps(28)[0] == 999
    assert NoiseSchedule.from_config({**zero, "timestep_spacing": "leading"}).timestep_spacing == "leading"


@pytest.mark.parametrize("num_steps", [0, -1, 1001])
def test_refuses_impossible_numbers_of_steps(num_steps: int) -> None:
    with pytest.raises(DiffusionError, match=f"num_steps is {num_steps}; expected 1 to 1000"):
        NoiseSchedule().timesteps(num_steps)


@pytest.mark.parametrize("t", [-1, 1000])
def test_refuses_timesteps_outside_the_table(t: int) -> None:
    with pytest.raises(DiffusionError, match=f"timesteps run from {min(t, 5)} to {max(t, 5)}; expected 0 to 999"):
        NoiseSchedule().alpha(torch.tensor([t, 5]))
