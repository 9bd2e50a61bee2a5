"""SDEdit: start from a noised picture instead of from noise (2108.01073), with any sampler."""

from typing import Any

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.parameterisation import Prediction
from diffusion.process import Schedule
from diffusion.requests import Condition, Guidance
from diffusion.samplers.chain import Noise, Sampler, Sampling


def sdedit(
    reference: Tensor,
    *,
    sampler: Sampler,
    strength: float,
    start_noise: Tensor,
    schedule: Schedule,
    timesteps: Tensor,
    condition: Condition,
    guidance: Guidance,
    noise: Noise = None,
    mask: Tensor | None = None,
    **options: Any,
) -> Sampling:
    """2108.01073 algorithm 1: noise the reference to the level of `strength`, then sample from there.

    Args:
        reference: (B, C, h, w) scaled latents of the picture.
        sampler: any of SAMPLERS; `options` are handed to it.
        strength: in [0, 1]. 1 runs every timestep, 0 returns the reference. Of N timesteps the last int(N strength)
            are run, as in diffusers' image-to-image pipelines.
        start_noise: (B, C, h, w) standard normal.
        timesteps: (N,) of the full run.
        mask: (B or 1, 1 or C, h, w) in [0, 1], 1 where the reference is kept.

    Returns:
        (B, C, h, w) clean latents; in the kept region the reference.

    Raises:
        DiffusionError: strength outside [0, 1], and what the sampler raises.
    """
    kept = timesteps_of_strength(timesteps, strength)
    if len(kept) == 0:
        return reference
    x = schedule.add_noise(reference, start_noise, kept[0].expand(len(reference)))
    chain = sampler(x, schedule=schedule, timesteps=kept, condition=condition, guidance=guidance, noise=noise, **options)
    if mask is None:
        return (yield from chain)
    edited = yield from keeping(chain, reference, mask, schedule=schedule)
    return torch.lerp(edited, reference, mask.to(reference).expand_as(reference))


def timesteps_of_strength(timesteps: Tensor, strength: float) -> Tensor:
    """The last int(N strength) of (N,) timesteps."""
    if not 0 <= strength <= 1:
        raise DiffusionError.explained(
            f"the strength is {strength}", expected="0 to 1", fix="use about 0.6 (0 keeps the picture, 1 ignores it)"
        )
    return timesteps[len(timesteps) - int(len(timesteps) * strength) :]


def keeping(chain: Sampling, reference: Tensor, mask: Tensor, *, schedule: Schedule) -> Sampling:
    """Run a sampler with the network's answer replaced, where mask is 1, by what is known: x0 = reference.

    A sampler that starts from a x_ref + s eps and is told (x_ref, eps) there stays on a' x_ref + s' eps at every level:
    the paper's "reset the kept region with the same noise", without reaching into the sampler's state. Ancestral
    samplers draw fresh noise, which keeps the kept region on the forward process too.
    """
    reply: Prediction | None = None
    while True:
        try:
            request = chain.send(reply)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as finished:
            return finished.value
        answer = yield request
        known = Prediction.from_output(reference, request.x_t, schedule.alpha(request.t), schedule.sigma(request.t), "sample")
        weight = mask.to(reference).expand_as(reference)
        x0 = torch.lerp(answer.x0, known.x0, weight)
        eps = torch.lerp(answer.eps, known.eps, weight)
        reply = Prediction(eps, x0, answer.alpha, answer.sigma)
