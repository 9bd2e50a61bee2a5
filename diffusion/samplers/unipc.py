"""UniPC: a predictor and a corrector that reuses the predictor's next network call (2302.04867)."""

import math

from torch import Tensor

from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Level, Noise, Sampling, ask, levels, transitions
from diffusion.samplers.dpmpp_2m import extrapolated, log_snr_step


def unipc(
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
    final_abar: float = 1.0,
) -> Sampling:
    """UniPC-2 with B_2(h) = e^h - 1, in x0 (2302.04867 algorithms 5 and 7); see `Sampler` for the arguments.

    The predictor is DPM-Solver++(2M)'s. The first and the last step are of first order. `noise` is not used.

    Args:
        final_abar: abar after the last step; 1 ends without noise.
    """
    x = x_T
    steps = levels(schedule, timesteps, final_abar=final_abar)
    x0s: list[Tensor] = []
    start = x_T
    for index, here, there in transitions(steps):
        prediction = yield ask(x, here.t, condition, guidance)
        x0 = prediction.x0
        if index > 0:
            x = _corrected(start, x0, x0s[-2:], steps[max(index - 2, 0) : index + 1])
        start = x
        middle = extrapolated(x0, x0s[-1] if x0s else None, steps[max(index - 1, 0)], here, there)
        x = (there.sigma / here.sigma) * x + (there.alpha - there.sigma * here.alpha / here.sigma) * middle
        x0s = [*x0s[-1:], x0]
    return x


def _corrected(start: Tensor, arrived: Tensor, x0s: list[Tensor], steps: list[Level]) -> Tensor:
    """The step from `start` again, with what the network said where it arrived.

    Args:
        start: (B, ...) x at the level before the last of `steps`. arrived: x0 at the last.
        x0s: the predictions at the one or two levels before the last.
    """
    here, there = steps[-2:]
    first = (there.sigma / here.sigma) * start + (there.alpha - there.sigma * here.alpha / here.sigma) * x0s[-1]
    h = log_snr_step(here, there)
    shrink = math.expm1(-h)
    difference = arrived - x0s[-1]
    if len(x0s) == 1:
        return first - there.alpha * shrink * difference / 2
    # The two equations R rho = b of the paper's order 2.
    b_1 = (shrink / -h - 1) / shrink
    b_2 = 2 * ((shrink / -h - 1) / -h - 1 / 2) / shrink
    r = -log_snr_step(steps[-3], here) / h
    before = (b_1 - b_2) / (1 - r)
    slope = (x0s[-2] - x0s[-1]) / r
    return first - there.alpha * shrink * (before * slope + (b_1 - before) * difference)
