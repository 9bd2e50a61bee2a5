"""Resizing as torch has it, and its gradient as autograd has it."""

import pytest
import torch
from torch.nn import functional as F

from diffusion.distillation import Distilled, at_own_size
from diffusion.requests import run
from diffusion.resizing import pulled_back, resized


@pytest.mark.parametrize(("before", "after"), [((6, 10), (16, 13)), ((24, 24), (16, 16)), ((7, 5), (7, 5)), ((5, 31), (12, 8))])
def test_it_is_torchs_and_so_is_the_gradient(before: tuple[int, int], after: tuple[int, int]) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, *before, generator=draws, dtype=torch.float64).requires_grad_()
    pull = torch.rand(2, 3, *after, generator=draws, dtype=torch.float64)
    expected = images
    for axis in (0, 1):  # torch antialiases both axes or neither
        size = list(expected.shape[-2:])
        size[axis] = after[axis]
        shrinks = after[axis] < before[axis]
        expected = F.interpolate(expected, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
    torch.testing.assert_close(resized(images.detach(), after), expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(pulled_back(pull, before), torch.autograd.grad(expected, images, pull)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [8, 24])
@pytest.mark.parametrize("has_target", [False, True])
def test_answers_are_pulled_back_from_the_priors_size(side: int, has_target: bool, own: int = 16) -> None:
    """The loss, its gradient and its number of values, by autograd through torch's own interpolation."""
    draws = torch.Generator().manual_seed(1)
    images = torch.rand(2, 3, side, side, generator=draws).double().requires_grad_()
    aim = torch.rand(2, 3, own, own, generator=draws).double()

    def distilled(shown: torch.Tensor):
        assert shown.shape == aim.shape
        return Distilled(0.3 * aim, aim if has_target else None)
        yield

    answer = run(at_own_size(images.detach(), (own, own), distilled), lambda request: None)
    shown = F.interpolate(images, size=(own, own), mode="bilinear", align_corners=False, antialias=side > own)
    losses = ((shown - aim).square() if has_target else shown * 0.3 * aim).flatten(1).sum(1)
    torch.testing.assert_close(answer.gradient, torch.autograd.grad(losses.sum(), images)[0], rtol=0, atol=1e-11)
    assert answer.num_values == 3 * own * own
    if has_target:
        torch.testing.assert_close(answer.loss, losses.detach())
        torch.testing.assert_close(answer.target, F.interpolate(aim, size=(side, side), mode="area"))
    else:
        assert answer.loss is None and answer.target is None


def test_pictures_of_its_own_size_are_answered_as_they_are() -> None:
    given = Distilled(torch.ones(1, 3, 4, 4))

    def distilled(shown: torch.Tensor):
        return given
        yield

    assert run(at_own_size(torch.ones(1, 3, 4, 4), (4, 4), distilled), lambda request: None) is given
