"""DDIM inversion: from a picture to the noise that DDIM draws it from (2010.02502 section 4.3; 2105.05233 appendix F)."""

from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Level, Sampling, ask, levels


def ddim_inversion(
    x_0: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    num_corrections: int = 0,
) -> Sampling:
    """DDIM's steps in reverse order, 2010.02502 eq. 13 with t and t' exchanged; deterministic.

    A DDIM step from t to t' is x' = (a'/a) x + (s' - s a'/a) eps(x, t). Its inverse needs eps at the very x that is
    sought. Plain inversion takes eps at x' instead, an error of first order in the step; each correction repeats the
    step with eps at the x just found, which converges to the exact inverse where steps are small.

    Args:
        x_0: (B, C, h, w) clean latents.
        timesteps: (N,) as for sampling, strictly decreasing; the result belongs to the first.
        num_corrections: fixed-point iterations a step; each is one more network call.

    Returns:
        (B, C, h, w) x_T, from which `ddim` with eta 0 and the same arguments gives x_0 back.

    Raises:
        DiffusionError: timesteps that do not fall, or a negative number of corrections.
    """
    if num_corrections < 0:
        raise DiffusionError.explained(f"num_corrections is {num_corrections}", expected="0 or more", fix="use 0 to 5")
    x = x_0
    steps = levels(schedule, timesteps, final_abar=schedule.final_alphas_cumprod)
    for there, here in zip(steps[-2::-1], steps[:0:-1], strict=True):
        # Below the first timestep no network was trained: eps is asked for at the next level's timestep.
        prediction = yield ask(x, max(here.t, steps[-2].t), condition, guidance)
        found = _carried(x, prediction.eps, here, there)
        for _ in range(num_corrections):
            prediction = yield ask(found, there.t, condition, guidance)
            found = _carried(x, prediction.eps, here, there)
        x = found
    return x


def _carried(x: Tensor, eps: Tensor, here: Level, there: Level) -> Tensor:
    """x' = (a'/a) x + (s' - s a'/a) eps, here the noisier level is `there`."""
    return (there.alpha / here.alpha) * x + (there.sigma - here.sigma * there.alpha / here.alpha) * eps
