"""Denoising score matching (Vincent 2011, "A connection between score matching and denoising autoencoders").

The score of the data plus Gaussian noise is learnt by regression on the direction back to the data. 1907.05600 weights
several noise levels against each other; that model is `ncsn`, this one has a single level.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, SampleRequest
from diffusion.models.score_model import ScoreModel, unconditional_network
from diffusion.networks.build import NetworkConfig
from diffusion.networks.mlp import MLPConfig
from diffusion.parameterisation import per_row
from diffusion.seeding import normal


def denoising_score_matching(
    score: Callable[[Tensor, Tensor], Tensor], x: Tensor, *, noise: Tensor, sigma: Tensor, sigma_power: float = 0.0
) -> Tensor:
    """1/2 lambda(sigma) || score(x + sigma z, sigma) + z / sigma ||^2 (Vincent 2011 eq. 9; 1907.05600 eq. 5).

    Its minimiser is the score of p convolved with N(0, sigma^2 I); its minimum is
    lambda / 2 (D / sigma^2 - E || score ||^2) over D numbers an item.

    Args:
        score: (B, ...), (B,) -> (B, ...).
        x: (B, ...) data. noise: (B, ...) standard normal z. sigma: (B,).
        sigma_power: lambda = sigma^power: 0 for Vincent's loss, 2 for 1907.05600's, where every level weighs the same.

    Returns:
        (B,) summed over the item; gradients flow through the score.
    """
    s = per_row(sigma, x)
    residual = score(x + s * noise, sigma) + noise / s
    return 0.5 * sigma.to(residual) ** sigma_power * residual.square().flatten(1).sum(1)


@dataclass(frozen=True)
class DenoisingScoreMatchingConfig:
    """One noise level, in units of the data.

    Args:
        sigma: small against the data's own detail, which it blurs. num_steps, step_size: of Langevin dynamics.
    """

    network: NetworkConfig = field(default_factory=MLPConfig)
    sigma: float = 0.1
    num_steps: int = 1000
    step_size: float = 1e-3

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise DiffusionError.explained(f"sigma is {self.sigma:g}", expected="above 0", fix="use about 0.1")


class DenoisingScoreMatching(ScoreModel):
    """The score at one noise level."""

    name = "denoising_score_matching"
    Config = DenoisingScoreMatchingConfig

    def __init__(self, config: DenoisingScoreMatchingConfig) -> None:
        super().__init__(config)
        self.network = unconditional_network(config.network)

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """-eps / sigma of the noise eps that the network sees in x; sigma must be the configuration's."""
        return self.network(x, torch.zeros(len(x), device=x.device)) / per_row(sigma, x)

    def loss(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """sigma^2 times Vincent's loss, a number: 1/2 (1 - sigma^2 E||score||^2 / D) at best."""
        x = batch.x
        noise = normal(x.shape, generator, device=x.device)
        sigma = torch.full((len(x),), self.config.sigma, device=x.device)
        loss = denoising_score_matching(self.score, x, noise=noise, sigma=sigma, sigma_power=2)
        return loss.mean() / x[0].numel(), {}

    def sample(self, request: SampleRequest) -> Tensor:
        """Plain Langevin dynamics, see `langevin_samples`."""
        config = self.config
        return self.langevin_samples(request, sigma=config.sigma, num_steps=config.num_steps, step_size=config.step_size)
