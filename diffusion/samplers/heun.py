"""Heun's method on the probability-flow equation (2206.00364 algorithm 1)."""

from torch import Tensor

from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Noise, Sampling, ask, levels, mean_slope_pays, transfer, transitions
from diffusion.schedule import NoiseSchedule


def heun(
    x_T: Tensor,
    *,
    schedule: NoiseSchedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
) -> Sampling:
    """An Euler step, then again with the mean of the slopes at both ends; see `Sampler` for the arguments.

    N timesteps cost 2 N - 1 network calls: the last step, which ends without noise, stays Euler's, and so does a step from
    almost no signal (see `mean_slope_pays`). `noise` is not used.
    """
    x = x_T
    for _, here, there in transitions(levels(schedule, timesteps)):
        prediction = yield ask(x, here.t, condition, guidance)
        x = transfer(prediction, here, there)
        if there.t >= 0 and mean_slope_pays(here, there):
            ahead = yield ask(x, there.t, condition, guidance)
            x = transfer(prediction, here, there, eps=(prediction.eps + ahead.eps) / 2)
    return x
