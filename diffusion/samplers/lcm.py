"""Latent consistency models: jump to x0, noise it again, jump again (2310.04378 algorithm 3)."""

from torch import Tensor

from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Noise, Sampling, ask, drawn, levels, transitions

# Of the consistency function's boundary condition (2310.04378 section 4.1), as the published models were trained.
SIGMA_DATA = 0.5
TIMESTEP_SCALING = 10.0


def lcm(
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
) -> Sampling:
    """f(x, t) = c_skip(t) x + c_out(t) x0, then fresh noise at every level but the last; see `Sampler` for the arguments.

    c_skip = d^2 / (k^2 + d^2) and c_out = k / sqrt(k^2 + d^2), with d = 0.5 and k = 10 t.
    """
    x = x_T
    for index, here, there in transitions(levels(schedule, timesteps)):
        prediction = yield ask(x, here.t, condition, guidance)
        scaled = TIMESTEP_SCALING * here.t
        skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        x = scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5 * prediction.x0 + skip * x
        if there.t >= 0:
            x = there.alpha * x + there.sigma * drawn(noise, index, x)
    return x
