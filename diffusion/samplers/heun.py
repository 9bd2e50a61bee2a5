"""Heun's method on the probability-flow equation (2206.00364 algorithm 1)."""

from torch import Tensor

from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Noise, Sampling, ask, levels, transfer, transitions, use_second_order


def heun(
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
    first_order_from_noise: bool = False,
) -> Sampling:
    """An Euler step, then again with the mean of the slopes at both ends; see `Sampler` for the arguments.

    N timesteps cost 2 N - 1 network calls: the last step, which ends without noise, stays Euler's. `noise` is not used.

    Args:
        first_order_from_noise: a step from almost no signal stays Euler's too (see `use_second_order`), for networks whose
            schedule begins there.
    """
    x = x_T
    for _, here, there in transitions(levels(schedule, timesteps)):
        prediction = yield ask(x, here.t, condition, guidance)
        x = transfer(prediction, here, there)
        if there.t >= 0 and not (first_order_from_noise and not use_second_order(here, there)):
            ahead = yield ask(x, there.t, condition, guidance)
            x = transfer(prediction, here, there, eps=(prediction.eps + ahead.eps) / 2)
    return x
