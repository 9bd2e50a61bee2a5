"""DPM-Solver++(2M) for the reverse stochastic equation (2211.01095 section 5, as in k-diffusion and diffusers)."""

import math

from torch import Tensor

from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Noise, Sampling, ask, drawn, levels, transitions
from diffusion.samplers.dpmpp_2m import extrapolated


def dpmpp_2m_sde(
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
) -> Sampling:
    """`dpmpp_2m` with fresh noise at each step but the last; see `Sampler` for the arguments.

    With h = lambda' - lambda and D the extrapolated x0::

        x' = (sigma'/sigma) e^-h x + alpha' (1 - e^-2h) D + sigma' sqrt(1 - e^-2h) z
    """
    x = x_T
    steps = levels(schedule, timesteps)
    previous: Tensor | None = None
    for index, here, there in transitions(steps):
        prediction = yield ask(x, here.t, condition, guidance)
        x0 = extrapolated(prediction.x0, previous, steps[max(index - 1, 0)], here, there)
        # e^-h = r' / r with r = sigma / alpha, which is 0 on the last step.
        decay = there.ratio / here.ratio
        x = (there.sigma / here.sigma) * decay * x + there.alpha * (1 - decay**2) * x0
        if there.t >= 0:
            x = x + there.sigma * math.sqrt(1 - decay**2) * drawn(noise, index, x)
        previous = prediction.x0
    return x
