"""Heun's method on the straight paths of rectified flow (2209.03003), for any forward process."""

from torch import Tensor

from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Level, Noise, Sampling, ask, levels, transitions


def flow_heun(
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
) -> Sampling:
    """An Euler step of dy/dtau = eps - x0, then again with the mean of the slopes at both ends; see `Sampler`.

    In y = x / (alpha + sigma) and tau = sigma / (alpha + sigma) every process is a rectified flow, y = (1 - tau) x0 + tau
    eps. Unlike `heun`, which steps in sigma / alpha, it may begin without any signal. Its Euler step is `euler`'s. N
    timesteps cost 2 N - 1 network calls: the last step, which ends on data, stays Euler's. `noise` is not used.
    """
    x = x_T
    for _, here, there in transitions(levels(schedule, timesteps)):
        prediction = yield ask(x, here.t, condition, guidance)
        slope = prediction.velocity
        carried = _carried(x, slope, here, there)
        if there.t >= 0:
            ahead = yield ask(carried, there.t, condition, guidance)
            carried = _carried(x, (slope + ahead.velocity) / 2, here, there)
        x = carried
    return x


def _carried(x: Tensor, slope: Tensor, here: Level, there: Level) -> Tensor:
    """y' = y + (tau' - tau) slope, in x."""
    scale, scale_there = here.alpha + here.sigma, there.alpha + there.sigma
    return scale_there * (x / scale + (there.sigma / scale_there - here.sigma / scale) * slope)
