"""Score distillation: what a denoiser would change in some images, as a gradient on them.

Forms of the same residual, since eps_hat - eps = (alpha / sigma) (z - x0_hat) for latents z of the images:

- "sds", DreamFusion (2209.14988 eq. 3): w(t) (eps_hat - eps), pulled back through the encoder. The network's Jacobian
  is left out, as there.
- "x0", HiFA (2305.18766): decode x0_hat to a picture and move the images towards it: the gradient of
  1/2 ||images - target||^2 with the target held fixed. Here the guided x0_hat is rescaled.
- "x0_latents", MVDream (2308.16512 section 3.2): the same in latents, 1/2 ||z - x0_hat||^2, pulled back through the encoder.
- "flow", RFDS (2406.03293): w(t) (u_hat - u) with the velocity u = eps - z of rectified flow, where it is
  (eps_hat - eps) / alpha; pulled back through the encoder.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusion.errors import DiffusionError
from diffusion.parameterisation import Prediction, per_row
from diffusion.process import Schedule
from diffusion.requests import (
    Condition,
    DecodeRequest,
    DenoiseRequest,
    EncodeGradientRequest,
    EncodeRequest,
    Guidance,
    Request,
)
from diffusion.resizing import pulled_back, resized
from diffusion.seeding import uniform

Weighting = Literal["uniform", "sigma2", "alpha_sigma2"]
ViewWords = Literal["eight", "four", "none"]
Shared = Literal["view", "group", "batch"]
"""Who has one timestep together: nobody, the views of a group, or all views of a step."""


@dataclass(frozen=True)
class DistillationConfig:
    """How a fit is guided; the defaults are those of the toybox recipe.

    Args:
        form: "x0", "x0_latents", "sds", "flow", or code of one's own as module:name (`jobs.extensions`), which is a `Form`.
        weighting: w(t): 1, sigma^2 (DreamFusion), or alpha sigma^2.
        guidance_scale: s of `uncond + s (cond - uncond)`; threestudio's 100 is 101.
        guidance_rescale: phi in [0, 1]; of x0 in the forms that have one, as in MVDream.
        rescale_over: the values whose deviation is rescaled: of a "row", or of all views of a "group" as in MVDream.
        negative_prompt: encoded as the unconditional side.
        t_min: low end of the timesteps drawn, as a fraction of T; after its annealing, if it has any.
        t_min_start: low end before its annealing; None for `t_min` throughout.
        t_max_start, t_max_end: high end before and after its annealing.
        anneal_from, anneal_until: the part of the fit, as fractions of it, over which the ends fall in a line.
        shared_timestep: one timestep for every "view", "group" or "batch" of views.
        view_words: what prompts say of where a view is seen from: "eight" sides, from above or below, as the toybox's
            captions; "four" as DreamFusion: front, side, back and overhead view; or "none".
        front_degrees, back_degrees: of the four, how far a front or a back view reaches to either side.
        overhead_degrees: elevation above which a view is the overhead view.

    Raises:
        DiffusionError: a value out of range, named.
    """

    form: str = "x0"
    weighting: Weighting = "uniform"
    guidance_scale: float = 7.0
    guidance_rescale: float = 0.5
    rescale_over: str = "row"
    negative_prompt: str = ""
    t_min: float = 0.05
    t_min_start: float | None = None
    t_max_start: float = 0.95
    t_max_end: float = 0.45
    anneal_from: float = 0.0
    anneal_until: float = 1.0
    shared_timestep: Shared = "view"
    view_words: ViewWords = "eight"
    front_degrees: float = 45.0
    back_degrees: float = 45.0
    overhead_degrees: float = 60.0

    def __post_init__(self) -> None:
        if ":" not in self.form:
            _check_choice("form", self.form, tuple(FORMS))
        _check_choice("weighting", self.weighting, get_args(Weighting))
        _check_choice("shared_timestep", self.shared_timestep, get_args(Shared))
        _check_choice("rescale_over", self.rescale_over, ("row", "group"))
        _check_choice("view_words", self.view_words, get_args(ViewWords))
        for name, most in (("front_degrees", 180), ("back_degrees", 180), ("overhead_degrees", 90)):
            if not 0 <= getattr(self, name) <= most:
                raise DiffusionError.explained(
                    f"{name} is {getattr(self, name)}", expected=f"an angle from 0 to {most}", fix="use 45, or overhead 60"
                )
        if not math.isfinite(self.guidance_scale):
            raise DiffusionError.explained(f"guidance_scale is {self.guidance_scale}", expected="a finite number", fix="use 7")
        if not 0 <= self.guidance_rescale <= 1:
            raise DiffusionError.explained(f"guidance_rescale is {self.guidance_rescale}", expected="0 to 1", fix="use 0.5")
        for name in ("t_max_start", "t_max_end"):
            high = getattr(self, name)
            if not 0 <= self.t_min < high <= 1:
                raise DiffusionError.explained(
                    f"t_min is {self.t_min} and {name} {high}",
                    expected=f"0 <= t_min < {name} <= 1",
                    fix="use 0.05 with 0.95 and 0.45",
                )
        if self.t_min_start is not None and not self.t_min <= self.t_min_start <= self.t_max_start:
            raise DiffusionError.explained(
                f"t_min_start is {self.t_min_start}",
                expected=f"t_min <= t_min_start <= t_max_start, {self.t_min} to {self.t_max_start}",
                fix="leave it out, and the low end stays where it is",
            )
        if not 0 <= self.anneal_from <= self.anneal_until <= 1:
            raise DiffusionError.explained(
                f"anneal_from is {self.anneal_from} and anneal_until {self.anneal_until}",
                expected="0 <= anneal_from <= anneal_until <= 1",
                fix="use 0 and 1",
            )

    @property
    def guidance(self) -> Guidance:
        """The guidance of every query."""
        return Guidance(
            scale=self.guidance_scale,
            rescale=self.guidance_rescale,
            rescale_on="x0" if self.form in ("x0", "x0_latents") else "output",
            rescale_over=self.rescale_over,
        )


def timestep_range(progress: float, config: DistillationConfig) -> tuple[float, float]:
    """The fractions of T between which timesteps are drawn, (low, high), at `progress` in [0, 1] of the fit."""
    span = config.anneal_until - config.anneal_from
    done = (progress - config.anneal_from) / span if span > 0 else float(progress >= config.anneal_until)
    done = min(max(done, 0.0), 1.0)
    low = config.t_min if config.t_min_start is None else config.t_min_start + done * (config.t_min - config.t_min_start)
    return low, config.t_max_start + done * (config.t_max_end - config.t_max_start)


def sample_timesteps(
    config: DistillationConfig,
    schedule: Schedule,
    *,
    progress: float,
    num_views: int,
    group_views: int = 1,
    generator: torch.Generator,
) -> Tensor:
    """One timestep a view, group or batch, stratified: of N, each has its own 1/N of the range, in random order.

    Each is uniform over the range on its own; together they cover it, so that a step's gradient varies less.

    Args:
        num_views: of the step. group_views: so many neighbouring views are a group.

    Returns:
        (num_views,) on the CPU: long in [0, T-1], or, of a continuous process, float64 in [0, T].
    """
    low, high = timestep_range(progress, config)
    together = {"view": 1, "group": group_views, "batch": num_views}[config.shared_timestep]
    num = num_views // together
    order = torch.randperm(num, generator=generator)
    place = ((order + uniform((num,), generator)) / num).repeat_interleave(together)
    return schedule.timesteps_at(low + place.double() * (high - low))


@dataclass(frozen=True, eq=False)
class Distilled:
    """Score distillation's answer to a step: the gradient of the pictures, and in some forms what they should become.

    Args:
        gradient: (V, 3, H, W) of a loss that is summed, not averaged, over pixels.
        target: (V, 3, H, W) in [0, 1], the pictures that the images should become; None where the form has none. A fit moves
            towards it where it is given, and along the gradient otherwise.
        num_values: of a view of another size than the prior's, whose gradient was pulled back from there: how many values of
            the prior's picture the loss sums over. None where they are those of the images.
        loss: (V,) the sum of squared differences to the target at the prior's size, whose gradient `gradient` then is; the
            target is scaled to the images by area. None without a target, and where the images have the prior's size.
    """

    gradient: Tensor
    target: Tensor | None = None
    num_values: int | None = None
    loss: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Denoised:
    """One distillation step after the network: what a form turns into a gradient. Nothing in it carries gradients.

    Args:
        images: (V, 3, H, W) in [0, 1], the rendered views.
        latents: (V, C, h, w), the encoded views.
        noise: (V, C, h, w) standard normal.
        t: (V,) timesteps, on the CPU.
        x_t: (V, C, h, w), the latents noised to t.
        prediction: the guided prediction at x_t.
        weight: (V,) float64, w(t).
        condition: V rows of encoded text, for further requests.
        guidance: of the prediction.
        schedule: the prior's.
    """

    images: Tensor
    latents: Tensor
    noise: Tensor
    t: Tensor
    x_t: Tensor
    prediction: Prediction
    weight: Tensor
    condition: Condition
    guidance: Guidance
    schedule: Schedule

    def weighted(self, values: Tensor) -> Tensor:
        """w(t) times the rows of values (V, ...)."""
        return per_row(self.weight, values) * values


Form = Callable[[Denoised], Generator[Request, Any, Distilled]]
"""A form of score distillation. It may yield further requests and is sent their answers."""


def towards_x0(step: Denoised) -> Generator[Request, Any, Distilled]:
    """HiFA's: the gradient of w(t)/2 ||images - target||^2, the target being the decoded x0_hat."""
    target = (yield DecodeRequest(step.prediction.x0.detach())).detach()
    return Distilled(step.weighted(step.images - target), target)


def noise_residual(step: Denoised) -> Generator[Request, Any, Distilled]:
    """DreamFusion's: w(t) (eps_hat - eps), pulled back through the encoder (2209.14988 equation 3)."""
    residual = step.weighted(step.prediction.eps.detach() - step.noise)
    gradient = yield EncodeGradientRequest(step.images, residual)
    return Distilled(gradient.detach())


def velocity_residual(step: Denoised) -> Generator[Request, Any, Distilled]:
    """RFDS: w(t) (u_hat - u) with u = eps - z, pulled back through the encoder (2406.03293)."""
    residual = step.weighted(step.prediction.velocity.detach() - (step.noise - step.latents))
    gradient = yield EncodeGradientRequest(step.images, residual)
    return Distilled(gradient.detach())


def towards_x0_in_latents(step: Denoised) -> Generator[Request, Any, Distilled]:
    """MVDream's: the gradient of w(t)/2 ||z - x0_hat||^2, pulled back through the encoder (2308.16512 section 3.2)."""
    residual = step.weighted(step.latents - step.prediction.x0.detach())
    gradient = yield EncodeGradientRequest(step.images, residual)
    return Distilled(gradient.detach())


FORMS: dict[str, Form] = {
    "x0": towards_x0,
    "x0_latents": towards_x0_in_latents,
    "sds": noise_residual,
    "flow": velocity_residual,
}
_PULLED_BACK = (towards_x0_in_latents, noise_residual, velocity_residual)
"""Forms that ask for the encoder's gradient."""


def score_distillation(
    images: Tensor,
    *,
    condition: Condition,
    guidance: Guidance,
    schedule: Schedule,
    t: Tensor,
    noise: Tensor,
    form: str | Form = "x0",
    weighting: Weighting = "uniform",
) -> Generator[Request, Any, Distilled]:
    """The gradient of one distillation step.

    Args:
        images: (V, 3, H, W) in [0, 1]. Nothing is differentiated through here: the caller hangs the gradient on them.
        condition: V rows of encoded text.
        t: (V,) timesteps of the schedule, long, or float64 of a continuous process.
        noise: (V, C, h, w) standard normal, in the latents' shape.
        form: a name in `FORMS`, or a form itself.
        weighting: w(t), multiplies the gradient.

    Yields:
        EncodeRequest, DenoiseRequest, then what the form asks for.

    Raises:
        DiffusionError: an unknown form or weighting, or shapes that do not fit.
    """
    if isinstance(form, str):
        _check_choice("form", form, tuple(FORMS))
        form = FORMS[form]
    _check_choice("weighting", weighting, get_args(Weighting))
    if len(t) != len(images):
        raise DiffusionError.explained(
            f"{len(t)} timesteps for {len(images)} views", expected="one a view", fix="draw num_views timesteps"
        )
    images = images.detach()
    latents, t, noise = yield from encode_beside(images, t, noise, is_pulled_back=form in _PULLED_BACK)
    x_t = schedule.add_noise(latents, noise, t)
    prediction = yield DenoiseRequest(x_t, t, condition, guidance)
    weight = _weight(schedule, t, weighting)
    step = Denoised(images, latents, noise, t, x_t, prediction, weight, condition, guidance, schedule)
    answer = yield from form(step)
    if answer.gradient.shape != images.shape:
        raise DiffusionError.explained(
            f"the form's gradient has shape {tuple(answer.gradient.shape)}",
            expected=f"the images' {tuple(images.shape)}",
            fix="pull a residual of the latents back with EncodeGradientRequest",
        )
    return answer


def at_own_size(
    images: Tensor, size: tuple[int, int], distilled: Callable[[Tensor], Generator[Request, Any, Distilled]]
) -> Generator[Request, Any, Distilled]:
    """Distillation of images (V, 3, H, W) by a prior of pictures of this (height, width): resized, and its answer pulled back.

    So they travel as small as they were rendered. distilled: of images of the prior's size, see `score_distillation`.
    """
    if images.shape[-2:] == size:
        return (yield from distilled(images))
    shown = resized(images, size)
    answer = yield from distilled(shown)
    gradient, target, loss = answer.gradient, answer.target, None
    height, width = images.shape[-2:]
    if target is not None:
        difference = shown - target
        gradient, loss = 2 * difference, difference.square().flatten(1).sum(1)
        target = F.interpolate(target, size=(height, width), mode="area")
    return Distilled(pulled_back(gradient, (height, width)), target, shown[0].numel(), loss)


def encode_beside(
    images: Tensor, t: Tensor, noise: Tensor, *, is_pulled_back: bool = False
) -> Generator[Request, Any, tuple[Tensor, Tensor, Tensor]]:
    """The latents of images (B, 3, H, W) without gradient, t (B,) as it is, and noise (B, C, h, w) beside the latents.

    Raises:
        DiffusionError: noise of another shape than the latents.
    """
    latents = (yield EncodeRequest(images, is_pulled_back=is_pulled_back)).detach()
    if noise.shape != latents.shape:
        raise DiffusionError.explained(
            f"the noise has shape {tuple(noise.shape)}",
            expected=f"the latents' {tuple(latents.shape)}",
            fix="draw it in the prior's latent_shape",
        )
    return latents, t, noise.to(latents)


def _weight(schedule: Schedule, t: Tensor, weighting: Weighting) -> Tensor:
    """w(t), (V,) float64."""
    match weighting:
        case "uniform":
            return torch.ones(len(t), dtype=torch.float64, device=t.device)
        case "sigma2":
            return schedule.sigma(t).square()
        case "alpha_sigma2":
            return schedule.alpha(t) * schedule.sigma(t).square()


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DiffusionError.explained(
            f"the distillation's {name} is {value!r}",
            expected="one of " + ", ".join(map(repr, allowed)),
            fix="use one of these",
        )
