"""What a job says of its cost before it starts, and how its pace is remembered."""

import dataclasses
import json

import pytest

from diffusion.schedule import NoiseSchedule
from jobs.prior_client import PriorInfo
from jobs.specs import ImagesSpec, TextTo3DSpec
from nerf3d.fit import FitConfig
from orchestrator.run import cost

INFO = PriorInfo(name="any", weights_hash="a" * 64, image_size=512, schedule=NoiseSchedule(1000))


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMKILN_STATE", str(tmp_path / "state"))


def test_rows_count_both_halves_of_the_guidance_and_second_order():
    images = ImagesSpec(prompt="a cat", num_images=3, num_steps=10, prior="x")
    assert (cost.Cost.of(images).steps, cost.Cost.of(images).rows) == (30, 60)
    assert cost.Cost.of(dataclasses.replace(images, guidance_scale=1)).rows == 30
    assert cost.Cost.of(dataclasses.replace(images, sampler="heun")).rows == 120
    assert cost.Cost.of(dataclasses.replace(images, init_image="0" * 64, strength=0.55)).rows == 36
    fit = TextTo3DSpec(prompt="a cat", fit=FitConfig(num_steps=100, num_views=4))
    assert (cost.Cost.of(fit).steps, cost.Cost.of(fit).rows) == (100, 800)


def test_time_is_unknown_until_it_was_measured_here():
    spec = ImagesSpec(prompt="a cat", num_images=50, num_steps=10, prior="/nowhere")
    said = cost.sentence(spec, INFO)
    assert "500 steps and 1,000 rows" in said and "memory: unknown" in said and "time: unknown" in said
    cost.remember(dataclasses.replace(spec, num_images=2), INFO, 8.0, share=1)
    assert "about 3:20, at the pace" in cost.sentence(spec, INFO)  # 1,000 rows at 8 / 40 seconds
    for other in ({"weights_hash": "b" * 64}, {"device": "cuda:0"}, {"image_size": 768}):
        assert "time: unknown" in cost.sentence(spec, dataclasses.replace(INFO, **other))


def test_an_attempt_that_did_half_of_it_counts_half():
    spec = ImagesSpec(prompt="a cat", num_images=50, num_steps=10, prior="/nowhere")
    cost.remember(spec, INFO, 100.0, share=0.5)
    assert "about 3:20, at the pace" in cost.sentence(spec, INFO)


def test_what_comes_once_is_told_once_however_long_the_fit():
    """A short fit's mesh and files took as long as its steps; twenty times the steps are not twenty times those."""
    short = TextTo3DSpec(prompt="a cat", prior="/nowhere", fit=FitConfig(num_steps=50))
    cost.remember(short, INFO, 30.0, share=1, rest=30.0)
    assert "about 1:00, at the pace" in cost.sentence(short, INFO)
    assert "about 10:30, at the pace" in cost.sentence(dataclasses.replace(short, fit=FitConfig(num_steps=1000)), INFO)


def test_paces_of_an_earlier_version_are_still_read(tmp_path):
    spec = ImagesSpec(prompt="a cat", num_images=50, num_steps=10, prior="/nowhere")
    cost.remember(spec, INFO, 8.0, share=0.04)
    place = tmp_path / "state" / "pace.json"
    place.write_text(json.dumps({name: pace for name, (pace, _) in json.loads(place.read_text()).items()}))
    assert "about 3:20, at the pace" in cost.sentence(spec, INFO)
