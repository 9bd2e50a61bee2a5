"""Sliced score matching (1905.07088): the score of the data themselves, from projections on random directions."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.models.base import Batch, SampleRequest
from diffusion.models.score_model import ScoreModel, unconditional_network
from diffusion.networks.build import NetworkConfig
from diffusion.networks.mlp import MLPConfig


def sliced_score_matching(
    score: Callable[[Tensor], Tensor], x: Tensor, *, directions: Tensor, variance_reduced: bool = False
) -> Tensor:
    """v^T grad(v^T score) + 1/2 (v^T score)^2 (1905.07088 eq. 7), or with 1/2 ||score||^2 (eq. 8, SSM-VR).

    In expectation over v both are Hyvarinen's tr(grad score) + 1/2 ||score||^2, whose minimiser is the score of p and
    whose minimum is -1/2 E ||score||^2.

    Args:
        score: (B, ...) -> (B, ...), each row from its own row.
        x: (B, ...) data, to which no gradient flows.
        directions: (B, ...) v with E[v v^T] = I: see `rademacher`; standard normal directions will do too.

    Returns:
        (B,) summed over the item; gradients flow through the score and its derivative.
    """
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = score(x)
        projected = _dot(value, directions)
        (gradient,) = torch.autograd.grad(projected.sum(), x, create_graph=True)
    curvature = _dot(gradient, directions)
    square = value.square().flatten(1).sum(1) if variance_reduced else projected.square()
    return curvature + 0.5 * square


def rademacher(shape: tuple[int, ...], generator: torch.Generator, *, device: torch.device | str = "cpu") -> Tensor:
    """Fair signs -1 and 1, float32: the directions of least variance among those with E[v v^T] = I."""
    return (2.0 * torch.randint(2, shape, generator=generator) - 1).to(device)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B, ...), (B, ...) -> (B,)."""
    return (a * b).flatten(1).sum(1)


@dataclass(frozen=True)
class SlicedScoreMatchingConfig:
    """Which of the two forms is trained, and how the model is sampled.

    Args:
        variance_reduced: SSM-VR (eq. 8) instead of SSM (eq. 7). num_steps, step_size: of Langevin dynamics.
    """

    network: NetworkConfig = field(default_factory=MLPConfig)
    variance_reduced: bool = True
    num_steps: int = 1000
    step_size: float = 1e-3


class SlicedScoreMatching(ScoreModel):
    """The score of the data, without noise."""

    name = "sliced_score_matching"
    Config = SlicedScoreMatchingConfig

    def __init__(self, config: SlicedScoreMatchingConfig) -> None:
        super().__init__(config)
        self.network = unconditional_network(config.network)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The network's output; it knows sigma = 0 alone."""
        return self.network(x, torch.zeros(len(x), device=x.device))

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """One direction an item; a number, -1/2 E||score||^2 / D at best."""
        x = batch.x
        directions = rademacher(tuple(x.shape), generator, device=x.device)
        nothing = torch.zeros(len(x), device=x.device)
        # bfloat16 is too coarse for a derivative of the network that is itself differentiated.
        with torch.autocast(x.device.type, enabled=False):
            loss = sliced_score_matching(
                lambda points: self.score(points, nothing),
                x,
                directions=directions,
                variance_reduced=self.config.variance_reduced,
            )
        return loss.mean() / x[0].numel(), {}

    def sample(self, request: SampleRequest) -> Tensor:
        """Plain Langevin dynamics, see `langevin_samples`."""
        config = self.config
        return self.langevin_samples(request, sigma=0.0, num_steps=config.num_steps, step_size=config.step_size)
