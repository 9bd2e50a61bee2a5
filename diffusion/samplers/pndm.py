"""PNDM: pseudo numerical methods on the diffusion manifold (2202.09778)."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Noise, Sampling, ask, levels, transfer, transitions, use_second_order

# Adams-Bashforth weights by order, newest slope first.
_ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def pndm(
    x_T: Tensor,
    *,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
    skip_prk: bool = True,
    first_order_from_noise: bool = False,
) -> Sampling:
    """Linear multistep in eps, carried by the DDIM transfer (2202.09778 eq. 11-13); see `Sampler` for the arguments.

    Whatever the network predicts, it is eps that is combined: v of different timesteps must not be added up (diffusers
    does). `noise` is not used.

    Args:
        skip_prk: Stable Diffusion's PLMS: one improved Euler step, then orders 2, 3 and 4 (N + 1 network calls). False:
            up to three pseudo Runge-Kutta steps of four calls each first, as in the paper (`pndm_prk`).
        first_order_from_noise: steps from almost no signal come before all this and are of first order (see
            `use_second_order`), for networks whose schedule begins there.
    """
    x = x_T
    history: deque[Tensor] = deque(maxlen=4)
    steps = levels(schedule, timesteps, final_abar=schedule.final_alphas_cumprod)
    for _, here, there in transitions(steps):
        prediction = yield ask(x, here.t, condition, guidance)
        if first_order_from_noise and not use_second_order(here, there):
            x = transfer(prediction, here, there)
            continue
        history.appendleft(prediction.eps)
        if there.t >= 0 and skip_prk and len(history) == 1:
            # S-PNDM's first step: the mean of the slopes at both ends.
            ahead = yield ask(transfer(prediction, here, there), there.t, condition, guidance)
            eps = (prediction.eps + ahead.eps) / 2
        elif there.t >= 0 and not skip_prk and len(history) <= 3:
            middle = levels(schedule, torch.tensor([here.t - (here.t - there.t) // 2]))[0]
            second = yield ask(transfer(prediction, here, middle), middle.t, condition, guidance)
            third = yield ask(transfer(prediction, here, middle, second.eps), middle.t, condition, guidance)
            fourth = yield ask(transfer(prediction, here, there, third.eps), there.t, condition, guidance)
            eps = (prediction.eps + 2 * second.eps + 2 * third.eps + fourth.eps) / 6
        else:
            weights = _ADAMS_BASHFORTH[len(history)]
            eps = sum((w * e for w, e in zip(weights[1:], list(history)[1:], strict=True)), weights[0] * history[0])
        x = transfer(prediction, here, there, eps)
    return x


def pndm_prk(x_T: Tensor, **sampling: Any) -> Sampling:
    """`pndm` with the paper's own beginning: three pseudo Runge-Kutta steps, N + 9 network calls for N >= 4 timesteps."""
    return pndm(x_T, skip_prk=False, **sampling)
