"""Ancestral Euler: a longer step down and noise back up (the `euler_a` of k-diffusion and diffusers)."""

from torch import Tensor

from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Level, Noise, Sampling, ask, drawn, levels, transfer, transitions


def euler_ancestral(
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
) -> Sampling:
    """An Euler step below the next level, then fresh noise up to it; see `Sampler` for the arguments.

    In r = sigma / alpha from r to r': r_up^2 = r'^2 (r^2 - r'^2) / r^2, the posterior's variance, and
    r_down^2 = r'^2 - r_up^2. The last step, down to r' = 0, adds none.
    """
    x = x_T
    for index, here, there in transitions(levels(schedule, timesteps)):
        prediction = yield ask(x, here.t, condition, guidance)
        up = there.ratio * (1 - (there.ratio / here.ratio) ** 2) ** 0.5
        down = (there.ratio**2 - up**2) ** 0.5
        x = transfer(prediction, here, Level(there.t, there.alpha, there.alpha * down))
        if up > 0:
            x = x + there.alpha * up * drawn(noise, index, x)
    return x
