"""Classifier-free guidance: exact ends, the published rescaling, and the closed form between two Gaussians."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.guidance import classifier_free, combine, guided_prediction, rescale, row_scales
from diffusion.parameterisation import Prediction
from diffusion.requests import Condition, DenoiseRequest, Guidance
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, stream
from tests.oracles import GaussianMixture, Oracle, condition

pytestmark = pytest.mark.oracle

SCHEDULE = NoiseSchedule()


def pair(seed: int = 0, rows: int = 4) -> tuple[Tensor, Tensor]:
    return normal((rows, 3, 4, 4), stream(seed, "cond")), 0.3 + normal((rows, 3, 4, 4), stream(seed, "uncond"))


def test_scale_one_is_conditional_and_zero_unconditional_to_the_last_bit() -> None:
    cond, uncond = pair()
    assert torch.equal(classifier_free(uncond, cond, 1.0), cond)
    assert torch.equal(classifier_free(uncond, cond, 0.0), uncond)
    rows = classifier_free(uncond, cond, torch.tensor([1.0, 0.0, 7.5, 1.0]))
    assert torch.equal(rows[0], cond[0]) and torch.equal(rows[1], uncond[1])
    torch.testing.assert_close(rows[2], uncond[2] + 7.5 * (cond[2] - uncond[2]))


def test_rescale_is_the_paper_and_diffusers() -> None:
    cond, guided = pair()
    torch.testing.assert_close(rescale(guided, cond, 0.7), rescale_noise_cfg(guided, cond, guidance_rescale=0.7))
    full = rescale(guided, cond, 1.0)
    torch.testing.assert_close(full.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))
    assert torch.equal(rescale(guided, cond, 0.0), guided)
    mixed = rescale(guided, cond, torch.tensor([0.0, 1.0, 0.5, 0.0]))
    torch.testing.assert_close(mixed[:2], torch.stack([guided[0], full[1]]))


def test_rescale_leaves_a_constant_prediction() -> None:
    cond, _ = pair()
    constant = torch.ones_like(cond)
    assert torch.equal(rescale(constant, cond, 0.5), constant)


def test_two_gaussians_guide_in_closed_form() -> None:
    """eps of N(m, c) is s (x - a m) / (a^2 c + s^2), so the guided eps is affine in x with known coefficients."""
    means, variances, scale = (0.7, 0.0), (0.25, 1.0), 7.5
    oracle = Oracle(SCHEDULE, *(GaussianMixture.gaussian([m], [[c]]) for m, c in zip(means, variances, strict=True)))
    x = normal((5, 1, 1, 1), stream(0), dtype=torch.float64)
    t = torch.tensor([1, 100, 400, 700, 999])
    answer = oracle(DenoiseRequest(x, t, condition(5), Guidance(scale=scale)))
    a, s = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    cond, uncond = (s * (x.flatten() - a * m) / (a**2 * c + s**2) for m, c in zip(means, variances, strict=True))
    torch.testing.assert_close(answer.eps.flatten(), uncond + scale * (cond - uncond), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_combining_in_any_space_is_the_same_without_rescaling(kind: str) -> None:
    cond, uncond = (value.double() for value in pair())
    x_t, t = normal((4, 3, 4, 4), stream(1), dtype=torch.float64), torch.tensor([50, 300, 600, 900])
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    halves = [Prediction.from_output(value, x_t, alpha, sigma, "epsilon") for value in (cond, uncond)]
    both = [half.as_kind(kind) for half in halves]
    ours = combine(*both, x_t=x_t, alpha=alpha, sigma=sigma, kind=kind, scale=3.0)
    torch.testing.assert_close(ours.eps, uncond + 3 * (cond - uncond), rtol=1e-9, atol=1e-9)


def test_rescaling_x0_gives_x0_the_conditional_deviation() -> None:
    cond, uncond = (value.double() for value in pair())
    x_t, t = normal((4, 3, 4, 4), stream(1), dtype=torch.float64), torch.tensor([50, 300, 600, 900])
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    settings = {"x_t": x_t, "alpha": alpha, "sigma": sigma, "kind": "v_prediction", "scale": 7.0}
    plain = Prediction.from_output(cond, x_t, alpha, sigma, "v_prediction").x0
    ours = combine(cond, uncond, **settings, phi=1.0, rescale_on="x0")
    torch.testing.assert_close(ours.x0.std(dim=(1, 2, 3)), plain.std(dim=(1, 2, 3)))
    # eps follows: x_t is still a x0 + s eps.
    again = SCHEDULE.add_noise(ours.x0, ours.eps, t)
    torch.testing.assert_close(again, x_t, rtol=0, atol=1e-10)
    on_output = combine(cond, uncond, **settings, phi=1.0)
    torch.testing.assert_close(on_output.v.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))


def test_rows_outside_the_interval_are_conditional_and_cost_no_second_forward() -> None:
    sizes = []

    def network(x_t: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        sizes.append(len(x_t))
        return x_t * tokens[:, :1, :1, None] + t[:, None, None, None] / 1000

    x_t, t = normal((4, 3, 4, 4), stream(1)), torch.tensor([50, 300, 600, 900])
    guidance = Guidance(scale=5.0, rescale=0.5, interval=(200, 700))
    assert row_scales(guidance, t).tolist() == [1, 5, 5, 1]
    assert row_scales(guidance, torch.tensor([199, 200, 700, 701])).tolist() == [1, 5, 5, 1]
    answer = guided_prediction(network, DenoiseRequest(x_t, t, condition(4), guidance), SCHEDULE)
    plain = guided_prediction(network, DenoiseRequest(x_t, t, Condition(torch.ones(4, 1, 1)), Guidance(1.0)), SCHEDULE)
    assert sizes == [6, 4]
    torch.testing.assert_close(answer.eps[[0, 3]], plain.eps[[0, 3]], rtol=0, atol=0)
    assert not torch.allclose(answer.eps[1], plain.eps[1])
    torch.testing.assert_close(
        answer[1:2].eps,
        guided_prediction(network, DenoiseRequest(x_t[1:2], t[1:2], condition(1), guidance), SCHEDULE).eps,
    )


def test_refuses_guidance_without_a_negative_and_impossible_settings() -> None:
    request = DenoiseRequest(torch.zeros(1, 1, 1, 1), torch.tensor([5]), Condition(torch.ones(1, 1, 1)), Guidance(7.0))
    with pytest.raises(DiffusionError, match=r"guidance scale 7.0 without a negative condition"):
        guided_prediction(lambda x_t, t, tokens: x_t, request, SCHEDULE)
    with pytest.raises(DiffusionError, match=r"guidance rescale is 1.5; expected 0 to 1"):
        Guidance(rescale=1.5)
    with pytest.raises(DiffusionError, match=r"rescale_on is 'eps'"):
        Guidance(rescale_on="eps")
    with pytest.raises(DiffusionError, match=r"interval is \(9, 3\); .* use \(3, 9\)"):
        Guidance(interval=(9, 3))
    with pytest.raises(DiffusionError, match=r"encoded as \(2, 1, 1\); expected the prompts' shape \(1, 1, 1\)"):
        Condition(torch.ones(1, 1, 1), torch.ones(2, 1, 1))
