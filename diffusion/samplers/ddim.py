"""DDIM: denoising diffusion implicit models (2010.02502)."""

from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Noise, Sampling, ask, drawn, levels, transitions


def ddim(
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
    eta: float = 0.0,
) -> Sampling:
    """2010.02502 eq. 12: predicted x0, direction pointing to x_t, random noise; see `Sampler` for the arguments.

    The next timestep is the next of the list (diffusers takes t - T // N, which misses it where N does not divide T).

    Args:
        eta: 0 is deterministic, 1 has DDPM's posterior variance (eq. 16). Noise is only needed above 0.

    Raises:
        DiffusionError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise DiffusionError.explained(
            f"eta is {eta}", expected="0 to 1", fix="use 0 (deterministic) or 1 (as much noise as DDPM)"
        )
    x = x_T
    steps = levels(schedule, timesteps, final_abar=schedule.final_alphas_cumprod)
    for index, here, there in transitions(steps):
        prediction = yield ask(x, here.t, condition, guidance)
        # sigma_tau, eq. 16, of any process: s^2 - (a/a')^2 s'^2 is 1 - (a/a')^2 where variance is preserved. The max absorbs
        # rounding below zero.
        shrink = here.sigma**2 - (here.alpha / there.alpha * there.sigma) ** 2
        spread = eta * (there.sigma / here.sigma) * max(shrink, 0.0) ** 0.5
        direction = max(there.sigma**2 - spread**2, 0.0) ** 0.5
        x = there.alpha * prediction.x0 + direction * prediction.eps
        if spread > 0:
            x = x + spread * drawn(noise, index, x)
    return x
