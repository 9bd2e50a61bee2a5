"""What the score-based models share: a network that predicts the score, and Langevin dynamics driven by it."""

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.models.base import Model, SampleRequest
from diffusion.models.sampling import request_labels
from diffusion.networks.build import Network, NetworkConfig, build_network
from diffusion.requests import run
from diffusion.samplers.annealed_langevin import ScoreRequest, ScoreSampling, langevin
from diffusion.seeding import normal_rows, stream


class ScoreModel(Model):
    """A model of the gradient of log p."""

    @abstractmethod
    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The score of the data plus N(0, sigma^2 I), (B, ...), at x (B, ...) for noise levels sigma (B,)."""

    def answer(self, request: ScoreRequest) -> Tensor:
        """What the Langevin generators are sent."""
        return self.score(request.x, request.sigma)

    def start(self, seeds: Sequence[int], scale: float) -> Tensor:
        """(B, *shape) from N(0, scale^2 I), one stream a seed."""
        return scale * normal_rows(self.shape, [stream(seed, "start") for seed in seeds], device=self.device)

    def noise(self, seeds: Sequence[int]) -> list[torch.Generator]:
        """The fresh noise of the chains, one stream a seed for all of its many steps."""
        return [stream(seed, "noise") for seed in seeds]

    @torch.no_grad()
    def draw(self, sampling: ScoreSampling) -> Tensor:
        """What a Langevin generator returns when this model answers it."""
        return run(sampling, self.answer)

    def langevin_samples(self, request: SampleRequest, *, sigma: float, num_steps: int, step_size: float) -> Tensor:
        """Samples by plain Langevin dynamics at one noise level, for models that know only one.

        Far modes get shares that depend on the start rather than on the data (1907.05600 section 3.2.2).

        Args:
            request: its options are "step_size", the step, and "start_scale", the standard deviation of the start (1).
        """
        check_unconditional(request, "langevin")
        options = request.options_over({"step_size": step_size, "start_scale": 1.0})
        return self.draw(
            langevin(
                self.start(request.seeds, options["start_scale"]),
                sigma=sigma,
                num_steps=num_steps if request.num_steps is None else request.num_steps,
                step_size=options["step_size"],
                noise=self.noise(request.seeds),
            )
        )


def check_unconditional(request: SampleRequest, *samplers: str) -> None:
    """Raises DiffusionError where a request asks for a sampler that is not one of `samplers`, or for a condition."""
    if request.sampler is not None and request.sampler not in samplers:
        raise DiffusionError.explained(
            f"the sampler is {request.sampler!r}", expected="one of " + ", ".join(map(repr, samplers)), fix="use one of these"
        )
    request_labels(request, None, torch.device("cpu"))


def unconditional_network(config: NetworkConfig) -> Network:
    """The untrained network of a model that takes neither labels nor text.

    Raises:
        DiffusionError: the configuration has a condition.
    """
    if config.num_classes is not None or getattr(config, "context_dim", None) is not None:
        raise DiffusionError.explained(
            "the network of an unconditional model was to take labels or text",
            expected="network.num_classes and network.context_dim unset",
            fix="leave them out or train objective=ddpm, which takes labels",
        )
    return build_network(config)
