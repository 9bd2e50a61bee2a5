"""What all samplers share: the levels they step through, the steps between two levels, and their noise.

Every sampler works on the variance-preserving x_t = alpha x_0 + sigma eps, whatever coordinates its paper uses, so the
start noise of one is the start noise of all.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.parameterisation import Prediction
from diffusion.process import Schedule
from diffusion.requests import Condition, DenoiseRequest, Guidance
from diffusion.seeding import NoiseSource, normal_rows, sent

Sampling = Generator[DenoiseRequest, Prediction, Tensor]
"""Yields requests, is sent predictions, returns x_0."""

Noise = NoiseSource | Sequence[torch.Generator] | None
"""Fresh noise: a function of the step's index, or one stream a row; see `drawn`."""

# diffusers' smallest abar where a zero-SNR start must still have a finite log-SNR: 2^-24.
_SMALLEST_ALPHA = 2.0**-12


class Sampler(Protocol):
    """The one signature of this folder.

    Args:
        x_T: (B, C, h, w) at the first timestep's noise level: standard normal noise for plain sampling, which a
            schedule with a visible signal at T may have scaled by sigma_T.
        schedule: the network's noise schedule.
        timesteps: (N,) long or float64, strictly decreasing, from `timesteps_for` or `schedule.timesteps(N)`, or the tail of
            either.
        condition, guidance: handed on with each request.
        noise: for samplers that add noise: either a function from the step's index to (B, C, h, w), or one stream
            a row. The others ignore it.

    Yields:
        DenoiseRequest with one timestep in all rows; to be sent a Prediction.

    Returns:
        (B, C, h, w) clean latents in x_T's dtype.

    Raises:
        DiffusionError: timesteps that do not fall strictly or leave the schedule; noise missing or of another shape.
    """

    def __call__(
        self,
        x_T: Tensor,
        *,
        schedule: Schedule,
        timesteps: Tensor,
        condition: Condition,
        guidance: Guidance,
        noise: Noise = None,
    ) -> Sampling:
        """The sampler's generator; see the class for arguments, yields and errors."""
        ...


@dataclass(frozen=True)
class Level:
    """One noise level: its timestep (-1 after the last step), between two of the table's where it is a float, and scales."""

    t: int | float
    alpha: float
    sigma: float

    @property
    def ratio(self) -> float:
        """sigma / alpha: the noise level in variance-exploding coordinates x / alpha; finite even at zero SNR."""
        return self.sigma / max(self.alpha, _SMALLEST_ALPHA)


def levels(schedule: Schedule, timesteps: Tensor, *, final_abar: float = 1.0) -> list[Level]:
    """The levels of N timesteps and, after them, the one that the last step leads to: N + 1 in all.

    Args:
        timesteps: (N,) long or float64, N >= 1.
        final_abar: abar after the last step: 1, or `schedule.final_alphas_cumprod`.
    """
    if timesteps.ndim != 1 or len(timesteps) == 0 or not bool((timesteps.diff() < 0).all()):
        raise DiffusionError.explained(
            f"the timesteps are {timesteps.tolist()}",
            expected="a strictly decreasing list of at least one",
            fix="take them from schedule.timesteps(...)",
        )
    t = timesteps.cpu()
    scales = zip(t.tolist(), schedule.alpha(t).tolist(), schedule.sigma(t).tolist(), strict=True)
    steps = [Level(step, alpha, sigma) for step, alpha, sigma in scales]
    return [*steps, Level(-1, final_abar**0.5, (1 - final_abar) ** 0.5)]


def transitions(steps: Sequence[Level]) -> Iterator[tuple[int, Level, Level]]:
    """(index, here, there) for each pair of neighbours."""
    for index in range(len(steps) - 1):
        yield index, steps[index], steps[index + 1]


def ask(x: Tensor, t: int | float, condition: Condition, guidance: Guidance) -> DenoiseRequest:
    """The request for all rows of x (B, ...) at one timestep."""
    dtype = torch.float64 if isinstance(t, float) else torch.long
    return DenoiseRequest(x, torch.full((len(x),), t, dtype=dtype), condition, guidance)


def transfer(prediction: Prediction, here: Level, there: Level, eps: Tensor | None = None) -> Tensor:
    """Go from `here` to `there` along the line through x with slope `eps` (2010.02502 eq. 13, 2202.09778 eq. 11).

        x' = (a'/a) x + (s' - s a'/a) eps

    written around the prediction at x, a' x0 + s' eps_x + (s' - s a'/a) (eps - eps_x), which does not subtract large
    numbers where a is small.

    Args:
        prediction: at x, so that x = a x0 + s eps_x.
        eps: (B, ...) the slope; None for the prediction's own, which is a DDIM step.
    """
    straight = there.alpha * prediction.x0 + there.sigma * prediction.eps
    if eps is None:
        return straight
    return straight + (there.sigma - here.ratio * there.alpha) * (eps - prediction.eps)


def use_second_order(here: Level, there: Level) -> bool:
    """Whether a step does better with the mean of the slopes at both its ends than with the first alone.

    Where noise dominates, eps = k (1 - C / (2 r^2)) along the flow of data of variance C, with r = sigma / alpha. Of
    what this curvature does to y = x / alpha between r and r', the first slope misses k C / (2 r') (1 - r' / r)^2, and
    the mean of both overshoots by r / r' - 1 times as much: it is the better one as long as r < 2 r'. Down to weak noise
    eps hardly changes; there the bound for data of variance 1 is r < 2.8. Schedules that begin with almost no signal
    (cosine, zero SNR) start far beyond, Stable Diffusion's stays within in any run of seven steps or more.
    """
    return here.ratio < 2 * there.ratio + 3


def drawn(noise: Noise, index: int, x: Tensor) -> Tensor:
    """The fresh noise of step `index`, in x's shape, device and dtype."""
    if noise is None:
        raise DiffusionError.explained(
            "this sampler adds noise and was given none",
            expected="a function of the step or one random stream for each row",
            fix="pass noise=seeding.step_noise(...) or noise=[seeding.stream(seed, ...), ...]",
            why="each item must draw from its own stream",
        )
    if callable(noise):
        z = noise(index)
    elif len(noise) == len(x):
        z = normal_rows(x.shape[1:], noise)
    else:
        raise DiffusionError.explained(
            f"{len(noise)} noise streams for {len(x)} rows", expected="one a row", fix="make one stream for each item"
        )
    if z.shape != x.shape:
        raise DiffusionError.explained(
            f"the noise of step {index} has shape {tuple(z.shape)}",
            expected=f"x's {tuple(x.shape)}",
            fix="draw it for every row",
        )
    return sent(z.to(x.dtype), x.device)
