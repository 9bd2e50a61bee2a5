"""What a request's sampler options become when a prior draws it."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion.prior import Prior
from diffusion.requests import DenoiseRequest
from jobs.prior_client import GenerateRequest
from orchestrator.prior.local import LocalPrior
from tests.fakes import save_tiny_prior


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_prior(tmp_path_factory.mktemp("prior"))


def asked(folder: Path, request: GenerateRequest, **card: Any) -> list[float]:
    """The timesteps at which the network is called."""
    prior = Prior.load(folder)
    prior.card = dataclasses.replace(prior.card, **card)
    drawing = LocalPrior(prior)._drawing(request, prior.condition(request.prompts))
    called, reply = [], None
    while True:
        try:
            one = drawing.send(reply)
        except StopIteration:
            return called
        if isinstance(one, DenoiseRequest):
            called.append(float(one.t[0]))
        reply = prior.answer(one)


@pytest.mark.parametrize(("name", "plain"), [("heun", 7), ("pndm", 5), ("pndm_prk", 4 + 9)])
def test_the_published_steps_are_taken_unless_the_prior_s_card_says_otherwise(name: str, plain: int, folder: Path) -> None:
    request = GenerateRequest(prompts=("a red ball",), seeds=(0,), num_steps=4, sampler=name, timestep_spacing="trailing")
    assert len(asked(folder, request, first_order_from_noise=False)) == plain
    assert len(asked(folder, request, first_order_from_noise=True)) < plain or name == "pndm"


def test_a_row_s_spacing_reaches_the_sampler(folder: Path) -> None:
    request = GenerateRequest(prompts=("a red ball",), seeds=(0,), num_steps=4, sampler="dpmpp_2m")
    assert asked(folder, dataclasses.replace(request, timestep_spacing="trailing")) == [999, 749, 499, 249]
    karras = asked(folder, dataclasses.replace(request, timestep_spacing="karras"))
    assert karras[0] == 999 and karras[-1] == 0 and karras[1] % 1


def test_pictures_between_timesteps_share_forwards_with_others(folder: Path) -> None:
    prior = LocalPrior(Prior.load(folder))
    request = GenerateRequest(prompts=("a red ball",), seeds=(3,), num_steps=4, sampler="euler", strict=True)
    karras = dataclasses.replace(request, timestep_spacing="karras")
    alone = [prior.generate(one) for one in (request, karras)]
    pending = [prior.begin_generate(one) for one in (request, karras)]
    while not all(one.finished for one in pending):
        prior.engine.step()
    assert all(np.array_equal(one.result(), picture) for one, picture in zip(pending, alone, strict=True))
    assert not np.array_equal(*alone)
