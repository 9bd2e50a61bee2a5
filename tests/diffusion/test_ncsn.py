"""The noise-conditional score network: its objective, its configuration, and a small one trained on points."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, SampleRequest
from diffusion.models.ncsn import Ncsn, NcsnConfig
from diffusion.networks.mlp import MLPConfig
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.noise_levels import geometric_sigmas, langevin_step_size, num_levels_for
from diffusion.parameterisation import per_row
from diffusion.requests import run
from diffusion.samplers.annealed_langevin import annealed_langevin
from diffusion.seeding import normal, stream
from tests.oracles import GaussianMixture

pytestmark = pytest.mark.oracle

POINTS = NcsnConfig(network=MLPConfig(hidden=64, layers=2), sigma_max=4.0, sigma_min=0.05, num_levels=8, steps_per_level=30)
TINY = PixelUNetConfig(sample_size=8, block_out_channels=(8, 16), attention_levels=(False, True))
TARGET = GaussianMixture([0.7, 0.3], [[1.0, 0.5], [-1.0, -0.5]], [[[0.04, 0.0], [0.0, 0.04]]] * 2)


class Exact(torch.nn.Module):
    """In the network's place: what an ideal one would output, E[sqrt(1 + sigma^2) eps - sigma y | x] for the scaled y."""

    def __init__(self, config: NcsnConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, scaled: Tensor, t: Tensor) -> Tensor:
        config = self.config
        sigma = config.sigma_min * (config.sigma_max / config.sigma_min) ** (t.double() / 999)
        grow, level = (per_row(value, scaled.double()) for value in ((1 + sigma**2).sqrt(), sigma))
        x = grow * scaled.double()
        eps = (x - TARGET.x0_hat(x, torch.ones_like(sigma), sigma)) / level
        return (grow * eps - level * scaled).to(scaled)


def test_the_loss_is_the_closed_form_at_the_exact_score() -> None:
    """Mean over levels of 1/2 (1 - sigma^2 E||score||^2 / D)."""
    model = Ncsn(POINTS)
    model.network = Exact(POINTS)
    n = 20_000
    loss, _ = model.loss(Batch(TARGET.sample(n, stream(0))), stream(1))
    expected = []
    for sigma in model.sigmas.tolist():
        y = TARGET.sample(n, stream(2)) + sigma * normal((n, 2), stream(3), dtype=torch.float64)
        s = torch.full((n,), sigma, dtype=torch.float64)
        expected.append(0.5 - 0.25 * (sigma * model.score(y, s)).square().sum(1).mean())
    # The loss of one row has a standard deviation below 1.
    assert abs(float(loss) - float(torch.stack(expected).mean())) < 4 / n**0.5


def test_the_network_is_told_the_level_and_sees_unit_scale() -> None:
    """Times 999 ... 0 from sigma_max to sigma_min; without the network's word, x is taken for data of unit size."""
    seen: list[tuple[Tensor, Tensor]] = []

    class Network(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append((x, t))
            return torch.full_like(x, said)

    said = 0.0
    model = Ncsn(POINTS)
    model.network = Network()
    x, sigma = torch.full((3, 2), 2.0), torch.tensor([4.0, math.sqrt(4.0 * 0.05), 0.05])
    score = model.score(x, sigma)
    torch.testing.assert_close(seen[0][1], torch.tensor([999.0, 499.5, 0.0]), rtol=0, atol=1e-3)
    torch.testing.assert_close(seen[0][0][:, 0], 2 / (1 + sigma**2).sqrt())
    torch.testing.assert_close(score[:, 0], -2 / (1 + sigma**2))
    said = 1.0
    torch.testing.assert_close(model.score(x, sigma)[:, 0] - score[:, 0], -1 / (sigma * (1 + sigma**2).sqrt()))


def test_levels_are_drawn_evenly_and_each_row_has_its_own() -> None:
    model, sigmas = Ncsn(POINTS), []
    score = model.score
    model.score = lambda x, sigma: sigmas.append(sigma) or score(x, sigma)  # type: ignore[method-assign]
    model.loss(Batch(torch.zeros(4000, 2)), stream(0))
    values, counts = sigmas[0].unique(return_counts=True)
    torch.testing.assert_close(values.double().flip(0), model.sigmas, rtol=1e-6, atol=0)
    assert counts.min() > 400 and counts.max() < 600


def test_sampling_is_annealed_langevin_dynamics_with_the_model_score() -> None:
    model = Ncsn(POINTS)
    request = SampleRequest(seeds=(3, 9), num_steps=4, options={"steps_per_level": 2, "denoise": False})
    sigmas = geometric_sigmas(4.0, 0.05, 4)
    start = 4.0 * torch.cat([normal((1, 2), stream(seed, "start")) for seed in request.seeds])
    noise = [stream(seed, "noise") for seed in request.seeds]
    step_size = langevin_step_size(sigmas, 2)
    chain = annealed_langevin(start, sigmas=sigmas, steps_per_level=2, step_size=step_size, noise=noise, denoise=False)
    with torch.no_grad():
        expected = run(chain, lambda asked: model.score(asked.x, asked.sigma))
    torch.testing.assert_close(model.sample(request), expected, rtol=0, atol=0)


@pytest.mark.parametrize("network", [MLPConfig(), TINY], ids=["points", "pictures"])
def test_a_sample_does_not_depend_on_its_neighbours(network: Any) -> None:
    model = Ncsn(NcsnConfig(network=network, num_levels=4, steps_per_level=2))
    many = model.sample(SampleRequest(seeds=(5, 6, 7)))
    assert many.shape == (3, *network.shape) and many.dtype == torch.float32 and not many.requires_grad
    torch.testing.assert_close(many[1:2], model.sample(SampleRequest(seeds=(6,))), rtol=1e-4, atol=1e-4)


def test_configurations_fit_the_data() -> None:
    """Unstated numbers of levels come from 2006.09011's rule; points get the first paper's long levels."""
    assert Ncsn.default_config((3, 16, 16), 5).network.shape == (3, 16, 16)
    assert len(Ncsn(NcsnConfig(network=TINY)).sigmas) == num_levels_for(20.0, 0.01, 3 * 8 * 8)
    points = Ncsn.default_config((2,), None)
    assert (points.network.shape, points.sigma_max, points.steps_per_level) == ((2,), 5.0, 100)


def test_bad_requests_are_explained() -> None:
    model = Ncsn(POINTS)
    with pytest.raises(DiffusionError, match="the sampler is 'ddim'; expected one of 'annealed_langevin'"):
        model.sample(SampleRequest(seeds=(0,), sampler="ddim"))
    with pytest.raises(DiffusionError, match="no option 'eta'; expected one of 'steps_per_level', 'step_size', 'denoise'"):
        model.sample(SampleRequest(seeds=(0,), options={"eta": 1.0}))
    with pytest.raises(DiffusionError, match="the option 'step_size' is 'small'"):
        model.sample(SampleRequest(seeds=(0,), options={"step_size": "small"}))
    with pytest.raises(DiffusionError, match="num_levels is 1"):
        model.sample(SampleRequest(seeds=(0,), num_steps=1))
    with pytest.raises(DiffusionError, match=r"expected network.num_classes and network.context_dim unset"):
        Ncsn(NcsnConfig(network=MLPConfig(num_classes=3)))


def test_a_trained_network_draws_the_mixture() -> None:
    """Weights within 0.08, means within 0.1, deviations within 0.08 of the target."""
    model = Ncsn(POINTS)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.kaiming_uniform_(parameter, generator=stream(0, "init"))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(500):
        generator = stream(0, "train", step)
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / 500)
        loss, _ = model.loss(Batch(TARGET.sample(256, generator).float()), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = model.sample(SampleRequest(seeds=tuple(range(800)))).double()
    right = x[:, 0] > 0
    assert abs(float(right.double().mean()) - 0.7) < 0.08
    for component, side in enumerate((x[right], x[~right])):
        torch.testing.assert_close(side.mean(0), TARGET.means[component], rtol=0, atol=0.1)
        torch.testing.assert_close(side.std(0), torch.full((2,), 0.2, dtype=torch.float64), rtol=0, atol=0.08)
