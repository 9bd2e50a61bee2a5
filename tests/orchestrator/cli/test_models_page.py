"""docs/models.md: its pictures exist and are small, the models it names are ours, and its script draws."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import model_pictures
from benchmarks.model_pictures import strokes, upper_half
from diffusion.checkpoints.source import TOYBOX
from diffusion.models import MODELS
from diffusion.samplers import SAMPLERS
from nerf3d.toybox.kinds import KINDS
from orchestrator.cli.main import main
from orchestrator.exports import write_png
from orchestrator.lab.family.data import MixturePoints, ToyboxPictures
from orchestrator.lab.family.sample import check_names
from orchestrator.lab.family.train import Plan
from orchestrator.prior import local
from tests.fakes import load_fake_prior

PAGE = Path(__file__).parents[3] / "docs/models.md"


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_every_picture_is_there_and_small():
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", PAGE.read_text(encoding="utf-8"))
    assert {f"pictures/models/{name}.webp" for name in model_pictures.SHEETS} <= set(pictures)
    for picture in pictures:
        assert (PAGE.parent / picture).stat().st_size <= model_pictures.MAX_BYTES, picture


def test_every_model_and_sampler_of_the_commands_exists():
    words = [word for command in commands() for word in command]
    objectives = {word.partition("=")[2] for word in words if word.startswith("objective=")}
    samplers = {word.partition("=")[2] for word in words if word.startswith("sampler=")}
    assert len(objectives) >= 7 and objectives <= set(MODELS)
    assert samplers <= set(SAMPLERS) and set(model_pictures.SAMPLERS) == set(SAMPLERS)


def test_every_model_has_a_proof_of_the_oracle_part():
    _, _, table = PAGE.read_text(encoding="utf-8").partition("## What proves them")
    tests = PAGE.parents[1] / "tests/diffusion"
    proofs = [(tests / name).read_text(encoding="utf-8") for name in re.findall(r"`(test_\w+\.py)`", table)]
    assert all("pytest.mark.oracle" in text for text in proofs)
    assert all(any(f"from diffusion.models.{name} import" in text for text in proofs) for name in MODELS)


def settings_of(verb: str) -> list[dict[str, str]]:
    """KEY=VALUE of every `dreamkiln VERB` of the page."""
    mine = [command[2:] for command in commands() if command[:2] == ["dreamkiln", verb]]
    return [dict(word.split("=", 1) for word in words if "=" in word) for words in mine]


@pytest.mark.parametrize("settings", [s for s in settings_of("train") if "objective" in s], ids=lambda s: s["objective"])
def test_every_training_of_the_page_is_one_that_the_verb_takes(settings):
    plan = Plan.parse(settings)
    if plan.data_name == "mixture2d":
        data = MixturePoints.draw(10)
    else:
        kinds = tuple(KINDS) if plan.data.kinds is None else tuple(plan.data.kinds.split(","))
        images = torch.zeros(2, 3, plan.size, plan.size, dtype=torch.uint8)
        data = ToyboxPictures(images, torch.zeros(2, dtype=torch.long), ("", ""), kinds, plan.data.look)
    assert plan.loop_config(data).num_steps >= 1
    assert plan.build(data).name == settings["objective"]


def test_every_sampling_of_the_page_has_a_training_on_it():
    trained = [command[-1] for command in commands() if command[:2] == ["dreamkiln", "train"]]
    for settings in settings_of("sample"):
        check_names(settings)
        folders = [text for name, text in settings.items() if name in ("model", "options.upsampler", "options.clip")]
        assert folders and set(folders) <= set(trained), settings


@pytest.mark.parametrize(
    "command", [c for c in commands() if c[:2] == ["dreamkiln", "images"] and "--views" not in c], ids=" ".join
)
def test_every_drawing_of_the_page_runs_as_written(command, tmp_path, monkeypatch):
    monkeypatch.setattr(local, "load_prior", load_fake_prior)
    monkeypatch.chdir(tmp_path)
    for name, pixels in {"strokes": strokes(16), "picture": strokes(16), "mask": upper_half(16)}.items():
        write_png(pixels, tmp_path / f"{name}.png")
    if "--prior" in command:  # a folder that an earlier command of the page leaves
        shutil.copytree(TOYBOX, command[command.index("--prior") + 1], ignore=shutil.ignore_patterns("*.safetensors"))
    # The page's steps cost too much for pictures of noise.
    assert main([*command[1:], "--out", "run", "--runtime", "inline", "runtime.num_threads=1", "images.num_steps=4"]) == 0
    assert (tmp_path / "run/manifest.json").exists()


def test_the_script_draws_what_the_commands_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local, "load_prior", load_fake_prior)
    arguments = ["--only", "sdedit", "inpainting", "--out", str(tmp_path), "--", "runtime.num_threads=1"]
    assert model_pictures.main(arguments) == 0
    assert local.load_prior is load_fake_prior
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["sdedit.webp", "inpainting.webp"]
    with Image.open(tmp_path / "strokes.png") as strokes:
        assert strokes.size == (16, 16)


def test_a_command_that_fails_ends_the_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local, "load_prior", load_fake_prior)
    assert model_pictures.main(["--only", "samplers", "--out", str(tmp_path), "--", "images.num_stepz=3"]) == 1
    assert "ended with exit code 2" in capsys.readouterr().err
