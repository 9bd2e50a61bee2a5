"""GLIDE, its companions and classifier guidance from the command line: every model trained for two steps, then used."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import ddim_inversion
from benchmarks.glide import Unseen
from diffusion.models import MODELS, model_class
from nerf3d.toybox.shards import write_shards
from orchestrator.cli.main import main
from orchestrator.host.progress_display import SilentDisplay
from orchestrator.lab.family.folder import load_model
from orchestrator.lab.family.sample import check_names
from orchestrator.lab.family.train import next_command, train_family

LOOP = {"loop.num_steps": "2", "loop.batch_size": "4", "data.kinds": "car,mushroom,chair"}
SIZES = {"network.block_out_channels": "[8,16]", "network.attention_levels": "[false,true]"}
SMALL, LARGE = SIZES | {"network.sample_size": "8"}, SIZES | {"network.sample_size": "16"}
ENCODER = {"network.block_out_channels": "[8,16]", "network.sample_size": "8"}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, hardly trained."""
    root = tmp_path_factory.mktemp("family")
    list(write_shards(root / "shards", 96, shard_size=48, size=16))
    trainings = {
        "glide": SMALL,
        "glide_inpainting": {**SMALL, "start_from": str(root / "glide")},
        "glide_upsampler": LARGE,
        "noisy_clip": ENCODER,
        "noisy_classifier": ENCODER,
        "ddpm": SMALL,
    }
    for objective, settings in trainings.items():
        settings = {"objective": objective, "data.folder": str(root / "shards"), **LOOP, **settings}
        train_family(settings, root / objective, device="cpu", display=SilentDisplay())
    return root


def draw(folder: Path, out: Path, *settings: str) -> np.ndarray:
    """The sheet that `dreamkiln sample` draws of two pictures in two steps."""
    assert main(["sample", f"model={folder}", "num_samples=2", "num_steps=2", *settings, "--out", str(out)]) == 0
    with Image.open(out) as image:
        return np.asarray(image.convert("RGB"))


def test_models_that_draw_show_pictures_of_their_training_and_guides_show_none(family: Path) -> None:
    for name in ("glide", "glide_inpainting", "glide_upsampler", "ddpm"):
        assert (family / name / "samples.png").exists(), name
    for name in ("noisy_clip", "noisy_classifier"):
        assert (family / name / "model.safetensors").exists() and not (family / name / "samples.png").exists()


@pytest.mark.parametrize("objective", list(MODELS))
def test_the_next_command_is_one_that_the_verb_takes(objective: str) -> None:
    words = shlex.split(next_command(objective, Path("folder")))
    assert words[:2] == ["dreamkiln", "sample"] and words[-2:] == ["--out", "samples.png"]
    settings = dict(word.split("=", 1) for word in words[2:-2])
    check_names(settings)
    assert "folder" in settings.values()
    assert (settings["model"] == "folder") == model_class(objective).draws


def test_one_command_goes_from_text_over_both_guidances_to_the_large_picture(family: Path, tmp_path: Path) -> None:
    small = draw(family / "glide", tmp_path / "small.png", "prompt=a red car", "guidance_scale=3")
    clip = (f"options.clip={family / 'noisy_clip'}", "options.clip_scale=3")
    guided = draw(family / "glide", tmp_path / "clip.png", "prompt=a red car", "guidance_scale=3", *clip)
    assert small.shape == guided.shape and (small != guided).any()
    upsampler = (f"options.upsampler={family / 'glide_upsampler'}", "options.upsampler_steps=2")
    large = draw(family / "glide", tmp_path / "large.png", "prompt=a red car", *clip, *upsampler)
    assert large.shape[1] - small.shape[1] == 2 * 8


def test_a_picture_is_completed_and_another_enlarged(family: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :5] = 255
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    told = (f"options.image={tmp_path / 'picture.png'}", f"options.mask={tmp_path / 'mask.png'}")
    for name in ("glide", "glide_inpainting"):
        sheet = draw(family / name, tmp_path / f"{name}.png", "prompt=a red car", *told)
        kept = [
            (top, left)
            for top in range(sheet.shape[0] - 7)
            for left in range(sheet.shape[1] - 7)
            if (sheet[top : top + 8, left : left + 5] == pixels[:, :5]).all()
        ]
        assert len(kept) == 2, name
    low_res = f"options.low_res={tmp_path / 'picture.png'}"
    assert draw(family / "glide_upsampler", tmp_path / "large.png", low_res).shape[1] > 2 * 16


def test_a_picture_is_drawn_again_from_its_own_noise(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the start, whatever the seed; that a trained model gives it back is in tests/diffusion/test_ddpm_exact.py."""
    pixels = np.full((8, 8, 3), (200, 120, 60), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    told = ("sampler=ddim", f"options.invert={tmp_path / 'picture.png'}", "options.num_corrections=1")
    first, again = (draw(family / "ddpm", tmp_path / f"{seed}.png", *told, f"seed={seed}") for seed in (0, 7))
    assert (first == again).all()
    assert (first != draw(family / "ddpm", tmp_path / "plain.png", "sampler=ddim")).any()
    Image.fromarray(pixels[:4]).save(tmp_path / "picture.png")
    assert main(["sample", f"model={family / 'ddpm'}", *told, "--out", str(tmp_path / "wrong.png")]) == 2
    assert "options.invert is (3, 4, 8); expected a picture (3, 8, 8)" in capsys.readouterr().err

    monkeypatch.setattr(ddim_inversion, "WAYS", ((2, 0), (2, 1)))
    monkeypatch.setattr(Unseen, "read", lambda *_: Unseen(torch.zeros(8, 3, 8, 8), ("",) * 8))
    assert ddim_inversion.main([str(family / "ddpm"), "--out", str(tmp_path / "rows.webp")]) == 0
    assert "2 steps, 1 correction: " in capsys.readouterr().out and (tmp_path / "rows.webp").exists()
    assert ddim_inversion.main([str(tmp_path)]) == 2


def test_the_classifier_draws_kinds_with_a_model_that_knows_none(family: Path, tmp_path: Path) -> None:
    classifier = f"options.classifier={family / 'noisy_classifier'}"
    guided = draw(family / "ddpm", tmp_path / "guided.png", "labels=mushroom,car", classifier, "options.classifier_scale=5")
    assert (guided != draw(family / "ddpm", tmp_path / "plain.png")).any()


def test_inpainting_begins_with_the_base_models_weights(family: Path) -> None:
    base, told = (load_model(family / name)[0].state_dict() for name in ("glide", "glide_inpainting"))
    name = "network.conv_in.weight"
    assert told[name].shape[1] == base[name].shape[1] + 4
    # Two steps of training away.
    assert (told[name][:, :3] - base[name]).abs().max() < 5e-3
    assert told[name][:, 3:].abs().max() < 5e-3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("prompt=a red car", "options.clip=nowhere"), "options.clip is 'nowhere'; expected a noisy_clip"),
        (("prompt=a red car", "options.image=nowhere.png"), "nowhere.png is no readable picture"),
        (("guidance_scale=3",), "the guidance scale is 3 without a prompt"),
        (("labels=car",), "labels=car was given, but this model takes prompt"),
    ],
)
def test_wrong_options_are_one_sentence(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], sentence: str
) -> None:
    command = ["sample", f"model={family / 'glide'}", "num_samples=1", "num_steps=2", *arguments]
    assert main([*command, "--out", str(tmp_path / "x.png")]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("glide_upsampler", (), "its network.conv_in.weight is (8, 7, 3, 3); expected (8, 3, 3, 3), as in this glide"),
        ("glide", ("network.patch_size=2",), "its network.patch_size=1; expected network.patch_size=2, as in this glide"),
    ],
)
def test_start_from_refuses_a_model_of_other_sizes(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, settings: tuple[str, ...], sentence: str
) -> None:
    folder = family / name
    command = ["train", "objective=glide", f"start_from={folder}", f"data.folder={family / 'shards'}", *settings]
    command += [f"{key}={value}" for key, value in (LOOP | SMALL).items()]
    assert main([*command, "--out", str(tmp_path / "model")]) == 2
    assert f"start_from={folder} cannot be used: the weights of the {name} do not fit: {sentence}" in " ".join(
        capsys.readouterr().err.split()
    )
