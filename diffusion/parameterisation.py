"""eps, x0, v, velocity and score: the only place where one becomes another.

With x_t = a x0 + s eps (a = alpha_t, s = sigma_t), of any forward process::

    v = a eps - s x0            (2202.00512 section 4)
    u = eps - x0                (the velocity dx/ds of rectified flow, a = 1 - s; 2209.03003)
    x0 = (a x_t - s v) / (a^2 + s^2) = (x_t - s u) / (a + s) = (x_t - s eps) / a
    eps = (s x_t + a v) / (a^2 + s^2) = (x_t + a u) / (a + s) = (x_t - a x0) / s
    score = -eps / s            (1907.05600)

a^2 + s^2 is 1 where variance is preserved, and a + s is 1 in a rectified flow.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.seeding import sent

KINDS = ("epsilon", "v_prediction", "sample", "score", "velocity")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a denoiser says about x_t, in every parameterisation.

    Args:
        eps: (B, ...) the noise in x_t.
        x0: (B, ...) the clean sample: E[x0 | x_t] for an ideal network.
        alpha, sigma: (B,) float64, the scales that x_t was made with.
        variance_share: (B, ...) v in [0, 1] of a learned variance (2102.09672 eq. 15), where the network has one.
    """

    eps: Tensor
    x0: Tensor
    alpha: Tensor
    sigma: Tensor
    variance_share: Tensor | None = None

    @classmethod
    def from_output(cls, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor, kind: str = "epsilon") -> "Prediction":
        """Read a network's output.

        Args:
            output, x_t: (B, ...) of one shape.
            alpha, sigma: (B,), from `schedule.alpha(t)` and `schedule.sigma(t)`.
            kind: "epsilon", "v_prediction", "sample" (x0), diffusers' names, or "score" or "velocity".

        Returns:
            The prediction in x_t's dtype, on its device. Gradients flow to `output` and `x_t`. Where alpha is 0, x0
            from an epsilon or score output is not finite, and where sigma is 0, eps from a sample output is not.

        Raises:
            DiffusionError: an unknown kind, or shapes that differ.
        """
        if output.shape != x_t.shape:
            raise DiffusionError.explained(
                f"the network's output has shape {tuple(output.shape)}",
                expected=f"x_t's {tuple(x_t.shape)}",
                fix="drop channels that predict a variance and combine guidance halves first",
            )
        a, s = per_row(alpha, x_t), per_row(sigma, x_t)
        output = output.to(device=x_t.device, dtype=x_t.dtype)
        match kind:
            case "epsilon":
                eps, x0 = output, (x_t - s * output) / a
            case "v_prediction":
                length = per_row(alpha.double().square() + sigma.double().square(), x_t)
                eps, x0 = (s * x_t + a * output) / length, (a * x_t - s * output) / length
            case "velocity":
                total = per_row(alpha.double() + sigma.double(), x_t)
                eps, x0 = (x_t + a * output) / total, (x_t - s * output) / total
            case "sample":
                eps, x0 = (x_t - a * output) / s, output
            case "score":
                eps = -s * output
                x0 = (x_t - s * eps) / a
            case _:
                raise _unknown(kind)
        return cls(eps, x0, alpha, sigma)

    @property
    def v(self) -> Tensor:
        """a eps - s x0, (B, ...)."""
        return per_row(self.alpha, self.eps) * self.eps - per_row(self.sigma, self.eps) * self.x0

    @property
    def velocity(self) -> Tensor:
        """eps - x0, (B, ...)."""
        return self.eps - self.x0

    @property
    def score(self) -> Tensor:
        """The gradient of log p_t at x_t, -eps / s, (B, ...)."""
        return -self.eps / per_row(self.sigma, self.eps)

    def as_kind(self, kind: str) -> Tensor:
        """The inverse of `from_output`: this prediction as a network of that kind would put it, (B, ...)."""
        match kind:
            case "epsilon":
                return self.eps
            case "v_prediction":
                return self.v
            case "sample":
                return self.x0
            case "score":
                return self.score
            case "velocity":
                return self.velocity
        raise _unknown(kind)

    def __getitem__(self, rows: slice | Tensor) -> "Prediction":
        """Some rows of a batch, as the engine hands them back to their jobs."""
        share = None if self.variance_share is None else self.variance_share[rows]
        return Prediction(self.eps[rows], self.x0[rows], self.alpha[rows], self.sigma[rows], share)


def training_target(x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor, kind: str) -> Tensor:
    """What a network of that kind should output for x_t = alpha x0 + sigma eps.

    Args:
        x0, eps: (B, ...); alpha, sigma: (B,).

    Returns:
        (B, ...) in x0's dtype: eps, v, x0, the velocity, or the denoising score -eps / s (Vincent 2011).
    """
    return Prediction(eps, x0, alpha, sigma).as_kind(kind)


def per_row(scale: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) in the dtype and on the device of `like` (B, ...)."""
    return sent(torch.as_tensor(scale, dtype=like.dtype), like.device).reshape((-1,) + (1,) * (like.ndim - 1))


def _unknown(kind: str) -> DiffusionError:
    return DiffusionError.explained(
        f"the prediction kind is {kind!r}",
        expected="one of " + ", ".join(map(repr, KINDS)),
        fix="take it from the scheduler's prediction_type",
        why="it is not stored in the weights",
    )
