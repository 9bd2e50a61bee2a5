"""DDIM inversion against the exact flow of a Gaussian, and there and back."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffusion.errors import DiffusionError
from diffusion.requests import Guidance, run
from diffusion.samplers import ddim
from diffusion.samplers.ddim_inversion import ddim_inversion
from diffusion.schedule import NoiseSchedule
from diffusion.seeding import normal, stream
from tests.oracles import FIVE_MODES, GaussianMixture, Oracle, condition, gaussian_flow

pytestmark = pytest.mark.oracle

LINEAR = NoiseSchedule(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, steps_offset=0, set_alpha_to_one=True)
MEANS, VARIANCES = torch.tensor([0.5, -0.3], dtype=torch.float64), torch.tensor([0.05, 0.6], dtype=torch.float64)
GAUSSIAN = GaussianMixture.gaussian(MEANS, VARIANCES.diag())


def data(rows: int, law: GaussianMixture = GAUSSIAN) -> Tensor:
    return law.sample(rows, stream(0, "data")).reshape(rows, 1, 1, 2)


def inverted(x_0: Tensor, timesteps: Tensor, *, oracle: Oracle | None = None, num_corrections: int = 0) -> Tensor:
    generator = ddim_inversion(
        x_0,
        schedule=LINEAR,
        timesteps=timesteps,
        condition=condition(len(x_0)),
        guidance=Guidance(scale=1.0),
        num_corrections=num_corrections,
    )
    return run(generator, oracle or Oracle(LINEAR, GAUSSIAN))


def drawn(x_T: Tensor, timesteps: Tensor, *, oracle: Oracle | None = None) -> Tensor:
    sampling = ddim(x_T, schedule=LINEAR, timesteps=timesteps, condition=condition(len(x_T)), guidance=Guidance(scale=1.0))
    return run(sampling, oracle or Oracle(LINEAR, GAUSSIAN))


def test_a_corrected_inversion_is_the_exact_inverse_of_ddim() -> None:
    timesteps = LINEAR.timesteps(40)
    x_0 = data(16)
    there = inverted(x_0, timesteps, num_corrections=40)
    torch.testing.assert_close(drawn(there, timesteps), x_0, rtol=0, atol=1e-9)
    back = inverted(drawn(normal((16, 1, 1, 2), stream(1), dtype=torch.float64), timesteps), timesteps, num_corrections=40)
    torch.testing.assert_close(back, normal((16, 1, 1, 2), stream(1), dtype=torch.float64), rtol=0, atol=1e-9)


def test_the_error_of_the_plain_inversion_falls_with_the_step() -> None:
    x_0 = data(64)
    errors = []
    for num_steps in (25, 50, 100, 200):
        timesteps = LINEAR.timesteps(num_steps)
        errors.append(float((drawn(inverted(x_0, timesteps), timesteps) - x_0).square().mean().sqrt()))
    assert errors[-1] < 0.02
    for coarse, fine in pairwise(errors):
        assert 1.6 < coarse / fine < 2.4, errors


def test_inversion_follows_the_exact_flow_backwards() -> None:
    x_0 = data(64)
    errors = []
    for num_steps in (50, 100, 200):
        timesteps = LINEAR.timesteps(num_steps)
        level = (float(LINEAR.alpha(timesteps[:1])), float(LINEAR.sigma(timesteps[:1])))
        exact = gaussian_flow(MEANS, VARIANCES, x_0, (1.0, 0.0), level)
        errors.append(float((inverted(x_0, timesteps) - exact).square().mean().sqrt()))
    assert errors[0] < 0.1 and 1.6 < errors[0] / errors[1] < 2.4 and 1.6 < errors[1] / errors[2] < 2.4, errors


def test_a_round_trip_keeps_five_modes() -> None:
    oracle, timesteps, x_0 = Oracle(LINEAR, FIVE_MODES), LINEAR.timesteps(250), data(32, FIVE_MODES)
    returned = drawn(inverted(x_0, timesteps, oracle=oracle), timesteps, oracle=oracle)
    assert float((returned - x_0).flatten(1).norm(dim=1).median()) < 0.02


def test_the_network_is_called_once_a_step_and_once_a_correction() -> None:
    timesteps, oracle = LINEAR.timesteps(10), Oracle(LINEAR, GAUSSIAN)
    inverted(data(2), timesteps, oracle=oracle, num_corrections=2)
    assert [int(request.t[0]) for request in oracle.asked[::3]] == [0, *timesteps.flip(0).tolist()[:-1]]
    assert [int(request.t[0]) for request in oracle.asked[1::3]] == timesteps.flip(0).tolist()
    assert len(oracle.asked) == 30


def test_a_negative_number_of_corrections() -> None:
    with pytest.raises(DiffusionError, match="num_corrections is -1; expected 0 or more"):
        inverted(data(1), LINEAR.timesteps(3), num_corrections=-1)
