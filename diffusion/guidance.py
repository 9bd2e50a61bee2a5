"""Classifier-free guidance (2207.12598) and its rescaling (2305.08891 section 3.4).

Two meanings of "scale" are in use; ours is `uncond + s (cond - uncond)`, as in diffusers and GLIDE: s = 1 is the
conditional prediction and s = 0 the unconditional one. Ho & Salimans and threestudio write `cond + w (cond - uncond)`:
their w is s - 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.parameterisation import Prediction, per_row
from diffusion.requests import DenoiseRequest, Guidance
from diffusion.schedule import NoiseSchedule

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


def classifier_free(uncond: Tensor, cond: Tensor, scale: float | Tensor) -> Tensor:
    """uncond + s (cond - uncond), in whatever space the two are given (all of them agree: the map is affine).

    Args:
        uncond, cond: (B, ...) at the same x_t.
        scale: s, one number or (B,).

    Returns:
        (B, ...); where s is 1 exactly `cond`.
    """
    if isinstance(scale, Tensor):
        s = per_row(scale, cond)
        return torch.where(s == 1, cond, uncond + s * (cond - uncond))
    return cond if scale == 1 else uncond + scale * (cond - uncond)


def rescale(guided: Tensor, cond: Tensor, phi: float | Tensor) -> Tensor:
    """Bring a guided prediction back towards the conditional one's standard deviation (2305.08891 eq. 15-16).

        rescaled = guided std(cond) / std(guided),     result = phi rescaled + (1 - phi) guided

    On the network's output it is diffusers' `guidance_rescale`; on x0 it is MVDream's `recon_std_rescale`.

    Args:
        guided, cond: (B, ...); the standard deviation is over everything but B.
        phi: in [0, 1], one number or (B,).

    Returns:
        (B, ...); where phi is 0 exactly `guided`. A constant `guided` row is left as it is.
    """
    if not isinstance(phi, Tensor) and phi == 0:
        return guided
    dims = tuple(range(1, guided.ndim))
    std_cond, std_guided = cond.std(dim=dims, keepdim=True), guided.std(dim=dims, keepdim=True)
    ratio = torch.where(std_guided > 0, std_cond / std_guided, 1.0)
    weight = per_row(phi, guided) if isinstance(phi, Tensor) else phi
    return guided * (1 + weight * (ratio - 1))


def row_scales(guidance: Guidance, t: Tensor) -> Tensor:
    """The scale of each row, (B,) float64: `guidance.scale` at timesteps t (B,) inside its interval, 1 outside."""
    inside = (t >= guidance.interval[0]) & (t <= guidance.interval[1])
    return torch.where(inside, guidance.scale, 1.0).double()


def combine(
    cond: Tensor,
    uncond: Tensor,
    *,
    x_t: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    kind: str,
    scale: float | Tensor,
    phi: float = 0.0,
    rescale_on: str = "output",
) -> Prediction:
    """One prediction from a network's conditional and unconditional outputs.

    They are combined as the network puts them, as diffusers does, and converted afterwards. With rescale_on "x0" the
    converted x0 is rescaled and eps derived from it again.

    Args:
        cond, uncond, x_t: (B, ...). alpha, sigma: (B,). kind: see `Prediction.from_output`.
        scale: s, one number or (B,). phi, rescale_on: see `Guidance`.
    """
    output = classifier_free(uncond, cond, scale)
    if rescale_on == "output":
        return Prediction.from_output(rescale(output, cond, phi), x_t, alpha, sigma, kind)
    guided = Prediction.from_output(output, x_t, alpha, sigma, kind)
    if phi == 0:
        return guided
    conditional = Prediction.from_output(cond, x_t, alpha, sigma, kind)
    return Prediction.from_output(rescale(guided.x0, conditional.x0, phi), x_t, alpha, sigma, "sample")


def guided_prediction(network: Network, request: DenoiseRequest, schedule: NoiseSchedule) -> Prediction:
    """Answer a denoise request with a network: one forward over the conditional rows and those that guidance needs.

    Args:
        network: (x_t (R, C, h, w), t (R,), tokens (R, L, D)) -> output (R, C, h, w), of schedule.prediction_type.

    Returns:
        B rows in x_t's dtype and on its device.

    Raises:
        DiffusionError: a row needs the unconditional half and the condition has no negative.
    """
    x_t, t, condition, guidance = request.x_t, request.t, request.condition, request.guidance
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    scales = row_scales(guidance, t)
    rows = (scales != 1).nonzero().flatten()
    if len(rows) == 0:
        output = network(x_t, t, condition.tokens)
        return Prediction.from_output(output, x_t, alpha, sigma, schedule.prediction_type)
    if condition.negative is None:
        raise DiffusionError.explained(
            f"guidance scale {guidance.scale} without a negative condition",
            expected="the encoded negative (or empty) prompts",
            fix="give Condition(tokens, negative), or use scale 1",
        )
    tokens = torch.cat([condition.negative[rows], condition.tokens])
    output = network(torch.cat([x_t[rows], x_t]), torch.cat([t[rows], t]), tokens)
    cond = output[len(rows) :]
    uncond = cond.index_copy(0, rows.to(cond.device), output[: len(rows)])
    # Rescaling is part of guidance: rows outside the interval have cond = guided, which it leaves alone.
    return combine(
        cond,
        uncond,
        x_t=x_t,
        alpha=alpha,
        sigma=sigma,
        kind=schedule.prediction_type,
        scale=scales,
        phi=guidance.rescale,
        rescale_on=guidance.rescale_on,
    )
