"""DDPM: the ancestral sampler (2006.11239), over any subset of the timesteps (2102.09672 section 4)."""

from typing import Literal

from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Noise, Sampling, ask, drawn, levels, transitions
from diffusion.schedule import NoiseSchedule


def ddpm(
    x_T: Tensor,
    *,
    schedule: NoiseSchedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
    variance: Literal["fixed_small", "fixed_large"] = "fixed_small",
) -> Sampling:
    """2006.11239 algorithm 2 with the betas of the kept timesteps; see `Sampler` for the arguments.

    Args:
        variance: "fixed_small" is the posterior's (exact for a point mass), "fixed_large" is beta (exact for N(0, I)).
            No noise is added on the last step (diffusers adds some with "fixed_large" where that step starts above 0).
    """
    if variance not in ("fixed_small", "fixed_large"):
        raise DiffusionError.explained(
            f"the variance is {variance!r}", expected="'fixed_small' or 'fixed_large'", fix="use one of these"
        )
    x = x_T
    steps = levels(schedule, timesteps)
    last = len(steps) - 2
    for index, here, there in transitions(steps):
        prediction = yield ask(x, here.t, condition, guidance)
        # 2006.11239 eq. 7: the posterior q(x' | x, x0) is a Gaussian around g x0 + h x.
        kept = (here.alpha / there.alpha) ** 2
        beta = 1 - kept
        g = there.alpha * beta / here.sigma**2
        h = kept**0.5 * there.sigma**2 / here.sigma**2
        x = g * prediction.x0 + h * x
        if index < last:
            spread = beta if variance == "fixed_large" else beta * there.sigma**2 / here.sigma**2
            x = x + spread**0.5 * drawn(noise, index, x)
    return x
