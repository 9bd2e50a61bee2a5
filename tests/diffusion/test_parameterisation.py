"""eps, x0, v and score: every conversion undoes the other."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion.errors import DiffusionError
from diffusion.parameterisation import KINDS, Prediction, training_target
from diffusion.seeding import normal, stream

pytestmark = pytest.mark.oracle


def noised(angles: list[float], seed: int) -> tuple[torch.Tensor, ...]:
    """x0, eps, x_t (B, 2, 3, 3) float64 and alpha, sigma (B,) = cos, sin of the angles."""
    angle = torch.tensor(angles, dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin()
    shape = (len(angles), 2, 3, 3)
    x0, eps = (normal(shape, stream(seed, name), dtype=torch.float64) for name in ("x0", "eps"))
    x_t = alpha[:, None, None, None] * x0 + sigma[:, None, None, None] * eps
    return x0, eps, x_t, alpha, sigma


ANGLES = st.lists(st.floats(0.02, 1.55), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(angles=ANGLES, seed=st.integers(0, 10**6), kind=st.sampled_from(KINDS))
def test_a_perfect_output_of_any_kind_gives_everything_back(angles: list[float], seed: int, kind: str) -> None:
    x0, eps, x_t, alpha, sigma = noised(angles, seed)
    output = training_target(x0, eps, alpha, sigma, kind)
    prediction = Prediction.from_output(output, x_t, alpha, sigma, kind)
    torch.testing.assert_close(prediction.x0, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.eps, eps, rtol=0, atol=1e-10)
    a, s = alpha[:, None, None, None], sigma[:, None, None, None]
    torch.testing.assert_close(prediction.v, a * eps - s * x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(prediction.score, -eps / s, rtol=1e-8, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(
    angles=ANGLES,
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(KINDS),
    other=st.sampled_from(KINDS),
)
def test_any_output_survives_a_detour(angles: list[float], seed: int, kind: str, other: str) -> None:
    """Not only perfect ones: x_t = a x0 + s eps holds for every prediction."""
    output, _, x_t, alpha, sigma = noised(angles, seed)
    direct = Prediction.from_output(output, x_t, alpha, sigma, kind)
    detour = Prediction.from_output(direct.as_kind(other), x_t, alpha, sigma, other)
    torch.testing.assert_close(detour.as_kind(kind), output, rtol=1e-7, atol=1e-7)


def test_v_prediction_works_without_any_signal() -> None:
    """At zero signal-to-noise ratio v is -x0 and eps is x_t: nothing is divided."""
    x0, eps, _, _, _ = noised([0.3, 0.3], 0)
    alpha, sigma = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    prediction = Prediction.from_output(-x0, eps, alpha, sigma, "v_prediction")
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.eps, eps)


def test_keeps_the_dtype_of_x_t_and_slices() -> None:
    _, eps, x_t, alpha, sigma = noised([0.3, 0.7, 1.1], 0)
    prediction = Prediction.from_output(eps.half(), x_t.float(), alpha, sigma, "epsilon")
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32
    torch.testing.assert_close(prediction[1:].v, prediction.v[1:])


def test_refuses_unknown_kinds_and_other_shapes() -> None:
    x0, eps, x_t, alpha, sigma = noised([0.3], 0)
    with pytest.raises(DiffusionError, match="prediction kind is 'flow'; expected one of 'epsilon'"):
        Prediction.from_output(eps, x_t, alpha, sigma, "flow")
    with pytest.raises(DiffusionError, match="prediction kind is 'flow'"):
        training_target(x0, eps, alpha, sigma, "flow")
    with pytest.raises(DiffusionError, match=r"output has shape \(1, 4, 3, 3\); expected x_t's \(1, 2, 3, 3\)"):
        Prediction.from_output(torch.cat([eps, eps], dim=1), x_t, alpha, sigma)
