"""DPM-Solver++(2M): the second-order multistep solver in x0 (2211.01095)."""

import math

from torch import Tensor

from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Level, Noise, Sampling, ask, levels, transitions


def dpmpp_2m(
    x_T: Tensor,
    *,
    schedule: Schedule,
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
        x0 = extrapolated(prediction.x0, previous, steps[max(index - 1, 0)], here, there)
        # alpha' (1 - exp(-h)) = alpha' - sigma' alpha / sigma, exact also where lambda' is infinite.
        x = (there.sigma / here.sigma) * x + (there.alpha - there.sigma * here.alpha / here.sigma) * x0
        previous = prediction.x0
    return x


def extrapolated(x0: Tensor, previous: Tensor | None, before: Level, here: Level, there: Level) -> Tensor:
    """D_i: x0 extrapolated from the last two to the middle of the step, in lambda = log(alpha / sigma).

    Args:
        x0, previous: (B, ...) the predictions at `here` and at the level `before` it; without a previous one, and on the
            last step, x0 is the answer.
    """
    if previous is None or there.t < 0:
        return x0
    r = log_snr_step(before, here) / log_snr_step(here, there)
    return x0 + (x0 - previous) / (2 * r)


def log_snr_step(here: Level, there: Level) -> float:
    """h = lambda' - lambda."""
    return math.log(here.ratio) - math.log(there.ratio)
