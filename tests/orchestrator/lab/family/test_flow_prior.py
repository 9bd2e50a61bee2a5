"""A rectified flow of the toybox's latents is a prior like any other, and what it was taught is what it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.checkpoints.defaults import defaults_of
from diffusion.checkpoints.footprint import footprint
from diffusion.checkpoints.source import Source
from diffusion.models.base import SampleRequest
from diffusion.models.rectified_flow import RectifiedFlow
from diffusion.prior import Prior
from diffusion.seeding import normal, stream
from jobs.errors import InputError
from orchestrator.cli.main import main
from orchestrator.host.progress_display import SilentDisplay
from orchestrator.lab.family.folder import load_model
from orchestrator.lab.family.train import Plan, next_command, train_family
from tests.fakes import FAST_OVERRIDES

SMALL = {
    "objective": "rectified_flow",
    "data": "toybox_latents",
    "data.kinds": "car,mushroom",
    "data.num_pictures": "16",
    "network.num_layers": "2",
    "network.num_attention_heads": "1",
    "network.caption_projection_dim": "64",
    "loop.num_steps": "6",
    "loop.batch_size": "8",
    "loop.warmup_steps": "1",
}
PROMPTS = ["a red mushroom, front view", "a blue car"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("orchestrator.lab.family.data.SHARD_SIZE", 16)
        return train_family(SMALL, root / "flow", device="cpu", display=SilentDisplay())


@pytest.fixture(scope="module")
def flow(trained: Path) -> RectifiedFlow:
    model, _ = load_model(trained)
    assert isinstance(model, RectifiedFlow)
    return model


@torch.no_grad()
def test_the_prior_is_told_what_the_flow_was_taught(trained: Path, flow: RectifiedFlow) -> None:
    """Text and pooled text to the last bit; the velocity up to the weights' rounding to half precision."""
    prior = Prior.load(trained / "prior")
    text, (states, pooled) = flow.text(PROMPTS), prior.encode_text(PROMPTS)  # type: ignore[misc]
    assert torch.equal(states, text.tokens) and pooled is not None and torch.equal(pooled, text.pooled)
    x, t = normal((2, *flow.shape), stream(0, "x")), torch.tensor([900.0, 250.0], dtype=torch.float64)
    taught = flow.network(x, t, text.tokens, text.pooled)
    found = prior.predict(x, t, prior.condition(PROMPTS).tokens)
    assert float(taught.std()) > 0.05
    torch.testing.assert_close(found, taught, rtol=0, atol=5e-3)


@torch.no_grad()
def test_diffusers_reads_the_transformer(trained: Path) -> None:
    prior = Prior.load(trained / "prior")
    theirs = diffusers.SD3Transformer2DModel.from_pretrained(trained / "prior/transformer").float().eval()
    x, t = normal((2, *prior.latent_shape), stream(0, "x")), torch.tensor([900.0, 250.0])
    states, pooled = prior.encode_text(PROMPTS)
    torch.testing.assert_close(prior.unet(x, t, states, pooled), theirs(x, states, pooled, t).sample, rtol=0, atol=2e-5)


@torch.no_grad()
def test_samples_are_pictures_that_know_no_neighbours(trained: Path, flow: RectifiedFlow) -> None:
    how: dict[str, Any] = {"num_steps": 3, "sampler": "euler", "guidance_scale": 2.0}
    latents = flow.sample(SampleRequest((0, 1), prompts=tuple(PROMPTS), **how))
    assert latents.shape == (2, 3, 64, 64) and float(latents.abs().max()) <= 1
    alone = flow.sample(SampleRequest((1,), prompts=(PROMPTS[1],), **how))
    torch.testing.assert_close(alone[0], latents[1], rtol=0, atol=1e-4)
    with Image.open(trained / "samples.png") as image:
        assert image.size == (4 * 68 + 4,) * 2


def test_it_draws_with_its_cards_values_and_knows_its_words(trained: Path, tmp_path: Path, capfd) -> None:
    folder = trained / "prior"
    told = defaults_of(Source.parse(str(folder)))
    assert (told.values["sampler"], told.values["guidance_scale"], told.recipe) == ("euler", 4.0, "toybox")
    assert set(told.origins.values()) == {"dreamkiln.json"} and footprint(str(folder)).weights > 0
    run = [
        "images",
        "a red mushroom and a duck",
        "--prior",
        str(folder),
        "--runtime",
        "inline",
        "--num-images",
        "2",
        "--steps",
        "2",
    ]
    assert main([*run, "--out", str(tmp_path / "run")]) == 0
    assert "duck" in capfd.readouterr().err, "no duck was in its pictures"
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["spec"]["sampler"] == "euler"
    pictures = []
    for number in range(2):
        with Image.open(tmp_path / f"run/{number:09d}.png") as image:
            pictures.append(np.asarray(image))
    assert pictures[0].shape == (64, 64, 3) and (pictures[0] != pictures[1]).any()
    assert next_command("rectified_flow", trained) == f"dreamkiln images SENTENCE --prior {folder}"


def test_a_sentence_becomes_a_mesh(trained: Path, tmp_path: Path) -> None:
    command = ["text-to-3d", "a blue car", "--prior", str(trained / "prior"), "--runtime", "inline", *FAST_OVERRIDES]
    assert main([*command, "fit.num_steps=6", "export.turntable_frames=0", "--out", str(tmp_path / "car")]) == 0
    manifest = json.loads((tmp_path / "car/manifest.json").read_text())
    assert manifest["prior"]["name"] == "flow-toybox" and manifest["recipe"]["name"] == "toybox"
    assert (tmp_path / "car/mesh.glb").stat().st_size > 1000


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"objective": "ddpm"}, "data=toybox_latents is for objective=rectified_flow, not ddpm; give data=toybox"),
        ({"data.size": "32"}, "data.size is 32, and the toybox prior's pictures are 64 wide; leave it out"),
        (
            {"network.num_attention_heads": "2"},
            "caption_projection_dim is 64; expected num_attention_heads x attention_head_dim",
        ),
    ],
)
def test_refused(settings: dict[str, str], sentence: str, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.parent)
    monkeypatch.setattr("orchestrator.lab.family.data.SHARD_SIZE", 16)
    with pytest.raises(InputError, match=sentence):
        train_family(SMALL | settings, trained.parent / "other", device="cpu", display=SilentDisplay())


def test_the_same_objective_on_pictures_has_the_common_network() -> None:
    assert RectifiedFlow.default_config((3, 16, 16), None).network.shape == (3, 16, 16)
    assert Plan.parse({"objective": "rectified_flow"}).data_name == "toybox"
