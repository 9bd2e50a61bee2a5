"""DPM-Solver++(2M): the second-order multistep solver in x0 (2211.01095)."""

import math

from torch import Tensor

from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Level, Noise, Sampling, ask, levels, transitions
from diffusion.schedule import NoiseSchedule


def dpmpp_2m(
    x_T: Tensor,
    *,
    schedule: NoiseSchedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
) -> Sampling:
    """2211.01095 algorithm 2 ("midpoint" form); see `Sampler` for the arguments.

    The first and the last step are of first order: one has no history, the other goes to lambda = infinity.
    `noise` is not used.
    """
    x = x_T
    steps = levels(schedule, timesteps)
    previous: Tensor | None = None
    for index, here, there in transitions(steps):
        prediction = yield ask(x, here.t, condition, guidance)
        x0 = prediction.x0
        if previous is not None and there.t >= 0:
            # D_i = x0 extrapolated to the middle of the step, in lambda = log(alpha / sigma).
            r = _step(steps[index - 1], here) / _step(here, there)
            x0 = x0 + (x0 - previous) / (2 * r)
        # alpha' (1 - exp(-h)) = alpha' - sigma' alpha / sigma, exact also where lambda' is infinite.
        x = (there.sigma / here.sigma) * x + (there.alpha - there.sigma * here.alpha / here.sigma) * x0
        previous = prediction.x0
    return x


def _step(here: Level, there: Level) -> float:
    """h = lambda' - lambda."""
    return math.log(here.ratio) - math.log(there.ratio)
