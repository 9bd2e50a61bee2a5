"""The documentation's picture of score-based models."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import score_matching
from diffusion.models.ncsn import Ncsn, NcsnConfig
from diffusion.models.sliced_score_matching import SlicedScoreMatching, SlicedScoreMatchingConfig
from diffusion.networks.mlp import MLPConfig
from orchestrator.lab.family.folder import Card, save_weights

SMALL = MLPConfig(hidden=8, layers=1)


def test_one_panel_for_the_mixture_and_one_for_each_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score_matching, "NUM_POINTS", 20)
    folders = []
    for model in (
        SlicedScoreMatching(SlicedScoreMatchingConfig(network=SMALL, num_steps=3)),
        Ncsn(NcsnConfig(network=SMALL, num_levels=3, steps_per_level=1)),
    ):
        folder = tmp_path / model.name
        folder.mkdir()
        Card.of(model, {}).write(folder)
        save_weights(model, folder)
        folders.append(str(folder))
    out = tmp_path / "picture.webp"
    assert score_matching.main([*folders, "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    with Image.open(out) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] > 2.5 * pixels.shape[0]
    # Every third of the picture has points in it.
    assert all((third < 250).any() for third in np.array_split(pixels[40:], 3, axis=1))


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_matching.main([str(tmp_path)]) == 2
    assert "is no trained model" in capsys.readouterr().err
