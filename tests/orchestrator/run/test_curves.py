"""How a fit went: curves out of progress.jsonl, progress.png, TensorBoard's events, and the figures behind them."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.errors import InputError
from jobs.fit_figures import GuideGradients
from jobs.specs import TextTo3DSpec
from orchestrator.run.curves import Curve, fit_curves, write_progress_picture
from orchestrator.run.perform import perform
from orchestrator.settings.groups import ExportSettings, RuntimeSettings
from tests.fakes import FAST_FIT, FAST_MESH, load_fake_prior

SPEC = TextTo3DSpec(prompt="a red ball", fit=dataclasses.replace(FAST_FIT, num_steps=8), mesh=FAST_MESH)


def run(out, **runtime):
    settings = RuntimeSettings(kind="inline", device="cpu", **runtime)
    export = ExportSettings(preview_size=16, turntable_frames=0)
    return perform(SPEC, out=out, export=export, runtime=settings, load_prior=load_fake_prior)


def test_of_a_step_made_twice_the_last_value_counts_and_torn_lines_are_passed_over(tmp_path):
    lines = [
        {"attempt": 1, "stage": "fit", "step": 1, "total": 3, "loss": 3.0},
        {"attempt": 1, "stage": "fit", "step": 2, "total": 3, "loss": 2.0, "score": 0.25},
        {"attempt": 2, "stage": "fit", "step": 2, "total": 3, "loss": 1.0},
        {"attempt": 2, "stage": "mesh", "step": 1, "total": 1},
    ]
    path = tmp_path / "progress.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"attempt": 2, "sta')
    assert fit_curves(path) == {"loss": Curve((1, 2), (3.0, 1.0)), "score": Curve((2,), (0.25,))}
    assert fit_curves(tmp_path / "nothing.jsonl") == {}


def test_smoothing_is_the_running_mean():
    assert Curve((1, 2, 3, 4, 5), (1.0, 2.0, 6.0, 4.0, 5.0)).smoothed(3) == Curve((2, 3, 4), (3.0, 4.0, 5.0))
    assert Curve((1,), (7.0,)).smoothed(0) == Curve((1,), (7.0,))


def test_gradients_are_root_mean_squares_by_quarter_of_the_schedule():
    gradients = GuideGradients(1000)
    values = torch.ones(4, 3, 2, 2) * torch.tensor([1.0, 3.0, 5.0, 7.0])[:, None, None, None]
    gradients.add(torch.tensor([0, 249, 250, 999]), values)
    assert gradients.take() == {"gradient_t0_25": 2.0, "gradient_t25_50": 5.0, "gradient_t75_100": 7.0}
    assert gradients.take() == {}


def test_a_run_leaves_its_curves_as_a_picture_and_as_events(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, score_every=4, tensorboard=True)
    curves = fit_curves(tmp_path / "progress.jsonl")
    assert curves["score"].steps == (4, 8) and curves["opacity"].steps == tuple(range(1, 9))
    assert np.isfinite(curves["score"].values).all()
    told = [curves[name].steps for name in curves if name.startswith("gradient_t")]
    assert told and set(told) == {(5,)}
    with Image.open(tmp_path / "progress.png") as picture:
        assert picture.size == (1000, 640)
    assert "progress.png" in json.loads((tmp_path / "manifest.json").read_text())["artefacts"]
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    loss = events.Scalars("fit/loss")
    assert [event.step for event in loss] == list(range(1, 9))
    assert [event.value for event in loss] == pytest.approx(curves["loss"].values, rel=1e-5)
    assert "seconds/guide" in events.Tags()["scalars"] and "fit/score" in events.Tags()["scalars"]


def test_a_scored_fit_ends_as_one_that_is_not(tmp_path):
    run(tmp_path / "scored", score_every=2)
    run(tmp_path / "not", score_every=0)
    assert (tmp_path / "scored/mesh.glb").read_bytes() == (tmp_path / "not/mesh.glb").read_bytes()
    assert "score" not in fit_curves(tmp_path / "not/progress.jsonl")


def test_a_title_is_shown_as_it_is_and_without_curves_there_is_no_picture(tmp_path):
    curve = Curve((1, 2), (0.5, 0.25))
    assert write_progress_picture({"loss": curve}, tmp_path / "a.png", title=r"$\frac$ " + "x" * 200) == tmp_path / "a.png"
    assert write_progress_picture({}, tmp_path / "b.png", title="x") is None and not (tmp_path / "b.png").exists()


def test_settings_of_watching_are_checked(monkeypatch):
    with pytest.raises(InputError, match=r"runtime\.score_every is -1; give 0"):
        RuntimeSettings(score_every=-1)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs the package tensorboard.*pip install 'dreamkiln\[tensorboard\]'"):
        RuntimeSettings(tensorboard=True)
