"""Euler's method on the probability-flow equation of 2011.13456, in the coordinates of 2206.00364."""

from torch import Tensor

from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Noise, Sampling, ask, levels, transfer, transitions


def euler(
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
) -> Sampling:
    """dy/dr = eps in y = x / alpha, r = sigma / alpha, stepped straight and down to r = 0; see `Sampler`.

    In these coordinates one Euler step is one DDIM step: the two differ only in where they end. `noise` is not used.
    """
    x = x_T
    for _, here, there in transitions(levels(schedule, timesteps)):
        prediction = yield ask(x, here.t, condition, guidance)
        x = transfer(prediction, here, there)
    return x
