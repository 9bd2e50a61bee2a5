"""DDPM: the ancestral sampler (2006.11239), over any subset of the timesteps (2102.09672 section 4)."""

from typing import Literal, get_args

from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Noise, Sampling, ask, drawn, levels, transitions

Variance = Literal["fixed_small", "fixed_large", "learned"]
"""sigma_t^2 of 2006.11239 section 3.2, its two choices, and 2102.09672 eq. 15's."""


def ddpm(
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
    variance: Variance = "fixed_small",
) -> Sampling:
    """2006.11239 algorithm 2 with the betas of the kept timesteps; see `Sampler` for the arguments.

    Args:
        variance: "fixed_small" is the posterior's (exact for a point mass), "fixed_large" is beta (exact for N(0, I)),
            "learned" is between the two in the logarithm, by the predictions' `variance_share` (2102.09672 eq. 15).
            No noise is added on the last step (diffusers adds some where that step starts above 0, unless it is small).

    Raises:
        DiffusionError: an unknown variance, or "learned" with a network that says none.
    """
    if variance not in get_args(Variance):
        raise DiffusionError.explained(
            f"the variance is {variance!r}", expected="'fixed_small', 'fixed_large' or 'learned'", fix="use one of these"
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
        if index == last:
            break
        small = beta * there.sigma**2 / here.sigma**2
        if variance == "learned":
            # exp(v log beta + (1 - v) log small), 2102.09672 eq. 15.
            spread: Tensor | float = small * (beta / small) ** _share(prediction.variance_share)
        else:
            spread = beta if variance == "fixed_large" else small
        x = x + spread**0.5 * drawn(noise, index, x)
    return x


def _share(variance_share: Tensor | None) -> Tensor:
    if variance_share is None:
        raise DiffusionError.explained(
            "the variance is 'learned' and the network predicts none",
            expected="a model trained with a learned variance",
            fix="use variance 'fixed_small' or 'fixed_large'",
        )
    return variance_share
