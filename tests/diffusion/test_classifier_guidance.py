"""Classifier guidance against a mixture whose classifier is known exactly: grad log p(x_t | y) is the answer."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.classifier_guidance import class_log_prob, eps_guided, gradient_of, mean_guided
from diffusion.errors import DiffusionError
from diffusion.models.base import Batch, SampleRequest
from diffusion.models.ddpm import DDPM, DDPMConfig
from diffusion.models.noisy_classifier import NoisyClassifier, NoisyClassifierConfig
from diffusion.networks.mlp import MLPConfig
from diffusion.networks.noisy_encoder import NoisyEncoderConfig
from diffusion.parameterisation import Prediction
from diffusion.requests import Condition, DenoiseRequest, Guidance, run
from diffusion.samplers import SAMPLERS, ddpm
from diffusion.samplers.chain import levels, transitions
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, normal_rows, step_noise, stream
from tests.oracles import FIVE_MODES, GaussianMixture, Oracle

pytestmark = pytest.mark.oracle

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


# -- the trained classifier, and a model that it guides ------------------------------------------------------------------


class Exact(nn.Module):
    """A network whose answer is a function's; the parameter says where it is."""

    def __init__(self, answer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.place = nn.Parameter(torch.zeros(()))

    def forward(self, x_t: Tensor, t: Tensor, *, labels: Tensor | None = None) -> Tensor:
        return self.answer(x_t, t)


def exact_ddpm(law: GaussianMixture) -> DDPM:
    """A DDPM on points that was trained perfectly on this law, without labels."""
    model = DDPM(DDPMConfig(network=MLPConfig()))
    oracle = Oracle(SCHEDULE, law)
    model.network = Exact(lambda x_t, t: oracle.network(x_t, t, torch.ones(len(x_t), 1, 1)))  # type: ignore[assignment]
    return model


def exact_classifier() -> NoisyClassifier:
    classifier = NoisyClassifier(NoisyClassifierConfig(network=MLPConfig(), num_classes=2))
    classifier.network = Exact(lambda x_t, t: exact_logits(x_t.double(), t).float())  # type: ignore[assignment]
    return classifier


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler"])
def test_an_unconditional_model_draws_the_label_by_the_classifier(sampler: str) -> None:
    labels = (0, 1, 1, 0, 1)
    request = SampleRequest(tuple(range(5)), sampler=sampler, num_steps=50, options={"spacing": "trailing"})
    options = {"spacing": "trailing", "classifier": exact_classifier()}
    guided = exact_ddpm(FIVE_MODES).sample(replace(request, labels=labels, options=options))
    for row, label in enumerate(labels):
        alone = replace(request, seeds=(row,))
        torch.testing.assert_close(guided[row : row + 1], exact_ddpm(of_class(label)).sample(alone), rtol=0, atol=2e-3)


def test_ancestral_sampling_is_guided_in_its_mean() -> None:
    """`ddpm` takes algorithm 1: the same as mean_guided around the sampler by hand, and every point in its class."""
    labels, num_steps = (0, 1) * 20, 100
    request = SampleRequest(tuple(range(40)), num_steps=num_steps, labels=labels, options={"classifier": exact_classifier()})
    drawn = exact_ddpm(FIVE_MODES).sample(request)
    arguments = chain("ddpm", 40, num_steps=num_steps, variance="fixed_large")
    arguments["x_T"] = normal_rows((2,), [stream(seed, "start") for seed in range(40)])
    arguments["noise"] = step_noise([(seed, "noise") for seed in range(40)], (2,))
    by_hand = mean_guided(
        ddpm(**arguments),
        gradient_of(class_log_prob(lambda x_t, t: exact_logits(x_t.double(), t).float(), torch.tensor(labels))),
        scale=1,
        schedule=SCHEDULE,
        timesteps=arguments["timesteps"],
        variance="fixed_large",
    )
    torch.testing.assert_close(drawn, run(by_hand, Oracle(SCHEDULE, FIVE_MODES)), rtol=0, atol=1e-3)
    nearest = (drawn[:, None].double() - FIVE_MODES.means).norm(dim=-1).argmin(dim=1)
    assert CLASSES[nearest].tolist() == list(labels)


def test_a_trained_classifier_says_the_exact_posterior() -> None:
    """Two points at +1 and -1 in the plane: p(y | x_t) = sigmoid(2 a x_t . m / s^2)."""
    torch.manual_seed(0)
    classifier = NoisyClassifier(NoisyClassifierConfig(network=MLPConfig(hidden=48, layers=2), num_classes=2))
    places = torch.tensor([[-0.6, -0.8], [0.6, 0.8]])
    optimizer = torch.optim.Adam(classifier.parameters(), lr=4e-3)
    for step in range(400):
        labels = torch.randint(2, (256,), generator=stream(0, "labels", step))
        loss, figures = classifier.loss(Batch(places[labels], labels), stream(0, "noise", step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    # Noise hides the point at the end of the schedule, and not at its beginning.
    assert figures["accuracy_high"] < 0.7 < 0.9 < figures["accuracy_low"]
    labels = torch.randint(2, (2000,), generator=stream(1, "labels"))
    t = torch.randint(1000, (2000,), generator=stream(1, "t"))
    x_t = SCHEDULE.add_noise(places[labels], normal((2000, 2), stream(1, "noise")), t)
    exact = torch.sigmoid(2 * SCHEDULE.alpha(t) / SCHEDULE.sigma(t) ** 2 * (x_t.double() @ places[1].double()))
    with torch.no_grad():
        ours = classifier(x_t, t).softmax(dim=1)[:, 1]
    assert (ours - exact).abs().mean() < 0.03


def test_the_picture_classifier_is_told_the_time_and_learns() -> None:
    torch.manual_seed(0)
    encoder = NoisyEncoderConfig(sample_size=8, block_out_channels=(16, 32))
    classifier = NoisyClassifier(NoisyClassifierConfig(network=encoder, num_classes=3))
    x = normal((6, 3, 8, 8), stream(0))
    early, late = (classifier(x, torch.full((6,), t)) for t in (5, 900))
    assert early.shape == (6, 3) and (early - late).abs().max() > 1e-4
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        loss, _ = classifier.loss(Batch(x.repeat(4, 1, 1, 1), labels.repeat(4)), stream(0, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_says_what_a_classifier_needs() -> None:
    model, classifier = exact_ddpm(FIVE_MODES), exact_classifier()

    def sample(**request: Any) -> None:
        model.sample(SampleRequest((0, 1), num_steps=2, **request))

    with pytest.raises(DiffusionError, match=r"a classifier and no labels"):
        sample(options={"classifier": classifier})
    with pytest.raises(DiffusionError, match=r"the labels run from 0 to 2; expected 0 to 1"):
        sample(labels=(0, 2), options={"classifier": classifier})
    with pytest.raises(DiffusionError, match=r"options.classifier is a DDPM; expected a noisy_classifier"):
        sample(labels=(0, 1), options={"classifier": model})
    with pytest.raises(DiffusionError, match=r"trained without; expected no labels; .* or give options.classifier"):
        sample(labels=(0, 1))
    other = NoisyClassifier(NoisyClassifierConfig(network=MLPConfig(), schedule=NoiseSchedule()))
    with pytest.raises(DiffusionError, match=r"noisy_classifier was trained on the schedule scaled_linear with 1000"):
        sample(labels=(0, 1), options={"classifier": other})
    with pytest.raises(DiffusionError, match=r"a noisy classifier draws nothing by itself"):
        classifier.sample(SampleRequest((0,)))
    with pytest.raises(DiffusionError, match=r"the batch has no labels"):
        classifier.loss(Batch(torch.zeros(2, 2)), stream(0))
    with pytest.raises(DiffusionError, match=r"the data has no labels"):
        NoisyClassifier.default_config((3, 8, 8), None)
