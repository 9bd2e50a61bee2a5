"""DDPM and improved DDPM on a Gaussian, where loss, bound, variance and every step of the chain have closed forms."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, SampleRequest
from diffusion.models.ddpm import DDPM, DDPMConfig
from diffusion.models.improved_ddpm import ImprovedDDPM, ImprovedDDPMConfig
from diffusion.models.sampling import dropped_labels
from diffusion.networks.mlp import MLPConfig
from diffusion.parameterisation import Prediction, per_row
from diffusion.requests import Guidance, run
from diffusion.samplers import ddpm
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal_rows, step_noise, stream
from diffusion.training.importance import HISTORY, LossSecondMoment
from diffusion.variational_bound import normal_nll, pixel_nll, posterior, prior_term, variational_bound
from tests.diffusion.exact_gaussian import ExactNoise, best_shares, quadrature
from tests.oracles import condition

pytestmark = pytest.mark.oracle

MEAN, VARIANCE = 0.7, 0.25
ONE_DIM = MLPConfig(in_dim=1, hidden=4, out_dim=1)
LINEAR = DDPMConfig().schedule


def exact_ddpm(mean: float = MEAN, variance: float = VARIANCE) -> DDPM:
    model = DDPM(DDPMConfig(network=ONE_DIM))
    model.network = ExactNoise(model.schedule, mean, variance)
    return model


def exact_improved(kept: list[int] | None = None, **config: Any) -> ImprovedDDPM:
    """With the best variances for a chain over the timesteps `kept`, all of them by default."""
    model = ImprovedDDPM(ImprovedDDPMConfig(network=ONE_DIM, **config))
    kept = model.every_timestep.tolist() if kept is None else kept
    model.network = ExactNoise(
        model.schedule,
        MEAN,
        VARIANCE,
        shares=best_shares(model.schedule, kept, VARIANCE),
        time_scale=1000 / model.schedule.num_train_timesteps,
    )
    return model


# -- the simple loss -------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 1, 200, 500, 998, 999])
def test_the_simple_loss_has_its_closed_form_minimum_at_the_exact_network(t: int) -> None:
    """E || eps - eps* ||^2 = a^2 c / (a^2 c + s^2), and d^2 more for a network that is wrong by d."""
    model = exact_ddpm()
    x0, eps, weights = quadrature(MEAN, VARIANCE)
    step = torch.full((len(x0),), t)
    abar = float(LINEAR.alphas_cumprod[t])
    least = abar * VARIANCE / (abar * VARIANCE + 1 - abar)
    for shift in (0.0, 0.3):
        model.network.shift.data.fill_(shift)
        found = float((weights * model.squared_error(x0, eps, step).detach()).sum())
        assert found == pytest.approx(least + shift**2, abs=1e-12)


class ExactV(nn.Module):
    """In the place of a network that predicts v: eps* = s x_t + a v, solved for v; a variance's share is left as it is."""

    def __init__(self, schedule: NoiseSchedule, noise: nn.Module, time_scale: float) -> None:
        super().__init__()
        self.schedule, self.noise, self.time_scale = schedule, noise, time_scale

    def forward(self, x_t: Tensor, t: Tensor, **condition: Any) -> Tensor:
        eps, *share = self.noise(x_t, t, **condition).split(x_t.shape[1], dim=1)
        step = (t / self.time_scale).round().long()
        alpha, sigma = (per_row(scale(step), x_t) for scale in (self.schedule.alpha, self.schedule.sigma))
        return torch.cat([(eps - sigma * x_t) / alpha, *share], dim=1)


@pytest.mark.parametrize("exact", [exact_ddpm, exact_improved])
def test_a_network_that_predicts_v_has_the_same_law_and_a_loss_of_v(exact: Any) -> None:
    """v - v* = (eps - eps*) / a, so that the losses differ by a^2; the samples do not."""
    model = exact()
    told = type(model)(replace(model.config, prediction_type="v_prediction"))
    told.network = ExactV(told.schedule, model.network, 1000 / told.schedule.num_train_timesteps)
    request = SampleRequest(seeds=(0, 1, 2), num_steps=20)
    torch.testing.assert_close(told.sample(request), model.sample(request), rtol=0, atol=2e-4)
    x0, eps, weights = quadrature(MEAN, VARIANCE)
    step = torch.full((len(x0),), 400)

    def loss(of: Any) -> float:
        improved = isinstance(of, ImprovedDDPM)
        rows = of.terms(x0, eps, step, stop_at_mean=True)[0] if improved else of.squared_error(x0, eps, step)
        return float((weights * rows.detach()).sum())

    assert loss(told) == pytest.approx(loss(model) / float(told.schedule.alphas_cumprod[400]), abs=1e-9)


@pytest.mark.parametrize("cls", [DDPM, ImprovedDDPM])
def test_the_loss_of_a_perfect_network_is_zero_where_nothing_is_unknown(cls: Any) -> None:
    """One point as data: then eps can be read off x_t, at each of the timesteps that were drawn."""
    model = cls(cls.Config(network=ONE_DIM))
    shares = dict.fromkeys(range(1000), 0.0) if cls is ImprovedDDPM else None
    model.network = ExactNoise(model.schedule, MEAN, 0.0, shares=shares)
    x = torch.full((512, 1), MEAN, dtype=torch.float64)
    value, figures = model.loss(Batch(x), stream(0))
    assert float(figures.get("simple", value.item())) < 1e-12
    drawn = model.network.seen[-1]
    assert min(drawn) < 20 and max(drawn) > 980 and abs(sum(drawn) / len(drawn) - 499.5) < 4 * 288.7 / 512**0.5
    again, _ = model.loss(Batch(x), stream(0))
    assert torch.equal(value, again), "all randomness comes from the generator"


# -- every step of the chain -----------------------------------------------------------------------


def chain(variance: str, num_steps: int, shares: dict[int, float] | None = None) -> tuple[list[tuple[float, float]], Tensor]:
    """Mean and variance of x_t at each level, and of the result, when x_T has the forward process's law.

    The chain is affine in its start and in each step's noise, so that unit noises read off every coefficient.
    """
    timesteps = LINEAR.timesteps(num_steps, spacing="trailing")
    rows = num_steps + 2
    units = torch.eye(rows, dtype=torch.float64)
    units[-1] = 0
    first = float(LINEAR.alphas_cumprod[timesteps[0]])
    x_T = first**0.5 * MEAN + (first * VARIANCE + 1 - first) ** 0.5 * units[:, num_steps].reshape(rows, 1)
    network = ExactNoise(LINEAR, MEAN, VARIANCE, shares=shares)
    moments = []

    def measure(x: Tensor) -> None:
        flat = x.flatten()
        moments.append((float(flat[-1]), float((flat[:-1] - flat[-1]).square().sum())))

    def answer(request: Any) -> Prediction:
        measure(request.x_t)
        output = network(request.x_t, request.t).detach()
        found = Prediction.from_output(output[:, :1], request.x_t, LINEAR.alpha(request.t), LINEAR.sigma(request.t))
        share = None if shares is None else (output[:, 1:] + 1) / 2
        return Prediction(found.eps, found.x0, found.alpha, found.sigma, share)

    sampling = ddpm(
        x_T,
        schedule=LINEAR,
        timesteps=timesteps,
        condition=condition(rows),
        guidance=Guidance(scale=1.0),
        noise=lambda step: units[:, step].reshape(rows, 1),
        variance=variance,  # type: ignore[arg-type]
    )
    measure(run(sampling, answer))
    return moments, timesteps


@pytest.mark.parametrize("num_steps", [5, 40])
def test_with_the_best_variance_every_step_has_the_forward_process_law(num_steps: int) -> None:
    """So a chain of any length samples a Gaussian exactly, until the last step, which adds no noise."""
    shares = best_shares(LINEAR, LINEAR.timesteps(num_steps, spacing="trailing").tolist(), VARIANCE)
    moments, timesteps = chain("learned", num_steps, shares)
    abars = LINEAR.alphas_cumprod[timesteps].tolist()
    for abar, (mean, variance) in zip(abars, moments, strict=False):
        assert mean == pytest.approx(abar**0.5 * MEAN, abs=1e-12)
        assert variance == pytest.approx(abar * VARIANCE + 1 - abar, abs=1e-12)
    # What is missing in the end is the last step's own variance, Var[x0 | x_t].
    left_out = VARIANCE * (1 - abars[-1]) / (abars[-1] * VARIANCE + 1 - abars[-1])
    assert moments[-1][0] == pytest.approx(MEAN, abs=1e-12)
    assert moments[-1][1] + left_out == pytest.approx(VARIANCE, abs=1e-12)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_fixed_variances_are_off_by_what_they_leave_out_at_each_step(variance: str) -> None:
    """Against sigma*^2 = btilde + g^2 Var[x0 | x_t], step by step."""
    moments, timesteps = chain(variance, 40)
    abars = [*LINEAR.alphas_cumprod[timesteps].tolist(), 1.0]
    off = 0.0
    for (here, there), (_, found) in zip(pairwise(abars), moments, strict=False):
        assert found - (here * VARIANCE + 1 - here) == pytest.approx(off, abs=1e-12)
        beta = 1 - here / there
        g, h = there**0.5 * beta / (1 - here), (here / there) ** 0.5 * (1 - there) / (1 - here)
        known = VARIANCE * here**0.5 / (here * VARIANCE + 1 - here)
        small = beta * (1 - there) / (1 - here)
        best = small + g**2 * VARIANCE * (1 - here) / (here * VARIANCE + 1 - here)
        off = (g * known + h) ** 2 * off + (small if variance == "fixed_small" else beta) - best
    assert off != 0


def test_the_learned_variance_equals_diffusers(monkeypatch: pytest.MonkeyPatch) -> None:
    timesteps = LINEAR.timesteps(20)
    streams = [stream(0, row) for row in range(6)]
    x = normal_rows((3, 4, 4), streams, dtype=torch.float64)
    noise = step_noise([(1, row) for row in range(6)], (3, 4, 4))
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh()).double().requires_grad_(False)

    def predict(request: Any) -> Prediction:
        eps, share = network(request.x_t).chunk(2, dim=1)
        found = Prediction.from_output(eps, request.x_t, LINEAR.alpha(request.t), LINEAR.sigma(request.t))
        return Prediction(found.eps, found.x0, found.alpha, found.sigma, (share + 1) / 2)

    arguments: dict[str, Any] = {"schedule": LINEAR, "timesteps": timesteps, "condition": condition(6)}
    ours = run(ddpm(x, **arguments, guidance=Guidance(scale=1.0), noise=noise, variance="learned"), predict)

    scheduler = diffusers.DDPMScheduler(beta_schedule="linear", variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(20)
    drawn = iter(range(20))
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda shape, **_: noise(next(drawn)).double())
    theirs = x
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(theirs), t, theirs).prev_sample
    # Its tables are float32.
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


def test_a_learned_variance_needs_a_network_that_has_one() -> None:
    with pytest.raises(DiffusionError, match="variance is 'learned' and the network predicts none"):
        chain("learned", 5)


# -- the learned variance and the bound ------------------------------------------------------------


def test_the_best_share_is_the_recorded_one() -> None:
    """Exactly 1 for N(m, I), .266 for variance .25 at t = 499 of 1000, .323 at 400 of ten steps."""
    every = list(range(999, -1, -1))
    assert best_shares(LINEAR, every, 0.25)[499] == pytest.approx(0.266, abs=6e-4)
    assert best_shares(LINEAR, LINEAR.timesteps(10).tolist(), 0.25)[400] == pytest.approx(0.323, abs=6e-4)
    assert best_shares(LINEAR, every, 1.0)[499] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("t", [0, 1, 100, 499])
def test_training_v_on_the_bound_reaches_the_analytic_variance(t: int) -> None:
    model = exact_improved()
    best = model.network.shares[t]
    x0, eps, weights = quadrature(MEAN, VARIANCE)
    step, share = torch.full((len(x0),), t), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    class Trained(nn.Module):
        def forward(self, x: Tensor, time: Tensor, *, labels: None = None) -> Tensor:
            return torch.cat([exact(x, time)[:, :1].detach(), (2 * share - 1).expand_as(x)], dim=1)

    exact, model.network = model.network, Trained()
    optimizer = torch.optim.LBFGS([share], lr=1, max_iter=200, tolerance_grad=1e-13, tolerance_change=1e-15)

    def closure() -> Tensor:
        optimizer.zero_grad()
        bound = (weights * model.terms(x0, eps, step, stop_at_mean=True)[1]).sum() * 1000
        bound.backward()
        return bound

    for _ in range(5):
        optimizer.step(closure)
    assert share.item() == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("num_steps", [None, 10])
def test_the_bound_with_the_best_variance_is_the_entropy_and_the_prior_gap(num_steps: int | None) -> None:
    """In bits per dimension: [H(x0) + KL(q(x_T) || N(0, 1))] / log 2, for the whole chain and for ten strides."""
    model = ImprovedDDPM(ImprovedDDPMConfig(network=ONE_DIM))
    timesteps = model.schedule.timesteps(num_steps or 1000)
    model = exact_improved(timesteps.tolist())
    x0, eps, weights = quadrature(MEAN, VARIANCE)
    bound = model.bits_per_dim(x0, lambda step: eps, num_steps=num_steps)
    assert bound.steps.shape == (num_steps or 1000, len(x0))
    assert float((weights * bound.total).sum()) == pytest.approx(exact_bound(model.schedule, timesteps) / math.log(2), abs=1e-9)


def exact_bound(schedule: NoiseSchedule, timesteps: Tensor) -> float:
    """H(x0) + KL(q(x_T) || N(0, 1)) in nats."""
    abar = float(schedule.alphas_cumprod[timesteps[0]])
    spread = abar * VARIANCE + 1 - abar
    gap = 0.5 * (spread + abar * MEAN**2 - 1 - math.log(spread))
    return 0.5 * math.log(2 * math.pi * math.e * VARIANCE) + gap


@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_posterior_is_bayes_rule(step: int) -> None:
    """Precisions add up: of x' given x0, N(a' x0, s'^2), and of x_t given x', N(r x', beta)."""
    timesteps = torch.tensor([900, 400, 150, 20])
    here, there = LINEAR.abar(timesteps[step]), LINEAR.abar(timesteps[step + 1])
    ratio = (here / there).sqrt()
    beta = 1 - ratio**2
    precision = 1 / (1 - there) + ratio**2 / beta
    x0, x_t = torch.tensor([[0.3]], dtype=torch.float64), torch.tensor([[-1.1]], dtype=torch.float64)
    q = posterior(LINEAR, timesteps, torch.tensor([step]))
    expected = (there.sqrt() * x0 / (1 - there) + ratio * x_t / beta) / precision
    torch.testing.assert_close(q.mean(x0, x_t), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(q.small, (1 / precision).reshape(1), rtol=1e-12, atol=0)


def test_the_prior_term_of_a_chain_that_begins_in_the_middle() -> None:
    """KL(N(a x0, s^2) || N(0, 1)) = (s^2 + a^2 x0^2 - 1 - log s^2) / 2."""
    x0 = torch.tensor([[0.3], [-1.0]], dtype=torch.float64)
    abar = LINEAR.abar(torch.tensor(300))
    expected = 0.5 * ((1 - abar) + abar * x0.square() - 1 - (1 - abar).log()).squeeze(1) / math.log(2)
    torch.testing.assert_close(prior_term(LINEAR, torch.tensor([300, 100]), x0), expected, rtol=1e-9, atol=0)


def test_the_bounds_of_the_fixed_variances_are_the_recorded_ones() -> None:
    """.72579135 nats, .456 more with the small variance and 1.1e-3 more with the large one.

    The small one's L_0, for which the posterior has no variance, was recorded with the best; ours borrows the neighbour's.
    """
    timesteps = LINEAR.timesteps(1000)
    assert exact_bound(LINEAR, timesteps) == pytest.approx(0.72579135, abs=2e-5)
    x0, eps, weights = quadrature(MEAN, VARIANCE)
    network = ExactNoise(LINEAR, MEAN, VARIANCE)

    def predict(x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction.from_output(network(x_t, t).detach(), x_t, LINEAR.alpha(t), LINEAR.sigma(t))

    abar = LINEAR.alphas_cumprod[:2].tolist()
    best = VARIANCE * (1 - abar[0]) / (abar[0] * VARIANCE + 1 - abar[0])
    ratio = best / ((1 - abar[1] / abar[0]) * (1 - abar[0]) / (1 - abar[1]))
    borrowed = 0.5 * (ratio - 1 - math.log(ratio))
    for variance, more in (("fixed_small", 0.456 + borrowed), ("fixed_large", 1.1e-3)):
        bound = variational_bound(
            predict, x0, lambda step: eps, schedule=LINEAR, timesteps=timesteps, pixels=False, variance=variance
        )
        nats = float((weights * bound.total).sum()) * math.log(2)
        assert nats - exact_bound(LINEAR, timesteps) == pytest.approx(more, abs=6e-4)
    with pytest.raises(DiffusionError, match="variance is 'learned'; expected 'fixed_small', 'fixed_large', or"):
        variational_bound(predict, x0, lambda step: eps, schedule=LINEAR, timesteps=timesteps, pixels=False, variance="learned")


def test_the_hybrid_loss_stops_the_bound_at_the_mean() -> None:
    model = exact_improved()
    x0, eps, _ = quadrature(MEAN, VARIANCE)
    step = torch.full((len(x0),), 300)
    _, stopped = model.terms(x0, eps, step, stop_at_mean=True)
    stopped.sum().backward()
    assert float(model.network.shift.grad) == 0
    _, open_ = model.terms(x0, eps, step, stop_at_mean=False)
    open_.sum().backward()
    assert float(model.network.shift.grad.abs()) > 0


@pytest.mark.parametrize("loss", ["hybrid", "vlb"])
def test_the_loss_is_made_of_its_terms(loss: str) -> None:
    """L_simple + lambda T L_t, or T L_t, over what the generator draws."""
    model = exact_improved(loss=loss)
    x = MEAN + VARIANCE**0.5 * normal_rows((1,), [stream(3, row) for row in range(256)], dtype=torch.float64)
    value, figures = model.loss(Batch(x), stream(1))
    expected = figures["bits_per_dim"] if loss == "vlb" else figures["simple"] + 0.001 * figures["bits_per_dim"]
    assert value.item() == pytest.approx(expected, abs=1e-12)
    drawn = torch.tensor(model.network.seen[-1]).round().long()
    generator = stream(1)
    t = torch.randint(1000, (256,), generator=generator)
    assert torch.equal(drawn, t)
    eps = torch.empty(256, 1).normal_(generator=generator).double()
    simple, vlb = model.terms(x, eps, t, stop_at_mean=True)
    assert figures["simple"] == pytest.approx(simple.mean().item(), abs=1e-12)
    assert figures["bits_per_dim"] == pytest.approx(1000 * vlb.mean().item(), abs=1e-9)


def test_the_network_sees_times_up_to_1000() -> None:
    model = exact_improved(num_train_timesteps=50)
    model.loss(Batch(torch.zeros(400, 1, dtype=torch.float64)), stream(0))
    assert set(model.network.seen[-1]) == {20.0 * t for t in range(50)}


# -- the decoder's likelihood ----------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "deviation"), [(0.1, 0.05), (-1.0, 0.3), (0.999, 0.002), (1.4, 0.5)])
def test_the_masses_of_all_pixel_values_add_up_to_one(mean: float, deviation: float) -> None:
    x = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    nll = pixel_nll(x, torch.full_like(x, mean), torch.full_like(x, 2 * math.log(deviation)))
    # Far out a mass is cut to 1e-12, as in the paper's code.
    assert float((-nll).exp().sum()) == pytest.approx(1.0, abs=3e-10)


@pytest.mark.parametrize("deviation", [0.8, 1.0, 1.3])
def test_a_pixel_mass_is_the_density_times_its_width(deviation: float) -> None:
    x = torch.tensor([-0.5, 0.0, 0.5], dtype=torch.float64).mul(127.5).round() / 127.5
    mean, log_variance = torch.zeros_like(x), torch.full_like(x, 2 * math.log(deviation))
    # The middle rule is off by width^2 / 24 of the second derivative, which goes with the inverse of the variance.
    expected = normal_nll(x, mean, log_variance) - math.log(2 / 255)
    torch.testing.assert_close(pixel_nll(x, mean, log_variance), expected, rtol=0, atol=3e-6 / deviation**2)


# -- importance ------------------------------------------------------------------------------------


def test_importance_is_uniform_until_all_timesteps_were_seen_and_then_by_the_second_moment() -> None:
    sampler = LossSecondMoment(4)
    size = torch.tensor([1.0, 2.0, 3.0, 4.0])
    t = torch.arange(4).repeat(HISTORY)
    sampler.record(t[:-1], 100 * size[t[:-1]])
    assert sampler.probabilities().tolist() == [0.25] * 4
    sampler.record(t[-1:], 100 * size[t[-1:]])
    # Ten newer losses push all the older ones out; the sign does not matter.
    sampler.record(t, size[t] * (-1) ** torch.arange(len(t)))
    p = sampler.probabilities()
    torch.testing.assert_close(p, 0.999 * size.double() / 10 + 0.001 / 4, rtol=1e-6, atol=0)
    drawn, weights = sampler.draw(20_000, stream(0))
    torch.testing.assert_close(weights, 1 / (4 * p[drawn]), rtol=0, atol=0)
    counts = torch.bincount(drawn, minlength=4) / 20_000
    assert float(((counts - p).abs() / (p * (1 - p) / 20_000).sqrt()).max()) < 4
    # Unbiased: sum_t p_t L_t / (T p_t) is the mean loss.
    assert float((weights * size.double()[drawn]).mean()) == pytest.approx(2.5, rel=0.02)
    # All of the last ten count: a timestep whose losses were 0 but for one 10 is as likely as one of sqrt(10) each time.
    one = torch.zeros(HISTORY)
    one[3] = 10.0
    sampler.record(torch.zeros(HISTORY, dtype=torch.long), one)
    sampler.record(torch.ones(HISTORY, dtype=torch.long), torch.full((HISTORY,), 10**0.5))
    p = sampler.probabilities()
    assert float(p[0]) == pytest.approx(float(p[1]), rel=1e-6)
    copy = LossSecondMoment(4)
    copy.load_state_dict(sampler.state_dict())
    assert torch.equal(copy.probabilities(), p)


def test_the_importance_sampler_learns_from_the_loss() -> None:
    model = exact_improved(num_train_timesteps=20, loss="vlb", timesteps="importance")
    for step in range(12):
        model.loss(Batch(torch.full((256, 1), MEAN, dtype=torch.float64)), stream(step))
    p = model.importance.probabilities()
    assert float(p.std()) > 0 and float(p.sum()) == pytest.approx(1)
    generator = stream(99)
    t, weights = model.importance.draw(64, stream(99))
    value, figures = model.loss(Batch(torch.full((64, 1), MEAN, dtype=torch.float64)), generator)
    assert value.item() == pytest.approx(figures["bits_per_dim"], rel=1e-12)
    assert (torch.tensor(model.network.seen[-1]) / 50).round().long().tolist() == t.tolist()
    assert math.isfinite(value.item()) and float((1 / weights - 20 * p[t]).abs().max()) < 1e-12


def test_unknown_objectives_are_named() -> None:
    with pytest.raises(DiffusionError, match="loss is 'both' and timesteps 'uniform'; expected 'hybrid' or 'vlb'"):
        ImprovedDDPMConfig(loss="both")  # type: ignore[arg-type]


# -- drawing with a model --------------------------------------------------------------------------


def test_a_model_samples_as_the_sampler_does_by_hand() -> None:
    """Paper's defaults: all timesteps, the large variance; each seed's own streams."""
    model = exact_ddpm()
    seeds = (3, 11)
    x = normal_rows((1,), [stream(seed, "start") for seed in seeds])
    noise = step_noise([(seed, "noise") for seed in seeds], (1,))
    for t in reversed(range(1000)):
        abar = float(LINEAR.alphas_cumprod[t])
        beta = 1 - abar / (float(LINEAR.alphas_cumprod[t - 1]) if t else 1.0)
        eps = (1 - abar) ** 0.5 * (x - abar**0.5 * MEAN) / (abar * VARIANCE + 1 - abar)
        # Algorithm 2 in its own form.
        x = (x - beta / (1 - abar) ** 0.5 * eps) / (1 - beta) ** 0.5
        if t:
            x = x + beta**0.5 * noise(999 - t)
    drawn = model.sample(SampleRequest(seeds))
    torch.testing.assert_close(drawn, x, rtol=0, atol=2e-5)
    torch.testing.assert_close(drawn[1:], model.sample(SampleRequest((11,))), rtol=0, atol=1e-6)
    assert not drawn.requires_grad and drawn.dtype == torch.float32


@pytest.mark.parametrize("exact", [exact_ddpm, exact_improved])
def test_a_picture_is_inverted_to_its_noise_and_drawn_again(exact: Any) -> None:
    """At the noise it is where the exact flow of a Gaussian carries it to, (x0 - m) sqrt((a_T^2 c + s_T^2) / c) + a_T m."""
    model, x0 = exact(), torch.tensor([[0.1], [0.7], [2.0]])
    started: list[Tensor] = []
    network = model.network.forward
    model.network.forward = lambda x, t, **kwargs: (started.append(x), network(x, t, **kwargs))[1]
    again = model.sample(SampleRequest((0, 1, 2), sampler="ddim", num_steps=50, options={"invert": x0, "num_corrections": 8}))
    # The cosine schedule leaves a signal of 5e-5, of which float32 keeps three digits.
    torch.testing.assert_close(again, x0, rtol=0, atol=1e-3)
    assert len(started) == 50 * 9 + 50
    first = model.schedule.timesteps(50)[0]
    alpha, sigma = float(model.schedule.alpha(first)), float(model.schedule.sigma(first))
    flow = alpha * MEAN + (x0 - MEAN) * ((alpha**2 * VARIANCE + sigma**2) / VARIANCE) ** 0.5
    torch.testing.assert_close(started[-50], flow, rtol=0.1, atol=0.05)
    for options, message in (
        ({"sampler": "heun", "options": {"invert": x0}}, "options.invert is given and the sampler is 'heun'; expected 'ddim'"),
        ({"sampler": "ddim", "options": {"invert": x0[:2]}}, "options.invert has 2 pictures for 3 samples"),
        ({"sampler": "ddim", "options": {"invert": torch.zeros(3, 2)}}, "options.invert is .3, 2.; expected a picture .1,."),
    ):
        with pytest.raises(DiffusionError, match=message):
            model.sample(SampleRequest((0, 1, 2), num_steps=5, **options))


def test_improved_ddpm_strides_with_its_learned_variance() -> None:
    timesteps = ImprovedDDPMConfig().schedule.timesteps(25)
    model = exact_improved(timesteps.tolist())
    seeds = (4, 5, 6)

    def by_hand(variance: str) -> Tensor:
        sampling = ddpm(
            normal_rows((1,), [stream(seed, "start") for seed in seeds]),
            schedule=model.schedule,
            timesteps=timesteps,
            condition=condition(3),
            guidance=Guidance(scale=1.0),
            noise=step_noise([(seed, "noise") for seed in seeds], (1,)),
            variance=variance,  # type: ignore[arg-type]
        )
        with torch.no_grad():
            return run(sampling, lambda request: model.predict(request.x_t, request.t))

    assert torch.equal(model.sample(SampleRequest(seeds, num_steps=25)), by_hand("learned"))
    small = model.sample(SampleRequest(seeds, num_steps=25, options={"variance": "fixed_small"}))
    assert torch.equal(small, by_hand("fixed_small")) and not torch.equal(small, by_hand("learned"))


class TwoClasses(nn.Module):
    """Classes at +1 and -1, and N(0, 1) where there is no label (label 2, or none)."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        laws = ((1.0, 0.1), (-1.0, 0.1), (0.0, 1.0))
        self.exact = nn.ModuleList(ExactNoise(schedule, mean, variance) for mean, variance in laws)

    def forward(self, x: Tensor, t: Tensor, *, labels: Tensor | None = None) -> Tensor:
        outputs = torch.stack([network(x, t) for network in self.exact])
        rows = torch.full((len(x),), 2) if labels is None else labels
        return outputs[rows, torch.arange(len(x))]


def test_labels_and_guidance_reach_the_network() -> None:
    model = DDPM(DDPMConfig(network=MLPConfig(in_dim=1, hidden=4, out_dim=1, num_classes=2)))
    model.network = TwoClasses(model.schedule)

    def drawn(scale: float, labels: tuple[int, ...] | None = (0, 1)) -> Tensor:
        settings: dict[str, Any] = {"sampler": "ddim", "num_steps": 20, "labels": labels, "guidance_scale": scale}
        return model.sample(SampleRequest((5, 6), **settings)).flatten()

    assert drawn(1.0)[0] > 0.5 and drawn(1.0)[1] < -0.5
    torch.testing.assert_close(drawn(0.0), drawn(1.0, None), rtol=0, atol=1e-6)
    assert drawn(3.0)[0] > drawn(1.0)[0] and drawn(3.0)[1] < drawn(1.0)[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": (2,)}, r"labels are \(2,\); expected 0 to 1"),
        ({"prompts": ("a car",)}, "was given prompts; expected labels or nothing"),
        ({"guidance_scale": 2.0}, "guidance scale is 2 without labels"),
        ({"sampler": "dim"}, "no sampler 'dim'; expected one of 'ddpm', 'ddim'"),
        ({"num_steps": 1001}, "num_steps is 1001; expected 1 to 1000"),
        ({"options": {"et": 1}}, "no option 'et'; expected one of 'spacing', 'clip_x0'"),
        ({"options": {"clip_x0": 1}}, "option 'clip_x0' is 1; expected a value like its default, False"),
        ({"sampler": "ddim", "options": {"eta": "much"}}, "option 'eta' is 'much'"),
        ({"sampler": "ddim", "num_steps": 2, "options": {"eta": 1.5}}, "eta is 1.5; expected 0 to 1"),
        ({"num_steps": 2, "options": {"spacing": "wide"}}, "timestep_spacing is 'wide'"),
    ],
)
def test_refusals_of_a_model(settings: dict[str, Any], message: str) -> None:
    model = DDPM(DDPMConfig(network=MLPConfig(in_dim=1, hidden=4, out_dim=1, num_classes=2)))
    with pytest.raises(DiffusionError, match=message):
        model.sample(SampleRequest((0,), **settings))


def test_labels_for_a_model_without() -> None:
    with pytest.raises(DiffusionError, match="given to a model that was trained without"):
        exact_ddpm().sample(SampleRequest((0,), labels=(1,)))
    with pytest.raises(DiffusionError, match="has 3 classes and the data no labels"):
        dropped_labels(None, 3, 0.1, stream(0))


def test_a_tenth_of_the_labels_is_left_out() -> None:
    labels = torch.arange(20_000) % 5
    dropped = dropped_labels(labels, 5, 0.1, stream(0))
    assert dropped is not None
    assert abs(float((dropped == 5).double().mean()) - 0.1) < 4 * (0.09 / 20_000) ** 0.5
    assert torch.equal(dropped[dropped != 5], labels[dropped != 5])


def test_clipping_keeps_x0_in_range() -> None:
    model = exact_ddpm(mean=3.0, variance=0.01)
    free = model.sample(SampleRequest((0, 1), sampler="ddim", num_steps=10))
    clipped = model.sample(SampleRequest((0, 1), sampler="ddim", num_steps=10, options={"clip_x0": True}))
    assert float((free - 3).abs().max()) < 0.5
    torch.testing.assert_close(clipped, torch.ones(2, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [{"seeds": ()}, {"seeds": (1, 2), "labels": (0,)}, {"seeds": (1,), "prompts": ("a", "b")}])
def test_requests_that_do_not_add_up(bad: dict[str, Any]) -> None:
    with pytest.raises(DiffusionError, match=r"no seeds|1 labels for 2 seeds|2 prompts for 1 seeds"):
        SampleRequest(**bad)
