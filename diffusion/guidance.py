"""Classifier-free guidance (2207.12598) and its rescaling (2305.08891 section 3.4).

Two meanings of "scale" are in use; ours is `uncond + s (cond - uncond)`, as in diffusers and GLIDE: s = 1 is the
conditional prediction and s = 0 the unconditional one. Ho & Salimans and threestudio write `cond + w (cond - uncond)`:
their w is s - 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.parameterisation import Prediction, per_row
from diffusion.process import Schedule
from diffusion.requests import DenoiseRequest, Guidance
from diffusion.seeding import sent

Network = Callable[..., Tensor]
"""See `guided_prediction`."""


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


def rescale(guided: Tensor, cond: Tensor, phi: float | Tensor, *, num_views: int = 1) -> Tensor:
    """Bring a guided prediction back towards the conditional one's standard deviation (2305.08891 eq. 15-16).

        rescaled = guided std(cond) / std(guided),     result = phi rescaled + (1 - phi) guided

    On the network's output it is diffusers' `guidance_rescale`; on x0 it is MVDream's `recon_std_rescale`.

    Args:
        guided, cond: (B, ...); the standard deviation is over everything but B.
        phi: in [0, 1], one number or (B,).
        num_views: the deviation is over so many neighbouring rows together.

    Returns:
        (B, ...); where phi is 0 exactly `guided`. A constant `guided` row is left as it is.
    """
    if not isinstance(phi, Tensor) and phi == 0:
        return guided
    dims = tuple(range(1, guided.ndim))
    if num_views == 1:
        std_cond, std_guided = cond.std(dim=dims, keepdim=True), guided.std(dim=dims, keepdim=True)
    else:
        std_cond, std_guided = (
            per_row(values.reshape(-1, num_views * values[0].numel()).std(dim=1).repeat_interleave(num_views), values)
            for values in (cond, guided)
        )
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
    num_views: int = 1,
) -> Prediction:
    """One prediction from a network's conditional and unconditional outputs.

    They are combined as the network puts them, as diffusers does, and converted afterwards. With rescale_on "x0" the
    converted x0 is rescaled and eps derived from it again.

    Args:
        cond, uncond, x_t: (B, ...). alpha, sigma: (B,). kind: see `Prediction.from_output`.
        scale: s, one number or (B,). phi, rescale_on: see `Guidance`. num_views: see `rescale`.
    """
    output = classifier_free(uncond, cond, scale)
    if rescale_on == "output":
        return Prediction.from_output(rescale(output, cond, phi, num_views=num_views), x_t, alpha, sigma, kind)
    guided = Prediction.from_output(output, x_t, alpha, sigma, kind)
    if phi == 0:
        return guided
    conditional = Prediction.from_output(cond, x_t, alpha, sigma, kind)
    x0 = rescale(guided.x0, conditional.x0, phi, num_views=num_views)
    return Prediction.from_output(x0, x_t, alpha, sigma, "sample")


@dataclass(frozen=True, eq=False)
class NetworkInputs:
    """What a network is called with to answer a denoise request of B samples.

    Args:
        x_t, t, tokens: (G + B, ...), x_t as `DenoiseRequest.network_input`: the unconditional rows of the samples that
            guidance holds for, then all conditional rows.
        guided: (G,) long, the indices of those samples.
        cameras: (G + B, 16) of the rows, or None. num_views: see `Condition`.
    """

    x_t: Tensor
    t: Tensor
    tokens: Tensor
    guided: Tensor
    cameras: Tensor | None = None
    num_views: int = 1

    @property
    def columns(self) -> tuple[Any, ...]:
        """A network's arguments; those of views only where there are cameras or groups."""
        views = () if self.cameras is None and self.num_views == 1 else (self.cameras, self.num_views)
        return (self.x_t, self.t, self.tokens, *views)


def guided_samples(request: DenoiseRequest) -> Tensor:
    """The samples that cost an unconditional row: (G,) long where t is, those whose guidance scale is not 1 there.

    Views of a group are denoised together, so that all of them cost one where one of them does.

    Raises:
        DiffusionError: there are some and the condition has no negative.
    """
    num_views = request.condition.num_views
    needed = (row_scales(request.guidance, request.t) != 1).view(-1, num_views).any(dim=1)
    guided = needed.repeat_interleave(num_views).nonzero().flatten()
    if len(guided) and request.condition.negative is None:
        raise DiffusionError.explained(
            f"guidance scale {request.guidance.scale} without a negative condition",
            expected="the encoded negative (or empty) prompts",
            fix="give Condition(tokens, negative), or use scale 1",
        )
    return guided


def network_inputs(request: DenoiseRequest) -> NetworkInputs:
    """The rows that a request costs: a sample whose guidance scale is 1 at its timestep costs one, any other two.

    Raises:
        DiffusionError: a row needs the unconditional half and the condition has no negative.
    """
    x_t, condition = request.network_input(), request.condition
    t = sent(request.t, x_t.device)
    guided = guided_samples(request)
    if len(guided) == 0 or condition.negative is None:
        return NetworkInputs(x_t, t, condition.tokens, guided, condition.cameras, condition.num_views)
    negative, cameras = condition.negative, condition.cameras
    guided_x_t, guided_t, guided_cameras = x_t, t, cameras
    if len(guided) < len(t):
        there = sent(guided, x_t.device)
        negative, guided_x_t, guided_t = negative[there], x_t[there], t[there]
        guided_cameras = None if cameras is None else cameras[sent(guided, cameras.device)]
    tokens = torch.cat([negative, condition.tokens])
    if cameras is not None and guided_cameras is not None:
        cameras = torch.cat([guided_cameras, cameras])
    return NetworkInputs(torch.cat([guided_x_t, x_t]), torch.cat([guided_t, t]), tokens, guided, cameras, condition.num_views)


def prediction_from_output(request: DenoiseRequest, output: Tensor, schedule: Schedule) -> Prediction:
    """The guided prediction, from what the network said to `network_inputs`.

    Args:
        output: (G + B, C, h, w) of schedule.prediction_type, rows as in `NetworkInputs`.

    Returns:
        B rows in x_t's dtype and on its device.
    """
    x_t, t, guidance = request.x_t, request.t, request.guidance
    scales = torch.stack([schedule.alpha(t), schedule.sigma(t), row_scales(guidance, t)])
    alpha, sigma, scale = sent(scales, x_t.device)
    num_guided = len(output) - len(x_t)
    cond = output[num_guided:]
    if num_guided == 0:
        return Prediction.from_output(cond, x_t, alpha, sigma, schedule.prediction_type)
    uncond = output[:num_guided]
    if num_guided < len(x_t):
        uncond = cond.index_copy(0, sent(guided_samples(request), cond.device), uncond)
    # Rescaling is part of guidance: rows outside the interval have cond = guided, which it leaves alone.
    return combine(
        cond,
        uncond,
        x_t=x_t,
        alpha=alpha,
        sigma=sigma,
        kind=schedule.prediction_type,
        scale=scale,
        phi=guidance.rescale,
        rescale_on=guidance.rescale_on,
        num_views=request.condition.num_views if guidance.rescale_over == "group" else 1,
    )


def guided_prediction(network: Network, request: DenoiseRequest, schedule: Schedule) -> Prediction:
    """Answer a denoise request with a network: one forward over the conditional rows and those that guidance needs.

    Args:
        network: (x_t (R, C, h, w), t (R,), tokens (R, L, D)) -> output (R, C, h, w), of schedule.prediction_type. Where
            the condition has cameras or groups it is given cameras (R, 16), or None, and the views of a group, too.

    Returns:
        B rows in x_t's dtype and on its device.

    Raises:
        DiffusionError: a row needs the unconditional half and the condition has no negative.
    """
    inputs = network_inputs(request)
    return prediction_from_output(request, network(*inputs.columns), schedule)
