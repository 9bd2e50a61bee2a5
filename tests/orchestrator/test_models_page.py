"""docs/models.md: its pictures exist and are small, the models it names are ours, and its script draws."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from PIL import Image

from benchmarks import model_pictures
from diffusion.models import MODELS
from diffusion.samplers import SAMPLERS
from orchestrator import prior_service
from tests.fakes import load_fake_prior

PAGE = Path(__file__).parents[2] / "docs/models.md"


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


def test_the_script_draws_what_the_commands_draw(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prior_service, "load_prior", load_fake_prior)
    arguments = ["--only", "sdedit", "inpainting", "--out", str(tmp_path), "--", "runtime.num_threads=1"]
    assert model_pictures.main(arguments) == 0
    assert prior_service.load_prior is load_fake_prior
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["sdedit.webp", "inpainting.webp"]
    with Image.open(tmp_path / "strokes.png") as strokes:
        assert strokes.size == (16, 16)


def test_a_command_that_fails_ends_the_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(prior_service, "load_prior", load_fake_prior)
    assert model_pictures.main(["--only", "samplers", "--out", str(tmp_path), "--", "images.num_stepz=3"]) == 1
    assert "ended with exit code 2" in capsys.readouterr().err
