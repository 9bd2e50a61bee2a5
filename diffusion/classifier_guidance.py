"""Guidance by the gradient of another network: a noise-aware classifier (2105.05233) or CLIP (2112.10741 section 2.4).

Both know something of x_t that can be written as log p(y | x_t, t), up to a constant in x_t. By Bayes' rule

    grad log p(x_t | y) = grad log p(x_t) + s grad log p(y | x_t),        s = 1 exact,

and the paper adds the last term in one of two forms. Each is a generator around a sampler's, so that the sampler does
not know of it; like a sampler it yields requests for the unguided prediction:

    eps_guided(ddim(...), gradient, scale=s, schedule=schedule)          algorithm 2, any sampler
    mean_guided(ddpm(...), gradient, scale=s, schedule=..., ...)         algorithm 1, ancestral sampling
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.parameterisation import Prediction, per_row
from diffusion.process import Schedule
from diffusion.requests import DenoiseRequest
from diffusion.samplers.chain import Level, Sampling, levels, transitions
from diffusion.samplers.ddpm import Variance
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import sent

LogProb = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, ...) and t (B,) -> (B,), log p(y_b | x_t, t) of each row's own y; differentiable in x_t."""

Gradient = Callable[[Tensor, Tensor], Tensor]
"""x_t (B, ...) and t (B,) -> (B, ...), grad log p(y_b | x_t, t) with respect to x_t, without gradient."""


def gradient_of(log_prob: LogProb) -> Gradient:
    """The gradient of each row's log-probability; summed over the rows first, so one backward pass serves all."""

    def gradient(x_t: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            (slope,) = torch.autograd.grad(log_prob(x, t).sum(), x)
        return slope.to(x_t.dtype)

    return gradient


def class_log_prob(classifier: Callable[[Tensor, Tensor], Tensor], labels: Tensor) -> LogProb:
    """log softmax of a classifier's logits at each row's label.

    Args:
        classifier: x_t (B, ...) and t (B,) -> logits (B, num_classes).
        labels: (B,) long in [0, num_classes).
    """

    def log_prob(x_t: Tensor, t: Tensor) -> Tensor:
        return classifier(x_t, t).log_softmax(dim=-1).gather(1, labels.to(x_t.device)[:, None])[:, 0]

    return log_prob


def eps_guided(chain: Sampling, gradient: Gradient, *, scale: float, schedule: Schedule) -> Sampling:
    """2105.05233 algorithm 2 (eq. 14): eps' = eps - s sqrt(1 - abar_t) grad log p(y | x_t), around any sampler.

    x0 follows, so that x_t stays alpha x0' + sigma eps'.

    Args:
        chain: a sampler's generator, not yet started.
        gradient: of log p(y | x_t, t), asked once at every request of the sampler.
        scale: s. 1 samples p(x | y) if both networks are exact; more trades variety for certainty.

    Yields:
        The sampler's own requests, to be sent the unguided Prediction. Returns its result.
    """

    def guided(request: DenoiseRequest, answer: Prediction) -> Prediction:
        tilt = scale * gradient(request.x_t, sent(request.t, request.x_t.device))
        alpha, sigma = per_row(schedule.alpha(request.t), tilt), per_row(schedule.sigma(request.t), tilt)
        return replace(answer, eps=answer.eps - sigma * tilt, x0=answer.x0 + sigma**2 / alpha * tilt)

    return _with_answers(chain, guided)


def mean_guided(
    chain: Sampling,
    gradient: Gradient,
    *,
    scale: float,
    schedule: Schedule,
    timesteps: Tensor,
    variance: Variance = "fixed_small",
) -> Sampling:
    """2105.05233 algorithm 1 (eq. 10): the step's mean mu moves to mu + s Sigma grad log p(y | x_t), around `ddpm`.

    The sampler's mean is g x0 + h x_t (2006.11239 eq. 7) with g = alpha' beta / sigma^2, so the shift is sent to it as
    x0' = x0 + s (Sigma / g) grad. The posterior's Sigma ("fixed_small") is nothing on the last step, and so is the shift;
    "fixed_large" has one there.

    Args:
        chain: `ddpm`'s generator over `timesteps` with this `variance`, not yet started.
        gradient: taken at x_t, as in algorithm 1 (eq. 10 expands around mu; the two meet as the steps shrink).
        scale: s; Sigma is the step's variance, whatever `variance` says it is.

    Yields, returns: as `eps_guided`.

    Raises:
        DiffusionError: the sampler asks for a timestep that is not in `timesteps`.
    """
    steps = {here.t: (here, there) for _, here, there in transitions(levels(schedule, timesteps))}

    def guided(request: DenoiseRequest, answer: Prediction) -> Prediction:
        t = int(request.t[0])
        if t not in steps:
            raise DiffusionError.explained(
                f"the sampler asked at timestep {t}",
                expected="one of the timesteps that mean_guided was given",
                fix="give both the same timesteps and variance",
            )
        shift = _variance_over_g(*steps[t], variance, answer.variance_share)
        x0 = answer.x0 + shift * scale * gradient(request.x_t, sent(request.t, request.x_t.device))
        fitted = Prediction.from_output(x0, request.x_t, answer.alpha, answer.sigma, "sample")
        return replace(fitted, variance_share=answer.variance_share)

    return _with_answers(chain, guided)


Guide = Callable[[Sampling, Tensor, Variance | None], Sampling]
"""A sampler's generator, its timesteps and, of `ddpm`, its variance -> the generator under guidance."""


def guided_by(gradient: Gradient, *, scale: float, schedule: Schedule) -> Guide:
    """The form that belongs to a sampler: the mean's where a variance shows it to be `ddpm`, else eps's."""

    def guide(chain: Sampling, timesteps: Tensor, variance: Variance | None) -> Sampling:
        if variance is None:
            return eps_guided(chain, gradient, scale=scale, schedule=schedule)
        return mean_guided(chain, gradient, scale=scale, schedule=schedule, timesteps=timesteps, variance=variance)

    return guide


def check_same_schedule(guide: NoiseSchedule, guided: Schedule, *, name: str) -> None:
    """Raises DiffusionError where a network that is to guide was trained on other noise levels than the model."""
    if not isinstance(guided, NoiseSchedule):
        raise DiffusionError.explained(
            f"the {name} was trained on a table of noise levels and the model is a rectified flow",
            expected="a model with the same schedule",
            fix="guide a model of ddpm or improved_ddpm, or give this one labels",
            why="the same timestep must mean the same noise to both",
        )
    if not torch.equal(guide.alphas_cumprod, guided.alphas_cumprod):
        raise DiffusionError.explained(
            f"the {name} was trained on the schedule {guide.beta_schedule} with {guide.num_train_timesteps} timesteps",
            expected=f"the model's: {guided.beta_schedule} with {guided.num_train_timesteps}, and its betas",
            fix=f"train the {name} with the model's schedule (schedule.beta_schedule=..., schedule.beta_start=...)",
            why="the same timestep must mean the same noise to both",
        )


def _variance_over_g(here: Level, there: Level, variance: Variance, share: Tensor | None) -> Tensor | float:
    """Sigma / g of one step, with g = alpha' beta / sigma^2 the weight of x0 in its mean."""
    beta = 1 - (here.alpha / there.alpha) ** 2
    small = beta * there.sigma**2 / here.sigma**2
    sigma_squared: Tensor | float = beta if variance == "fixed_large" else small
    if variance == "learned" and share is not None and small > 0:
        sigma_squared = small * (beta / small) ** share
    return sigma_squared * here.sigma**2 / (there.alpha * beta)


def _with_answers(chain: Sampling, change: Callable[[DenoiseRequest, Prediction], Prediction]) -> Sampling:
    """Run a sampler with every answer changed on its way in."""
    reply: Prediction | None = None
    while True:
        try:
            request = chain.send(reply)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as finished:
            return finished.value
        reply = change(request, (yield request))
