"""Denoising and sliced score matching against the analytic score of Gaussian mixtures.

Tolerances are standard errors: an estimate over n rows may be off by 4 of its own.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, SampleRequest
from diffusion.models.denoising_score_matching import (
    DenoisingScoreMatching,
    DenoisingScoreMatchingConfig,
    denoising_score_matching,
)
from diffusion.models.sliced_score_matching import (
    SlicedScoreMatching,
    SlicedScoreMatchingConfig,
    rademacher,
    sliced_score_matching,
)
from diffusion.networks.mlp import MLPConfig
from diffusion.parameterisation import per_row
from diffusion.seeding import normal, stream
from tests.oracles import CORRELATED, FIVE_MODES, GaussianMixture

pytestmark = pytest.mark.oracle

SIGMA = 0.5
TARGETS = pytest.mark.parametrize("target", [CORRELATED, FIVE_MODES], ids=["gaussian", "five modes"])


def exact_score(target: GaussianMixture, x: Tensor, sigma: Tensor) -> Tensor:
    """Of target * N(0, sigma^2 I): (E[x0 | x] - x) / sigma^2."""
    return (target.x0_hat(x, torch.ones_like(sigma), sigma) - x) / per_row(sigma, x) ** 2


def blurred(target: GaussianMixture, count: int, sigma: float = SIGMA) -> tuple[Tensor, Any]:
    """Samples of target * N(0, sigma^2 I), and its score function: data whose own score is known."""
    x = target.sample(count, stream(0, "data")) + sigma * normal((count, 2), stream(0, "blur"), dtype=torch.float64)
    return x, lambda points: exact_score(target, points, torch.full((len(points),), sigma, dtype=torch.float64))


def within(values: Tensor, expected: float, errors: float = 4.0) -> bool:
    """The mean of (n,) values is `expected` within that many standard errors."""
    return abs(float(values.mean()) - expected) < errors * float(values.std()) / len(values) ** 0.5


def wave(x: Tensor) -> Tensor:
    """A smooth field (B, 2) that is nobody's score."""
    return torch.stack([torch.sin(2 * x[:, 1]), x[:, 0] * x[:, 1]], dim=1)


# -- denoising score matching ----------------------------------------------------------------------


@pytest.mark.parametrize("sigma_power", [0.0, 2.0])
@pytest.mark.parametrize(("variance", "sigma", "dim"), [(0.25, 0.5, 1), (1.0, 0.1, 3)])
def test_denoising_minimum_on_a_gaussian(variance: float, sigma: float, dim: int, sigma_power: float) -> None:
    """1/2 (D / sigma^2 - D / (c + sigma^2)), times lambda."""
    n = 100_000
    x = 0.7 + variance**0.5 * normal((n, dim), stream(1), dtype=torch.float64)
    losses = denoising_score_matching(
        lambda y, _: (0.7 - y) / (variance + sigma**2),
        x,
        noise=normal((n, dim), stream(2), dtype=torch.float64),
        sigma=torch.full((n,), sigma, dtype=torch.float64),
        sigma_power=sigma_power,
    )
    assert within(losses, 0.5 * sigma**sigma_power * (dim / sigma**2 - dim / (variance + sigma**2)))


@TARGETS
def test_denoising_minimum_is_at_the_exact_score_of_a_mixture(target: GaussianMixture) -> None:
    """There the loss is 1/2 (D / sigma^2 - E||score||^2); d h away from it, d^2/2 E||h||^2 more."""
    n = 40_000
    x = target.sample(n, stream(1))
    noise = normal((n, 2), stream(2), dtype=torch.float64)
    sigma = torch.full((n,), SIGMA, dtype=torch.float64)
    at = {
        d: denoising_score_matching(lambda y, s, d=d: exact_score(target, y, s) + d * wave(y), x, noise=noise, sigma=sigma)
        for d in (-0.5, 0.0, 0.5)
    }
    y = x + SIGMA * noise
    energy = exact_score(target, y, sigma).square().sum(1)
    assert within(at[0.0] - 0.5 * (2 / SIGMA**2 - energy), 0.0)
    for d in (-0.5, 0.5):
        raised = at[d] - at[0.0]
        assert within(raised - d**2 / 2 * wave(y).square().sum(1), 0.0)
        assert raised.mean() > 10 * raised.std() / n**0.5


def test_denoising_matches_the_hand_computed_loss_row_by_row() -> None:
    x, z = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    sigma = torch.tensor([0.1, 2.0])
    losses = denoising_score_matching(lambda y, s: -y * s[:, None], x, noise=z, sigma=sigma, sigma_power=2)
    # Row 1: y = (1.05, 1.9), s = (-.105, -.19), z / sigma = (5, -10). Row 2: y = (4, -1), s = (-8, 2), z / sigma = (1, 0).
    expected = [0.5 * 0.01 * (4.895**2 + 10.19**2), 0.5 * 4 * (49.0 + 4.0)]
    torch.testing.assert_close(losses, torch.tensor(expected))


# -- sliced score matching -------------------------------------------------------------------------


@TARGETS
@pytest.mark.parametrize("variance_reduced", [False, True], ids=["ssm", "ssm-vr"])
@pytest.mark.parametrize("directions", ["rademacher", "normal"])
def test_sliced_minimum_is_at_the_score_of_the_data(target: GaussianMixture, variance_reduced: bool, directions: str) -> None:
    """There the loss is -1/2 E||score||^2; d h away from it, d^2/2 E||h||^2 more."""
    n = 40_000
    x, score = blurred(target, n)
    v = rademacher((n, 2), stream(3)) if directions == "rademacher" else normal((n, 2), stream(3))
    options = {"directions": v.double(), "variance_reduced": variance_reduced}
    best = sliced_score_matching(score, x, **options).detach()
    assert within(best + 0.5 * score(x).square().sum(1), 0.0)
    for d in (-0.5, 0.5):
        raised = sliced_score_matching(lambda y, d=d: score(y) + d * wave(y), x, **options).detach() - best
        assert within(raised - d**2 / 2 * wave(x).square().sum(1), 0.0)


def test_sliced_minimum_on_a_gaussian() -> None:
    """-D / (2 c)."""
    x = 2 + 0.5**0.5 * normal((100_000, 3), stream(1), dtype=torch.float64)
    v = rademacher((100_000, 3), stream(2)).double()
    for variance_reduced in (False, True):
        losses = sliced_score_matching(lambda y: (2 - y) / 0.5, x, directions=v, variance_reduced=variance_reduced)
        assert within(losses.detach(), -3.0)


def exact_trace(score: Any, x: Tensor) -> Tensor:
    """tr(grad score) + 1/2 ||score||^2 (Hyvarinen 2005), one derivative for each dimension."""
    x = x.detach().requires_grad_()
    value = score(x)
    trace = sum(torch.autograd.grad(value[:, d].sum(), x, retain_graph=True)[0][:, d] for d in range(x.shape[1]))
    return trace + 0.5 * value.square().sum(1)


def test_sliced_agrees_in_expectation_with_the_exact_trace() -> None:
    """For a field that is no score at all. Over the four sign patterns the mean is exact, not only close."""
    x = normal((50, 2), stream(1), dtype=torch.float64)
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    for variance_reduced in (False, True):
        means = torch.stack(
            [sliced_score_matching(wave, x, directions=v.expand_as(x), variance_reduced=variance_reduced) for v in signs]
        ).mean(0)
        torch.testing.assert_close(means, exact_trace(wave, x), rtol=0, atol=1e-12)


def test_variance_reduction_reduces_variance() -> None:
    x, score = blurred(FIVE_MODES, 5000)
    v = rademacher((5000, 2), stream(3)).double()
    plain, reduced = (
        sliced_score_matching(score, x, directions=v, variance_reduced=variance_reduced) for variance_reduced in (False, True)
    )
    exact = exact_trace(score, x)
    assert (reduced - exact).std() < 0.8 * (plain - exact).std()


def test_sliced_gradient_reaches_the_parameters_and_not_the_data() -> None:
    """On N(0, 1) with score -w x: tr = -w, so that d loss / d w = -1 + w x^2 at every row."""
    w = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    x = normal((8, 1), stream(1), dtype=torch.float64).requires_grad_()
    sliced_score_matching(lambda y: -w * y, x, directions=torch.ones_like(x)).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(w.grad, (-1 + 1.5 * x.detach() ** 2).sum())


def test_rademacher_directions_are_signs_of_unit_covariance() -> None:
    v = rademacher((20_000, 3), stream(1))
    assert set(v.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(v.T @ v / len(v), torch.eye(3), rtol=0, atol=0.03)


# -- the models ------------------------------------------------------------------------------------

ONE = GaussianMixture.gaussian([0.4, -0.2], [[0.3, 0.1], [0.1, 0.2]])


def trained(model: Any, num_steps: int, rate: float = 1e-2) -> Any:
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.kaiming_uniform_(parameter, generator=stream(0, "init"))
    optimiser = torch.optim.Adam(model.parameters(), rate)
    for step in range(num_steps):
        generator = stream(0, "train", step)
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / num_steps)
        loss, _ = model.loss(Batch(ONE.sample(256, generator).float()), generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


SMALL = MLPConfig(hidden=32, layers=1)


@pytest.mark.parametrize(
    "model",
    [
        DenoisingScoreMatching(DenoisingScoreMatchingConfig(network=SMALL, sigma=0.3)),
        SlicedScoreMatching(SlicedScoreMatchingConfig(network=SMALL)),
        SlicedScoreMatching(SlicedScoreMatchingConfig(network=SMALL, variance_reduced=False)),
    ],
    ids=["denoising", "sliced", "sliced plain"],
)
def test_a_trained_network_has_the_analytic_score(model: Any) -> None:
    """Error against the exact score below 10 % of its size."""
    trained(model, 300)
    sigma = model.config.sigma if isinstance(model, DenoisingScoreMatching) else 0.0
    law = GaussianMixture.gaussian(ONE.means[0], ONE.covariances[0] + sigma**2 * torch.eye(2))
    x = law.sample(2000, stream(9))
    score = -(x - law.means[0]) @ torch.linalg.inv(law.covariances[0])
    with torch.no_grad():
        learnt = model.score(x.float(), torch.full((2000,), sigma))
    assert (learnt - score).square().mean().sqrt() < 0.1 * score.square().mean().sqrt()


def test_the_models_report_their_closed_form_minima() -> None:
    """At the exact score of N(0, c I), a number: 1/2 (1 - sigma^2 / (c + sigma^2)), and -1 / (2 c)."""
    n, c, sigma = 50_000, 0.5, 0.3
    batch = Batch(c**0.5 * normal((n, 2), stream(0)))

    class Linear(torch.nn.Module):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.slope = slope

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.slope * x

    denoising = DenoisingScoreMatching(DenoisingScoreMatchingConfig(network=SMALL, sigma=sigma))
    denoising.network = Linear(-sigma / (c + sigma**2))
    assert denoising.loss(batch, stream(1))[0].item() == pytest.approx(0.5 * (1 - sigma**2 / (c + sigma**2)), abs=0.01)
    sliced = SlicedScoreMatching(SlicedScoreMatchingConfig(network=SMALL))
    sliced.network = Linear(-1 / c)
    assert sliced.loss(batch, stream(1))[0].item() == pytest.approx(-1 / (2 * c), abs=0.03)


@pytest.mark.parametrize("model_class", [DenoisingScoreMatching, SlicedScoreMatching])
def test_sampling_is_langevin_dynamics_with_the_score(model_class: Any) -> None:
    model = model_class(model_class.Config())
    ours = model.sample(SampleRequest(seeds=(3,), num_steps=5, options={"step_size": 0.02, "start_scale": 2.0}))
    x, noise = 2 * normal((1, 2), stream(3, "start")), stream(3, "noise")
    with torch.no_grad():
        for _ in range(5):
            score = model.score(x, torch.full((1,), 0.1))
            x = x + 0.02 * score + 0.04**0.5 * normal((1, 2), noise)
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model_class", [DenoisingScoreMatching, SlicedScoreMatching])
def test_a_sample_does_not_depend_on_its_neighbours(model_class: Any) -> None:
    model = model_class(model_class.Config())
    many = model.sample(SampleRequest(seeds=(5, 6, 7), num_steps=4))
    alone = model.sample(SampleRequest(seeds=(6,), num_steps=4))
    torch.testing.assert_close(many[1:2], alone, rtol=0, atol=1e-6)
    assert many.shape == (3, 2) and many.dtype == torch.float32 and not many.requires_grad


def test_bad_requests_are_explained() -> None:
    model = SlicedScoreMatching(SlicedScoreMatchingConfig())
    with pytest.raises(DiffusionError, match="the sampler is 'ddim'; expected one of 'langevin'"):
        model.sample(SampleRequest(seeds=(0,), sampler="ddim"))
    with pytest.raises(DiffusionError, match="trained without"):
        model.sample(SampleRequest(seeds=(0,), labels=(1,)))
    with pytest.raises(DiffusionError, match="no option 'eta'; expected one of 'step_size', 'start_scale'"):
        model.sample(SampleRequest(seeds=(0,), options={"eta": 1.0}))
    with pytest.raises(DiffusionError, match=r"0 steps of size 0\.001; expected at least one"):
        model.sample(SampleRequest(seeds=(0,), num_steps=0))
    with pytest.raises(DiffusionError, match="sigma is 0; expected above 0"):
        DenoisingScoreMatchingConfig(sigma=0)
