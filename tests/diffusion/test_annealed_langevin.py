"""Langevin dynamics against closed forms, and the rules that choose its noise levels against 2006.09011's numbers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.noise_levels import geometric_sigmas, langevin_step_size, largest_distance, num_levels_for
from diffusion.parameterisation import per_row
from diffusion.requests import run
from diffusion.samplers.annealed_langevin import ScoreRequest, annealed_langevin, langevin
from diffusion.seeding import normal, step_noise, stream
from tests.oracles import GaussianMixture

pytestmark = pytest.mark.oracle

NCSN = geometric_sigmas(1.0, 0.01, 10)


class ExactScore:
    """Answers with the score of target * N(0, sigma^2 I), and keeps what it was asked."""

    def __init__(self, target: GaussianMixture) -> None:
        self.target = target
        self.asked: list[ScoreRequest] = []

    def __call__(self, request: ScoreRequest) -> Tensor:
        self.asked.append(request)
        x, sigma = request.x, request.sigma
        return (self.target.x0_hat(x, torch.ones_like(sigma), sigma).to(x) - x) / per_row(sigma, x) ** 2


def step_by_step(z: list[Tensor]) -> Any:
    return lambda index: z[index]


# -- pointwise -------------------------------------------------------------------------------------


def test_every_update_is_the_papers_formula() -> None:
    """x + a_i s + sqrt(2 a_i) z with a_i = epsilon (sigma_i / sigma_L)^2, then x + sigma_L^2 s."""
    sigmas, epsilon, steps = [3.0, 1.0, 0.5], 0.05, 4
    z = [normal((6, 2), stream(0, step), dtype=torch.float64) for step in range(12)]
    oracle = ExactScore(GaussianMixture([0.5, 0.5], [[2.0, 0.0], [-2.0, 1.0]], [torch.eye(2).tolist()] * 2))
    start = normal((6, 2), stream(1), dtype=torch.float64)
    end = run(annealed_langevin(start, sigmas=sigmas, steps_per_level=steps, step_size=epsilon, noise=step_by_step(z)), oracle)

    assert [float(asked.sigma[0]) for asked in oracle.asked] == [3.0] * 4 + [1.0] * 4 + [0.5] * 5
    assert all(asked.sigma.shape == (6,) for asked in oracle.asked)
    torch.testing.assert_close(oracle.asked[0].x, start, rtol=0, atol=0)
    for index in range(12):
        x, sigma = oracle.asked[index].x, sigmas[index // steps]
        a = epsilon * sigma**2 / 0.5**2
        expected = x + a * oracle(oracle.asked[index]) + (2 * a) ** 0.5 * z[index]
        torch.testing.assert_close(oracle.asked[index + 1].x, expected, rtol=0, atol=1e-13)
    last = oracle.asked[12]
    torch.testing.assert_close(end, last.x + 0.5**2 * oracle(last), rtol=0, atol=1e-13)
    # The denoising step is Tweedie's formula: the posterior mean.
    torch.testing.assert_close(end, oracle.target.x0_hat(last.x, torch.ones(6), last.sigma), rtol=0, atol=1e-13)


def test_without_the_denoising_step_the_last_update_is_the_result() -> None:
    oracle = ExactScore(GaussianMixture.gaussian([0.7], [[0.25]]))
    noise = step_noise([(0,), (1,)], (1,))
    options: Any = {"sigmas": [1.0, 0.1], "steps_per_level": 3, "step_size": 1e-3, "noise": noise}
    start = torch.zeros(2, 1, dtype=torch.float64)
    raw = run(annealed_langevin(start, denoise=False, **options), oracle)
    assert len(oracle.asked) == 6
    clean = run(annealed_langevin(start, **options), oracle)
    expected = oracle.target.x0_hat(raw, torch.ones(2), torch.full((2,), 0.1, dtype=torch.float64))
    torch.testing.assert_close(clean, expected, rtol=0, atol=1e-13)


def ald_moments(mean: float, variance: float, *, start: tuple[float, float], sigmas: Tensor, steps: int, epsilon: float) -> Any:
    """Mean and variance after annealed Langevin dynamics on N(mean, variance), without the denoising step.

    Each step is x' = (1 - a / (c + sigma^2)) x + a m / (c + sigma^2) + sqrt(2 a) z.
    """
    m, v = start
    for sigma in sigmas.tolist():
        a = epsilon * (sigma / float(sigmas[-1])) ** 2
        kept = 1 - a / (variance + sigma**2)
        for _ in range(steps):
            m, v = kept * m + (1 - kept) * mean, kept**2 * v + 2 * a
    return m, v


def test_moments_on_a_gaussian_with_the_published_settings() -> None:
    """1907.05600's own: ten levels from 1 to 0.01, 100 steps each, epsilon 2e-5, from U[0, 1]."""
    mean, variance = ald_moments(0.7, 0.25, start=(0.5, 1 / 12), sigmas=NCSN, steps=100, epsilon=2e-5)
    assert (round(mean, 5), round(variance, 5)) == (0.7, 0.25791)
    n = 20_000
    start = torch.empty(n, 1, dtype=torch.float64).uniform_(generator=stream(0))
    generator = stream(1)
    oracle = ExactScore(GaussianMixture.gaussian([0.7], [[0.25]]))
    chain = annealed_langevin(
        start,
        sigmas=NCSN,
        steps_per_level=100,
        step_size=2e-5,
        noise=lambda _: normal((n, 1), generator, dtype=torch.float64),
        denoise=False,
    )
    x = run(chain, oracle)
    # Four standard errors of a Gaussian's mean and variance.
    assert abs(float(x.mean()) - mean) < 4 * (variance / n) ** 0.5
    assert abs(float(x.var()) - variance) < 4 * variance * (2 / n) ** 0.5


def test_langevin_has_the_stationary_variance_of_its_step() -> None:
    """c / (1 - a / (2 c)): of one chain's law, advanced exactly; and the noise index runs on."""
    _, variance = ald_moments(0.0, 0.5, start=(3.0, 9.0), sigmas=torch.tensor([1e-9]), steps=500, epsilon=0.1)
    assert variance == pytest.approx(0.5 / (1 - 0.1 / (2 * 0.5)), abs=1e-9)
    seen: list[int] = []

    def noise(index: int) -> Tensor:
        seen.append(index)
        return torch.zeros(1, 1)

    x = run(langevin(torch.ones(1, 1), sigma=0.0, num_steps=2, step_size=0.1, noise=noise, first_index=7), lambda r: -r.x)
    assert seen == [7, 8]
    torch.testing.assert_close(x, torch.full((1, 1), 0.81))


# -- the target ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_modes() -> tuple[GaussianMixture, Tensor]:
    """A far and unequal pair of modes, and 8000 samples of it by annealed Langevin dynamics."""
    target = GaussianMixture([0.8, 0.2], [[1.5, 1.5], [-1.5, -1.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]]])
    sigmas = geometric_sigmas(6.0, 0.1, 40)
    n, generator = 8000, stream(1)
    chain = annealed_langevin(
        6.0 * normal((n, 2), stream(0)),
        sigmas=sigmas,
        steps_per_level=20,
        step_size=langevin_step_size(sigmas, 20),
        noise=lambda _: normal((n, 2), generator),
    )
    return target, run(chain, ExactScore(target))


def test_annealing_gives_every_mode_its_weight(two_modes: tuple[GaussianMixture, Tensor]) -> None:
    """Within 3 % of the mass (standard error 0.5 %, the rest is annealing in finite time); plain Langevin never gets there."""
    target, x = two_modes
    assert abs(float((x.sum(1) > 0).double().mean()) - 0.8) < 0.03
    start = 6.0 * normal((500, 2), stream(0))
    generator = stream(2)
    chain = langevin(start, sigma=0.1, num_steps=300, step_size=0.01, noise=lambda _: normal((500, 2), generator))
    stuck = run(chain, ExactScore(target))
    assert float((stuck.sum(1) > 0).double().mean()) < 0.65


def test_annealing_gives_every_mode_its_mean_and_covariance(two_modes: tuple[GaussianMixture, Tensor]) -> None:
    """Means within 0.03, covariances within 0.05 (standard errors 0.016 and 0.014 for the small mode, and the finite step)."""
    target, x = two_modes
    for component, side in enumerate((x[x.sum(1) > 0], x[x.sum(1) < 0])):
        torch.testing.assert_close(side.double().mean(0), target.means[component], rtol=0, atol=0.03)
        torch.testing.assert_close(side.double().T.cov(), target.covariances[component], rtol=0, atol=0.05)


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("streams", ["by step", "a row"])
def test_a_row_does_not_know_its_neighbours(streams: str) -> None:
    def sample(seeds: list[int]) -> Tensor:
        noise: Any = step_noise([(seed,) for seed in seeds], (2,)) if streams == "by step" else [stream(s) for s in seeds]
        start = torch.stack([normal((2,), stream(seed, "start")) for seed in seeds])
        chain = annealed_langevin(start, sigmas=[2.0, 0.5], steps_per_level=3, step_size=0.01, noise=noise)
        return run(chain, ExactScore(GaussianMixture.gaussian([0.0, 1.0], [[1.0, 0.0], [0.0, 1.0]])))

    torch.testing.assert_close(sample([4, 5, 6])[1:2], sample([5]), rtol=0, atol=1e-6)


# -- levels ----------------------------------------------------------------------------------------


def test_levels_are_geometric() -> None:
    assert len(NCSN) == 10 and float(NCSN[0]) == 1.0 and float(NCSN[-1]) == pytest.approx(0.01, abs=1e-15)
    ratios = NCSN[:-1] / NCSN[1:]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 100 ** (1 / 9)))


@pytest.mark.parametrize(
    ("sigma_max", "num_levels", "dim", "published"),
    [(50.0, 232, 3 * 32 * 32, 6.2e-6), (90.0, 500, 3 * 64 * 64, 3.3e-6)],
    ids=["CIFAR-10", "CelebA 64"],
)
def test_levels_and_step_are_those_that_the_paper_chose(sigma_max: float, num_levels: int, dim: int, published: float) -> None:
    """2006.09011 table 3: the step to its two digits; its numbers of levels lie at 5 % more than the rule's."""
    assert langevin_step_size(geometric_sigmas(sigma_max, 0.01, num_levels), 5) == pytest.approx(published, rel=0.02)
    assert 0.9 * num_levels < num_levels_for(sigma_max, 0.01, dim) <= num_levels


def test_neighbouring_levels_overlap_by_half() -> None:
    """Drawn: of ||sigma_i z|| in many dimensions, half lie within three deviations of sigma_(i+1)'s shell."""
    dim = 3072
    gamma = (50 / 0.01) ** (1 / (num_levels_for(50.0, 0.01, dim) - 1))
    r = gamma * normal((4000, dim), stream(0)).norm(dim=1)
    inside = (r - dim**0.5).abs() < 3 / 2**0.5
    # The rule takes three deviations of the wider shell, too, and rounds the number of levels up.
    assert abs(float(inside.double().mean()) - 0.5) < 0.05


def test_in_few_dimensions_the_ratio_is_the_first_papers() -> None:
    assert num_levels_for(1.0, 0.01, 1) == 10


def test_the_first_level_is_the_largest_distance() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    assert largest_distance(points) == pytest.approx(5.0)
    assert largest_distance(points.reshape(3, 1, 2, 1)) == pytest.approx(5.0)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigmas": [0.1, 1.0]}, r"noise levels are \[0.1, 1.0\]; expected a strictly decreasing list of positive"),
        ({"sigmas": [1.0, 0.0]}, "strictly decreasing list of positive numbers"),
        ({"step_size": -1.0}, "steps of size -100; expected at least one step of a positive size"),
        ({"steps_per_level": 0}, "to take 0 steps"),
        ({"noise": None}, "this sampler adds noise and was given none"),
    ],
)
def test_bad_arguments_are_explained(change: dict[str, Any], message: str) -> None:
    arguments: Any = {"sigmas": [1.0, 0.1], "steps_per_level": 1, "step_size": 0.01, "noise": [stream(0)]} | change
    with pytest.raises(DiffusionError, match=message):
        run(annealed_langevin(torch.zeros(1, 2), **arguments), lambda request: request.x)


def test_bad_levels_are_explained() -> None:
    with pytest.raises(DiffusionError, match=r"run from 0.01 to 1; expected 0 < sigma_min < sigma_max"):
        geometric_sigmas(0.01, 1.0, 10)
    with pytest.raises(DiffusionError, match="num_levels is 1; expected at least 2"):
        geometric_sigmas(1.0, 0.01, 1)
