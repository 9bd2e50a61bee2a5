"""Pictures of many sizes through one engine: shapes, what networks are told, strict mode, refusals, fairness."""

import dataclasses
import types

import numpy as np
import psutil
import pytest
import torch

from diffusion.checkpoints.footprint import activation_bytes
from diffusion.prior import Prior
from diffusion.requests import Guidance
from jobs.errors import InputError, PriorFailed
from jobs.prior_client import DistillationQuery, GenerateRequest
from orchestrator.prior.local import LocalPrior
from tests.diffusion.checkpoints.published import random_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

TALL, WIDE, ODD = (96, 64), (48, 104), (72, 40)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    for model in ("sd15", "sdxl"):
        random_pipeline(model, folder / model)
    return folder


def request(size, seed=0, prompt="a red cup", **others):
    return GenerateRequest(prompts=(prompt,), seeds=(seed,), num_steps=2, guidance=Guidance(scale=5.0), size=size, **others)


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_strict_pictures_of_mixed_sizes_are_those_drawn_alone(folders, model):
    """Of four sizes at once, each to the last bit; neighbours of the same size and not strict beside them."""
    sizes = (None, TALL, WIDE, ODD)
    alone = []
    for index, size in enumerate(sizes):
        alone.append(LocalPrior(Prior.load(folders / model)).generate(request(size, index, strict=True)))
    for size, pictures in zip(sizes, alone, strict=True):
        assert pictures.shape == (1, *(size or (64, 64)), 3)
    prior = LocalPrior(Prior.load(folders / model))
    pending = [prior.begin_generate(request(size, index, strict=True), job=str(index)) for index, size in enumerate(sizes)]
    pending += [prior.begin_generate(request(size, 9, "a blue ball"), job="other") for size in sizes]
    while prior.engine.live:
        prior.engine.step()
    for one, pictures in zip(pending, alone, strict=False):
        np.testing.assert_array_equal(one.result(), pictures)


def test_sdxl_is_told_the_size_and_sd15_is_not(folders):
    told, untold = (Prior.load(folders / model) for model in ("sdxl", "sd15"))
    tall, own = told.encode_text(["a cup"], size=TALL)[1], told.encode_text(["a cup"])[1]
    assert tall[0, -6:].tolist() == [96, 64, 0, 0, 96, 64] and own[0, -6:].tolist() == [64, 64, 0, 0, 64, 64]
    assert not told.has_condition("a cup", size=TALL)
    condition = told.condition(["a cup"], size=TALL)
    assert told.has_condition("a cup", size=TALL) and not told.has_condition("a cup")
    assert not np.array_equal(condition.tokens, told.condition(["a cup"]).tokens)
    untold.condition(["a cup"], size=TALL)
    assert untold.has_condition("a cup", size=WIDE)


def test_sizes_take_turns_and_larger_pictures_take_fewer_rows_a_forward(folders):
    prior = LocalPrior(Prior.load(folders / "sd15"))
    large = dataclasses.replace(request((128, 128)), prompts=("a cup",) * 16, seeds=tuple(range(16)))
    small = dataclasses.replace(request(None), prompts=("a ball",) * 16, seeds=tuple(range(16)))
    prior.begin_generate(large, job="large"), prior.begin_generate(small, job="small")
    reports = [prior.engine.step() for _ in range(6)]
    rows = [dict(report.rows) for report in reports]
    assert [sorted(one) for one in rows] in ([["large"], ["small"]] * 3, [["small"], ["large"]] * 3)
    assert {one.get("small") for one in rows} == {None, 16} and {one.get("large") for one in rows} == {None, 4}


def test_a_picture_in_strips_is_the_same_to_one_grey_level(folders):
    """Drawn from noise and from a picture, asked for or because memory is short."""
    init = torch.rand(1, 3, *TALL, generator=torch.manual_seed(2))
    for others in ({}, {"init_images": init, "strength": 0.5}):
        plain, tiled = (
            LocalPrior(Prior.load(f"{folders / 'sd15'}?decode={way}")).generate(request(TALL, **others))
            for way in ("plain", "tiled")
        )
        assert np.abs(plain.astype(int) - tiled).max() <= 1


def test_short_memory_brings_strips_and_strict_pictures_say_what_to_do(folders, monkeypatch):
    prior = Prior.load(folders / "sd15")
    widths, sizes = prior.autoencoder.config.decoder_widths, {"rows": 2, "pictures": 1}
    whole, tiled = (activation_bytes(prior.unet.config, widths, (32, 24), **sizes, tiled=tiled) for tiled in (False, True))
    assert tiled < 0.8 * whole
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=(whole + tiled) // 2))
    with pytest.raises(InputError, match=r"A picture of 192x256 pixels .* take a smaller size, or add '\?decode=tiled'"):
        LocalPrior(prior).begin_generate(request((256, 192), strict=True))
    with monkeypatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1000))
        with pytest.raises(InputError, match=r"A picture of 64x64 pixels needs about 0.0 GB beside the prior, and 0.0 GB"):
            LocalPrior(prior).begin_generate(request(None))  # of the prior's own size
    ways, decode = [], prior.decode
    monkeypatch.setattr(prior, "decode", lambda latents, *, tiled: ways.append(tiled) or decode(latents, tiled=tiled))
    assert LocalPrior(prior).generate(request((256, 192))).shape == (1, 256, 192, 3) and ways == [True]


def test_a_size_that_the_network_cannot_have_is_refused_with_one_that_it_can(folders):
    prior = LocalPrior(Prior.load(folders / "sd15"))
    assert prior.info().size_multiple == 8
    with pytest.raises(InputError, match=r"The picture is 500x512 pixels; expected multiples of 8, such as 496x512"):
        prior.begin_generate(request((512, 500)))


def test_a_picture_that_cannot_fit_is_refused_with_both_numbers(folders):
    prior = LocalPrior(Prior.load(folders / "sd15"))
    with pytest.raises(
        InputError, match=r"80000x80000 pixels needs about [\d.]+ GB beside the prior, and [\d.]+ GB are free on cpu"
    ):
        prior.begin_generate(request((80_000, 80_000)))


def test_a_view_of_a_3d_step_that_cannot_fit_is_refused_with_both_numbers(folders, monkeypatch):
    prior = LocalPrior(Prior.load(folders / "sd15"))
    query = DistillationQuery(
        images=torch.full((1, 3, 64, 64), 0.5), prompts=("a cup",), t=torch.tensor([500]), noise_keys=((0, "n"),), form="sds"
    )
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=1000))
    with pytest.raises(PriorFailed, match=r"3D step needs about [\d.]+ GB beside the prior, and 0.0 GB are free on cpu; free"):
        prior.distill(query)
