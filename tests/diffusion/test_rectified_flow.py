"""The rectified flow model: its loss, its levels and its samples where all three are known exactly."""

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, SampleRequest
from diffusion.models.noisy_classifier import NoisyClassifier
from diffusion.models.rectified_flow import RectifiedFlow, RectifiedFlowConfig
from diffusion.networks.mlp import MLPConfig
from diffusion.seeding import normal_rows, stream
from tests.diffusion.exact_gaussian import quadrature
from tests.oracles import gaussian_flow

pytestmark = pytest.mark.oracle

MEAN, VARIANCE = 0.7, 0.25
ONE_DIM = MLPConfig(in_dim=1, hidden=4, out_dim=1)


class ExactVelocity(nn.Module):
    """u = (x - E[x0 | x]) / s on N(MEAN, VARIANCE), from timesteps 1000 s."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.told: list[float] = []

    def forward(self, x: Tensor, t: Tensor, *, labels: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        self.told += t.tolist()
        s = (t.double() / 1000)[:, None]
        k = (1 - s) * VARIANCE / ((1 - s) ** 2 * VARIANCE + s * s)
        x0 = MEAN + k * (x - (1 - s) * MEAN)
        return ((x - x0) / s + self.shift).to(x)


def exact(**config: object) -> RectifiedFlow:
    model = RectifiedFlow(RectifiedFlowConfig(network=ONE_DIM, **config))  # type: ignore[arg-type]
    model.network = ExactVelocity()  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("t", [1.0, 250.5, 500.0, 999.0, 1000.0])
def test_the_loss_has_its_closed_form_minimum_at_the_exact_network(t: float) -> None:
    """(x0, eps) -> (x_s, u) has determinant 1, so Var[u | x_s] = c / ((1-s)^2 c + s^2); d^2 more if wrong by d."""
    model, s = exact(), t / 1000
    x0, eps, weights = quadrature(MEAN, VARIANCE)
    for shift in (0.0, 0.3):
        model.network.shift.data.fill_(shift)
        levels = torch.full((len(x0),), t, dtype=torch.float64)
        found = float((weights * model.squared_error(x0, eps, levels).detach()).sum())
        assert found == pytest.approx(VARIANCE / ((1 - s) ** 2 * VARIANCE + s * s) + shift**2, abs=1e-11)


@pytest.mark.parametrize(("levels", "mean"), [("uniform", 0.0), ("logit_normal", 0.0), ("logit_normal", 0.5)])
def test_levels_of_training_have_their_law(levels: str, mean: float) -> None:
    model = exact(levels=levels, logit_mean=mean)
    drawn = model.timesteps(4000, stream(0, "levels")).numpy() / 1000
    law = stats.uniform().cdf if levels == "uniform" else lambda s: stats.norm(mean).cdf(torch.logit(torch.as_tensor(s)))
    assert stats.kstest(drawn, law).pvalue > 0.01


def test_samples_are_the_exact_flow_of_their_noise() -> None:
    seeds = tuple(range(6))
    x = normal_rows((1,), [stream(seed, "start") for seed in seeds]).double()
    mean, variance = (torch.tensor([value], dtype=torch.float64) for value in (MEAN, VARIANCE))
    expected = gaussian_flow(mean, variance, x, (0.0, 1.0), (1.0, 0.0))
    for config, steps, tolerance in (({}, 100, 1e-4), ({"shift": 3.0}, 100, 1.5e-3)):
        found = exact(**config).sample(SampleRequest(seeds, num_steps=steps))
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    euler = exact().sample(SampleRequest(seeds, sampler="euler", num_steps=200))
    torch.testing.assert_close(euler.double(), expected, rtol=0, atol=4e-3)


def test_the_network_is_told_the_shifted_levels() -> None:
    model = exact(shift=3.0)
    model.sample(SampleRequest((0,), sampler="euler", num_steps=4))
    assert model.network.told == pytest.approx([1000, 900, 750, 500])


def test_a_sample_is_drawn_again_from_its_own_noise() -> None:
    """DDIM's inversion goes along the flow, too; without correction its error is of first order."""
    picture = torch.tensor([0.9])
    for steps, tolerance in ((25, 0.06), (100, 0.015)):
        request = SampleRequest((0,), sampler="ddim", num_steps=steps, options={"invert": picture, "num_corrections": 2})
        assert float(exact().sample(request)) == pytest.approx(0.9, abs=tolerance)


def test_training_approaches_the_minimum() -> None:
    """On a point mass, where the least loss is 0 away from s = 0: the velocity is a line in x_s."""
    model = RectifiedFlow(RectifiedFlowConfig(network=MLPConfig(in_dim=1, hidden=32, out_dim=1, num_classes=2)))
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = Batch(torch.full((128, 1), 1.0), labels=torch.zeros(128, dtype=torch.long))
    losses = []
    for step in range(100):
        loss, _ = model.loss(batch, stream(0, step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.1 * sum(losses[:10])
    drawn = model.sample(SampleRequest(tuple(range(8)), labels=(0,) * 8, guidance_scale=1.0))
    torch.testing.assert_close(drawn, torch.ones(8, 1), rtol=0, atol=0.25)


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(ValueError, match="levels is 'cosine'; give one of uniform, logit_normal"):
        RectifiedFlowConfig(levels="cosine")  # type: ignore[arg-type]
    with pytest.raises(DiffusionError, match=r"sampler 'pndm' was given a rectified flow; .*use 'euler'"):
        exact().sample(SampleRequest((0,), sampler="pndm"))
    with pytest.raises(DiffusionError, match=r"options\.classifier is 'a'; expected a noisy_classifier"):
        exact().sample(SampleRequest((0,), options={"classifier": "a"}))


def test_a_classifier_of_another_process_is_refused() -> None:
    classifier = NoisyClassifier(NoisyClassifier.default_config((1,), 2))
    with pytest.raises(DiffusionError, match="trained on a table of noise levels and the model is a rectified flow"):
        exact().sample(SampleRequest((0,), labels=(1,), options={"classifier": classifier}))
