"""Classifier guidance against a mixture whose classifier is known exactly: grad log p(x_t | y) is the answer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion.classifier_guidance import class_log_prob, eps_guided, gradient_of, mean_guided
from diffusion.errors import DiffusionError
from diffusion.parameterisation import Prediction
from diffusion.requests import Condition, DenoiseRequest, Guidance, run
from diffusion.samplers import SAMPLERS, ddpm
from diffusion.samplers.chain import levels, transitions
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, step_noise, stream
from tests.oracles import FIVE_MODES, GaussianMixture, Oracle

SCHEDULE = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, steps_offset=0, set_alpha_to_one=True)
CLASSES = torch.tensor([0, 0, 1, 1, 0])
"""The class of each of the five modes."""


def of_class(label: int) -> GaussianMixture:
    """p(x | y): the modes of that class alone."""
    own = label == CLASSES
    weights = FIVE_MODES.weights[own]
    return GaussianMixture(weights / weights.sum(), FIVE_MODES.means[own], FIVE_MODES.covariances[own])


def exact_logits(x_t: Tensor, t: Tensor) -> Tensor:
    """log p(y, x_t) of each class, (B, 2): the logits of the perfect noise-aware classifier. Differentiable."""
    a, s = SCHEDULE.alpha(t)[:, None, None], SCHEDULE.sigma(t)[:, None, None]
    along = torch.einsum("bkd,kde->bke", x_t.flatten(1)[:, None] - a * FIVE_MODES.means, FIVE_MODES.basis)
    variance = a**2 * FIVE_MODES.eigenvalues + s**2
    joint = FIVE_MODES.weights.log() - 0.5 * (along**2 / variance + variance.log()).sum(-1)
    return torch.stack([joint[:, label == CLASSES].logsumexp(dim=1) for label in (0, 1)], dim=1)


def exact_gradient(labels: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return gradient_of(class_log_prob(exact_logits, labels))


def chain(name: str, rows: int, *, num_steps: int = 20, **options: Any) -> dict[str, Any]:
    """A sampler's arguments, with the start noise and the streams of rows 0 ... rows - 1."""
    streams = step_noise([(0, row) for row in range(rows)], (2, 1, 1))
    noise = lambda step: streams(step).double()  # noqa: E731
    return {
        "x_T": normal((rows, 2, 1, 1), stream(0, "start"), dtype=torch.float64),
        "schedule": SCHEDULE,
        "timesteps": SCHEDULE.timesteps(num_steps),
        "condition": Condition(torch.ones(rows, 1, 1)),
        "guidance": Guidance(scale=1),
        "noise": noise,
        **options,
    }


def test_the_exact_classifier_at_scale_one_gives_the_conditional_score() -> None:
    """Bayes: eps_guided turns the unconditional answer into the conditional one, at every noise level."""
    t = torch.tensor([1, 50, 200, 400, 700, 999])
    x = normal((6, 2, 1, 1), stream(3), dtype=torch.float64)

    def ask_once() -> Any:
        return (yield DenoiseRequest(x, t, Condition(torch.ones(6, 1, 1)), Guidance(scale=1)))

    for label in (0, 1):
        guided = eps_guided(ask_once(), exact_gradient(torch.full((6,), label)), scale=1, schedule=SCHEDULE)
        answer = run(guided, Oracle(SCHEDULE, FIVE_MODES))
        exact = run(ask_once(), Oracle(SCHEDULE, of_class(label)))
        torch.testing.assert_close(answer.score, exact.score, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(SCHEDULE.add_noise(answer.x0, answer.eps, t), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_follows_the_conditional_path(name: str) -> None:
    """Pointwise: guided sampling of p(x) by an exact classifier is unguided sampling of p(x | y)."""
    labels = torch.zeros(8, dtype=torch.long)
    guided = eps_guided(SAMPLERS[name](**chain(name, 8)), exact_gradient(labels), scale=1, schedule=SCHEDULE)
    ours = run(guided, Oracle(SCHEDULE, FIVE_MODES))
    exact = run(SAMPLERS[name](**chain(name, 8)), Oracle(SCHEDULE, of_class(0)))
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-7)


def test_other_scales_are_classifier_free_guidance_of_the_two_scores() -> None:
    """eps_u + s (eps_c - eps_u): the two guidances are one where the classifier is the one that Bayes implies."""
    x, t = normal((6, 2, 1, 1), stream(4), dtype=torch.float64), torch.tensor([1, 50, 200, 400, 700, 999])

    def ask_once() -> Any:
        return (yield DenoiseRequest(x, t, Condition(torch.ones(6, 1, 1)), Guidance(scale=1)))

    uncond, cond = (run(ask_once(), Oracle(SCHEDULE, law)).eps for law in (FIVE_MODES, of_class(1)))
    for scale in (0.0, 0.5, 3.0, 10.0):
        guided = eps_guided(ask_once(), exact_gradient(torch.ones(6, dtype=torch.long)), scale=scale, schedule=SCHEDULE)
        eps = run(guided, Oracle(SCHEDULE, FIVE_MODES)).eps
        torch.testing.assert_close(eps, uncond + scale * (cond - uncond), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_the_mean_moves_by_the_scaled_variance_times_the_gradient(variance: Any) -> None:
    """Eq. 10, step by step: with a constant gradient the sum of s Sigma_t grad, carried down by each step's h and g."""
    slope, scale, num_steps = torch.tensor([0.7, -0.3], dtype=torch.float64)[:, None, None], 2.5, 7
    point = GaussianMixture.gaussian([0.0, 0.0], torch.zeros(2, 2))
    arguments = chain("ddpm", 1, num_steps=num_steps, variance=variance)
    plain = run(ddpm(**arguments), Oracle(SCHEDULE, point))
    guided = mean_guided(
        ddpm(**arguments),
        lambda x_t, t: slope.expand_as(x_t),
        scale=scale,
        schedule=SCHEDULE,
        timesteps=arguments["timesteps"],
        variance=variance,
    )
    # For a point mass at 0, x0 is 0 everywhere: a step multiplies what came before by h = sqrt(al) s'^2 / s^2.
    moved = 0.0
    for _, here, there in transitions(levels(SCHEDULE, arguments["timesteps"])):
        kept = (here.alpha / there.alpha) ** 2
        sigma_squared = (1 - kept) * (1 if variance == "fixed_large" else there.sigma**2 / here.sigma**2)
        moved = kept**0.5 * there.sigma**2 / here.sigma**2 * moved + scale * sigma_squared
    torch.testing.assert_close(run(guided, Oracle(SCHEDULE, point)) - plain, moved * slope[None], rtol=1e-9, atol=1e-9)


def test_a_learned_variance_moves_the_mean_by_itself() -> None:
    """2102.09672 eq. 15: share 0 is the small variance, 1 the large one, in each row and pixel."""
    slope, share = torch.ones(1, 2, 1, 1, dtype=torch.float64), torch.tensor([0.0, 1.0]).double().reshape(1, 2, 1, 1)
    point = Oracle(SCHEDULE, GaussianMixture.gaussian([0.0, 0.0], torch.zeros(2, 2)))
    arguments = chain("ddpm", 1, num_steps=7) | {"noise": lambda step: torch.zeros(1, 2, 1, 1, dtype=torch.float64)}
    arguments["x_T"] = torch.zeros(1, 2, 1, 1, dtype=torch.float64)
    moved = {}
    for variance in ("fixed_small", "fixed_large", "learned"):
        guided = mean_guided(
            ddpm(**arguments, variance=variance),
            lambda x_t, t: slope,
            scale=1,
            schedule=SCHEDULE,
            timesteps=arguments["timesteps"],
            variance=variance,
        )
        request = next(guided)
        answer = replace(point(request), variance_share=share)
        moved[variance] = guided.send(answer).x_t.flatten()
    torch.testing.assert_close(moved["learned"], torch.stack([moved["fixed_small"][0], moved["fixed_large"][1]]))
    assert moved["fixed_large"][0] > 1.004 * moved["fixed_small"][0] > 0


def sliced_w1(a: Tensor, b: Tensor) -> float:
    """Mean 1-D Wasserstein distance over 60 directions."""
    angles = torch.arange(60, dtype=torch.float64) * (torch.pi / 60)
    directions = torch.stack([angles.cos(), angles.sin()])
    return float(((a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values).abs().mean())


@pytest.mark.parametrize(("form", "most"), [("mean", 0.03), ("eps", 0.03)])
def test_sampling_reaches_the_conditional_distribution(form: str, most: float) -> None:
    rows, num_steps, label = 3000, 200, 1
    arguments = chain("ddpm", rows, num_steps=num_steps)
    arguments["noise"] = lambda step: normal((rows, 2, 1, 1), stream(9, step), dtype=torch.float64)
    gradient = exact_gradient(torch.full((rows,), label))
    if form == "eps":
        guided = eps_guided(ddpm(**arguments), gradient, scale=1, schedule=SCHEDULE)
    else:
        guided = mean_guided(ddpm(**arguments), gradient, scale=1, schedule=SCHEDULE, timesteps=arguments["timesteps"])
    drawn = run(guided, Oracle(SCHEDULE, FIVE_MODES)).flatten(1)
    truth = of_class(label).sample(rows, stream(5))
    # Between two exact sets of this size about .02; of the whole mixture .6.
    assert sliced_w1(drawn, truth) < most + 0.02
    share = float((drawn[:, 0] > 0.1).double().mean())
    assert abs(share - 0.5) < 4 * (0.25 / rows) ** 0.5


def test_a_row_is_guided_by_its_own_label_alone() -> None:
    x, t = normal((4, 2, 1, 1), stream(6), dtype=torch.float64), torch.tensor([10, 300, 500, 900])
    labels = torch.tensor([0, 1, 1, 0])
    together = exact_gradient(labels)(x, t)
    for row in range(4):
        one = slice(row, row + 1)
        torch.testing.assert_close(exact_gradient(labels[one])(x[one], t[one]), together[one], rtol=1e-12, atol=1e-12)


def test_the_gradient_is_the_finite_difference_and_works_without_grad_mode() -> None:
    x, t, labels = normal((3, 2, 1, 1), stream(7), dtype=torch.float64), torch.tensor([10, 300, 900]), torch.tensor([0, 1, 0])
    log_prob = class_log_prob(exact_logits, labels)
    with torch.no_grad():
        ours = gradient_of(log_prob)(x, t)
    assert not ours.requires_grad
    step = 1e-6
    for axis in (0, 1):
        nudge = torch.zeros_like(x)
        nudge[:, axis] = step
        slope = (log_prob(x + nudge, t) - log_prob(x - nudge, t)) / (2 * step)
        torch.testing.assert_close(ours[:, axis, 0, 0], slope, rtol=1e-5, atol=1e-7)


def test_mean_guidance_refuses_another_list_of_timesteps() -> None:
    arguments = chain("ddpm", 1, num_steps=10)
    guided = mean_guided(ddpm(**arguments), lambda x_t, t: x_t, scale=1, schedule=SCHEDULE, timesteps=SCHEDULE.timesteps(7))
    with pytest.raises(DiffusionError, match=r"asked at timestep 900; expected one of the timesteps"):
        run(guided, lambda request: Prediction(request.x_t, request.x_t, torch.ones(1), torch.ones(1)))
