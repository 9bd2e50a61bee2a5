"""Denoisers that are exactly right: the answer for data drawn from a mixture of Gaussians, in closed form.

With x_t = a x0 + s eps and x0 ~ sum_k w_k N(m_k, C_k), x_t is a mixture of N(a m_k, a^2 C_k + s^2 I), and

    E[x0 | x_t] = sum_k p(k | x_t) (m_k + a C_k (a^2 C_k + s^2 I)^-1 (x_t - a m_k)).

A sampler, a loss or a guidance rule that is fed these answers has an exact result to be compared with.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffusion.guidance import guided_prediction
from diffusion.parameterisation import Prediction
from diffusion.requests import Condition, DecodeRequest, DenoiseRequest, EncodeGradientRequest, EncodeRequest, PreviewRequest
from diffusion.schedule import NoiseSchedule


class GaussianMixture:
    """A mixture over D numbers.

    Args:
        weights: (K,). means: (K, D). covariances: (K, D, D), positive semidefinite; zero is a point mass.
    """

    def __init__(self, weights: Any, means: Any, covariances: Any) -> None:
        self.weights, self.means, self.covariances = (
            torch.as_tensor(value, dtype=torch.float64) for value in (weights, means, covariances)
        )
        # C_k = Q diag(l) Q^T, so that a^2 C_k + s^2 I is diagonal in the same basis at every level.
        self.eigenvalues, self.basis = torch.linalg.eigh(self.covariances)

    @classmethod
    def gaussian(cls, mean: Any, covariance: Any) -> "GaussianMixture":
        """One component: mean (D,), covariance (D, D)."""
        one_mean, one_covariance = (torch.as_tensor(value, dtype=torch.float64)[None] for value in (mean, covariance))
        return cls([1.0], one_mean, one_covariance)

    def x0_hat(self, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x_t], (B, D) float64, for x_t (B, D) and alpha, sigma (B,)."""
        a, s = alpha.double()[:, None, None], sigma.double()[:, None, None]
        # Row b, component k, axis d of component k's own basis.
        along = torch.einsum("bkd,kde->bke", x_t.double()[:, None] - a * self.means, self.basis)
        variance = a**2 * self.eigenvalues + s**2
        log_density = -0.5 * (along**2 / variance + variance.log()).sum(-1)
        posterior = torch.softmax(self.weights.log() + log_density, dim=-1)
        shift = torch.einsum("bke,kde->bkd", a * self.eigenvalues / variance * along, self.basis)
        return (posterior[..., None] * (self.means + shift)).sum(1)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, D) exact samples."""
        component = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, self.means.shape[1], generator=generator, dtype=torch.float64)
        scaled = self.eigenvalues.clamp(min=0).sqrt()[component] * z
        return self.means[component] + torch.einsum("be,bde->bd", scaled, self.basis[component])


@dataclass
class Oracle:
    """Answers every request exactly; an identity (or given linear) map stands for the autoencoder.

    Args:
        cond: the data law of rows whose condition is `YES`; uncond: that of rows whose condition is `NO`.
        kind is the schedule's prediction_type. `asked` records what was asked for.
        encode, decode: (B, 3, H, W) <-> (B, C, h, w), differentiable.
    """

    schedule: NoiseSchedule
    cond: GaussianMixture
    uncond: GaussianMixture | None = None
    encode: Callable[[Tensor], Tensor] = lambda images: images
    decode: Callable[[Tensor], Tensor] = lambda latents: latents
    asked: list[Any] = field(default_factory=list)

    def network(self, x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """A perfectly trained network: output of the schedule's prediction_type."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        flat = x_t.flatten(1)
        x0 = self.cond.x0_hat(flat, alpha, sigma)
        if self.uncond is not None:
            x0 = torch.where(tokens[:, 0, :1] > 0, x0, self.uncond.x0_hat(flat, alpha, sigma))
        prediction = Prediction.from_output(x0.to(x_t.dtype).reshape(x_t.shape), x_t, alpha, sigma, "sample")
        return prediction.as_kind(self.schedule.prediction_type)

    def __call__(self, request: Any) -> Any:
        self.asked.append(request)
        match request:
            case DenoiseRequest():
                return guided_prediction(self.network, request, self.schedule)
            case EncodeRequest(images):
                return self.encode(images)
            case DecodeRequest(latents) | PreviewRequest(latents):
                return self.decode(latents)
            case EncodeGradientRequest(images, latent_gradient):
                return torch.autograd.functional.vjp(self.encode, images, latent_gradient)[1]
        raise TypeError(type(request).__name__)


def condition(rows: int) -> Condition:
    """`rows` conditions for an Oracle: its `cond` against its `uncond`."""
    return Condition(torch.ones(rows, 1, 1), torch.zeros(rows, 1, 1))


def gaussian_flow(mean: Tensor, variance: Tensor, x: Tensor, here: tuple[float, float], there: tuple[float, float]):
    """The exact probability flow of N(mean, diag variance) from scales `here` to `there` (each alpha, sigma).

    The flow keeps the standardised coordinate: (x' - a' m) / sd' = (x - a m) / sd, with sd^2 = a^2 c + s^2.
    """
    (a, s), (a2, s2) = here, there
    scale = ((a2**2 * variance + s2**2) / (a**2 * variance + s**2)).sqrt()
    return a2 * mean + scale * (x - a * mean)


# A correlated Gaussian and five unlike modes: the two targets of the facts' tables, in spirit.
CORRELATED = GaussianMixture.gaussian([0.5, -0.3], [[0.5, 0.3], [0.3, 0.4]])
FIVE_MODES = GaussianMixture(
    [0.3, 0.2, 0.2, 0.2, 0.1],
    [[-1.2, -0.8], [1.1, 0.9], [0.9, -1.1], [-0.7, 1.2], [0.1, 0.1]],
    [
        [[0.02, 0.01], [0.01, 0.03]],
        [[0.01, 0.0], [0.0, 0.05]],
        [[0.03, -0.01], [-0.01, 0.01]],
        [[0.02, 0.0], [0.0, 0.02]],
        [[0.005, 0.0], [0.0, 0.005]],
    ],
)
