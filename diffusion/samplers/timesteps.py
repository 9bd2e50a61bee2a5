"""Where along a schedule a sampler calls its network: each class of samplers has its own published rule."""

from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.flow_schedule import FlowSchedule
from diffusion.process import Schedule
from diffusion.schedule import NoiseSchedule, TimestepSpacing

Spacing = Literal["leading", "trailing", "linspace", "karras", "exponential", "beta"]
"""Three lists of timesteps (2305.08891 table 2) and three of noise levels over the schedule's whole range."""

# These count the end of the picture as one of their levels, so that N steps divide the schedule into N + 1.
_COUNT_THE_END = frozenset({"dpmpp_2m", "dpmpp_2m_sde", "unipc"})
# These step in sigma, and ask a network between its timesteps where the list falls there.
_CONTINUOUS = frozenset({"euler", "euler_ancestral", "heun", "flow_heun"})
# These need timesteps at equal distances, or are a chain over the table's own.
_TABLE_ONLY = frozenset({"pndm", "pndm_prk", "ddpm"})

FLOW_SAMPLERS = ("euler", "ddim", "flow_heun", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
"""Those whose formulas hold for rectified flow; on it `euler` is flow-match Euler, and so is `ddim`."""

LCM_TIMESTEPS = 50
"""The length of the list that latent consistency models were distilled on."""
KARRAS_RHO = 7.0
BETA_SHAPE = 0.6


def timesteps_for(sampler: str, schedule: Schedule, num_steps: int, *, spacing: Spacing | None = None) -> Tensor:
    """The timesteps that a sampler of `num_steps` steps takes on a schedule, as diffusers' class of that name does.

    `dpmpp_2m`, `dpmpp_2m_sde` and `unipc` divide "leading" and "linspace" into N + 1 parts; `euler`, `euler_ancestral`,
    `heun` and `flow_heun` do not round "linspace"; `lcm` has its own list where no spacing is given.

    Args:
        sampler: a name in `SAMPLERS`.
        spacing: None for the schedule's own. "karras" (2206.00364 eq. 5, rho = 7), "exponential" (equal steps in log sigma)
            and "beta" (2407.12173, both parameters 0.6) place sigma / alpha over the schedule's whole range, between its
            timesteps where they fall there; of a rectified flow, sigma.

    Returns:
        (num_steps,) strictly decreasing, long, or float64 where some lie between two of the schedule's.

    Raises:
        DiffusionError: a number of steps or a spacing that the sampler or the schedule does not have.
    """
    check_sampler(sampler, schedule)
    if isinstance(schedule, FlowSchedule):
        return _flow_timesteps(schedule, num_steps, spacing)
    assert isinstance(schedule, NoiseSchedule)
    total = schedule.num_train_timesteps
    plain = schedule.timesteps(num_steps)  # checks their number
    if sampler == "lcm" and spacing is None:
        return _consistency_timesteps(schedule, num_steps)
    spacing = schedule.timestep_spacing if spacing is None else spacing
    if spacing not in get_args(Spacing):
        raise DiffusionError.explained(
            f"the timestep spacing is {spacing!r}",
            expected="one of " + ", ".join(map(repr, get_args(Spacing))),
            fix="use one of these",
        )
    if spacing not in get_args(TimestepSpacing):
        if sampler in _TABLE_ONLY:
            raise DiffusionError.explained(
                f"the sampler {sampler!r} was given {spacing!r} noise levels",
                expected="'leading', 'trailing' or 'linspace'",
                fix="use euler, heun, dpmpp_2m or unipc with them",
                why="its formula holds for the schedule's own timesteps",
            )
        levels = _named_levels(spacing, float(schedule.ratios[-1]), float(schedule.ratios[0]), num_steps)
        return _timesteps_of_sigmas(levels, schedule)
    if sampler in _COUNT_THE_END and num_steps < total:
        match spacing:
            case "leading":
                ascending = torch.arange(1, num_steps + 1) * (total // (num_steps + 1))
                return (ascending + min(schedule.steps_offset, schedule.last - int(ascending[-1]))).flip(0)
            case "linspace":
                k = torch.arange(num_steps + 1, dtype=torch.float64)
                return (k * (schedule.last / num_steps)).round().long().flip(0)[:-1]
    if sampler in _CONTINUOUS and spacing == "linspace" and num_steps > 1 and schedule.last % (num_steps - 1):
        return torch.linspace(schedule.last, 0, num_steps, dtype=torch.float64)
    return plain if spacing == schedule.timestep_spacing else schedule.timesteps(num_steps, spacing=spacing)  # type: ignore


def check_sampler(sampler: str, schedule: Schedule) -> None:
    """Raises DiffusionError where the sampler's formula does not hold for the schedule's process."""
    if isinstance(schedule, FlowSchedule) and sampler not in FLOW_SAMPLERS:
        raise DiffusionError.explained(
            f"the sampler {sampler!r} was given a rectified flow",
            expected="one of " + ", ".join(map(repr, FLOW_SAMPLERS)),
            fix="use 'euler', or 'flow_heun' for second order",
            why="its formula holds for processes that keep the variance and begin with some signal",
        )


def _flow_timesteps(schedule: FlowSchedule, num_steps: int, spacing: Spacing | None) -> Tensor:
    """A flow's own lists, or named levels of sigma between the ends of its range."""
    if spacing in ("karras", "exponential", "beta"):
        schedule.timesteps(num_steps)  # checks their number
        return schedule.num_train_timesteps * torch.from_numpy(_named_levels(spacing, *schedule.ends, num_steps))
    return schedule.timesteps(num_steps, spacing=spacing)  # type: ignore[arg-type]


def _consistency_timesteps(schedule: NoiseSchedule, num_steps: int) -> Tensor:
    """N of the LCM_TIMESTEPS that the models know, evenly by index from the noisiest on (2310.04378 section 4.3)."""
    if num_steps > LCM_TIMESTEPS:
        raise DiffusionError.explained(
            f"the sampler 'lcm' was asked for {num_steps} steps", expected=f"1 to {LCM_TIMESTEPS}", fix="use 4 to 8"
        )
    known = torch.arange(LCM_TIMESTEPS, 0, -1) * (schedule.num_train_timesteps // LCM_TIMESTEPS) - 1
    return known[(torch.arange(num_steps, dtype=torch.float64) * (LCM_TIMESTEPS / num_steps)).floor().long()]


def _named_levels(spacing: str, high: float, low: float, num_steps: int) -> np.ndarray:
    """N noise levels from the largest to the smallest."""
    match spacing:
        case "karras":
            return np.linspace(high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO), num_steps) ** KARRAS_RHO
        case "exponential":
            return np.geomspace(high, low, num_steps)
    from scipy import stats  # as long to import as torch's half, for one spacing

    share = stats.beta.ppf(1 - np.linspace(0, 1, num_steps), BETA_SHAPE, BETA_SHAPE)
    return low + share * (high - low)


def _timesteps_of_sigmas(sigmas: np.ndarray, schedule: NoiseSchedule) -> Tensor:
    """The inverse of the table, linear in log sigma between two timesteps, as `NoiseSchedule.abar` interpolates."""
    t = np.interp(np.log(sigmas), schedule.ratios.log().numpy(), np.arange(schedule.num_train_timesteps))
    return torch.from_numpy(t)
