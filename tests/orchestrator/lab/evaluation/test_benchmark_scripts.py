"""The benchmark scripts, with a prior and a judge that know nothing."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks import command_times, gallery, prior_grid, run
from benchmarks.pictures import write_small_webp
from nerf3d.toybox.kinds import KINDS
from orchestrator.lab.evaluation.captions import held_out, is_toybox_prompt, kind_of
from orchestrator.prior import local
from tests.fakes import FAST_OVERRIDES, load_fake_prior
from tests.orchestrator.lab.evaluation.tiny_judge import save_tiny_judge


def test_the_gallery_is_what_the_readme_says():
    assert len(gallery.PROMPTS) == len(set(gallery.PROMPTS)) == 24
    assert all(held_out(prompt) is True for prompt in gallery.HELD_OUT) and len(gallery.HELD_OUT) == 12
    assert all(held_out(prompt) is False for prompt in gallery.TAUGHT)
    assert all(map(is_toybox_prompt, gallery.PROMPTS)) and len(set(map(kind_of, gallery.PROMPTS))) >= 16
    everything = gallery.ALL_PROMPTS
    assert everything[:24] == gallery.PROMPTS and len(set(everything)) == 64
    assert (
        sum(held_out(prompt) is True for prompt in everything) == sum(held_out(prompt) is False for prompt in everything) == 32
    )
    assert all(map(is_toybox_prompt, everything)) and set(map(kind_of, everything)) == set(KINDS)


def test_the_gallery_from_prompt_to_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local, "load_prior", load_fake_prior)
    judge = save_tiny_judge(tmp_path / "judge")
    docs = tmp_path / "docs"
    arguments = ["--first", "1", "--runs", str(tmp_path / "runs"), "--docs", str(docs), "--judge", str(judge)]
    quick = (*FAST_OVERRIDES, "export.turntable_frames=0", "export.preview_size=32", "runtime.num_threads=1")
    assert gallery.main([*arguments, *quick]) == 0
    page = (docs / "README.md").read_text()
    assert "[a red table](01-a-red-table.webp) | yes |" in page and "| coloured, views | 8 |" in page
    assert (docs / "01-a-red-table.webp").stat().st_size <= gallery.MAX_SHEET_BYTES
    assert json.loads((docs / "scores.json").read_text())["kind"] == "meshes"
    with Image.open(docs / "meshes.webp") as turning:
        assert turning.width == gallery.TURN_SIZE + 2 * 3 + 2 * 6 and turning.n_frames == gallery.TURN_FRAMES
    capsys.readouterr()
    before = (tmp_path / "runs" / "01-a-red-table" / "mesh.glb").stat().st_mtime_ns
    assert gallery.main([*arguments, *quick]) == 0
    assert (tmp_path / "runs" / "01-a-red-table" / "mesh.glb").stat().st_mtime_ns == before


def test_failures_stay_in_the_gallery(tmp_path):
    made = [gallery.Made(1, "a red table", tmp_path / "01", failure="the fit ended empty")]
    page = gallery.index(made, None, preset="default", machine="a machine")
    assert "0 of 1 prompts came to a mesh" in page and "Failed: the fit ended empty" in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1


def test_every_kind_has_its_four_prompts():
    for kind in KINDS.values():
        prompts = prior_grid.grid_prompts(kind)
        assert prompts == prior_grid.grid_prompts(kind) and {kind_of(prompt) for prompt in prompts} == {kind.name}
        assert [held_out(prompt) for prompt in prompts] == [False, False, True, True], kind.name
        if len(kind.parts) > 1:
            assert " with " in prompts[1]
            assert len(set(prior_grid.two_colour_prompts(kind))) == 4


def test_the_prior_grid(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "load_prior", load_fake_prior)
    assert prior_grid.main(["--kinds", "7", "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "prior_grid.webp") as page:
        assert page.width == 8 * (80 + 6 + 6) + 6
    assert (tmp_path / "prior_two_colours.webp").stat().st_size <= prior_grid.MAX_BYTES


def test_a_missing_prior_is_one_sentence(tmp_path, capsys):
    assert prior_grid.main(["--prior", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    assert "neither 'toybox' nor a folder" in capsys.readouterr().err


def test_command_times_are_measured_and_merged(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command_times.shutil, "which", lambda *_, **__: None)
    out = tmp_path / "times.json"
    assert command_times.main(["--only", "help", "--repeats", "1", "--out", str(out)]) == 0
    first = json.loads(out.read_text())
    [seconds] = first["commands"]["help"]["seconds"]
    assert seconds > 0 and first["machine"]["cores"] >= 1
    assert "dreamkiln --help" in capsys.readouterr().out
    command_times.save(out, first["machine"], {"draft": command_times.Measured("dreamkiln text-to-3d", 75, [70.0])})
    assert set(json.loads(out.read_text())["commands"]) == {"help", "draft"}
    command_times.save(out, {**first["machine"], "cores": 99}, {"draft": command_times.Measured("x", 75, [7.0])})
    assert set(json.loads(out.read_text())["commands"]) == {"draft"}


def test_a_command_that_fails_is_shown_as_failed(monkeypatch):
    monkeypatch.setattr(command_times.shutil, "which", lambda *_, **__: sys.executable)
    failed = command_times.measure(command_times.Command(("-c", "raise SystemExit('no')"), 1), repeats=3, extra=[])
    assert failed.error == "no" and failed.seconds == []


def test_small_pictures_stay_under_their_limit(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (150, 200, 3), np.uint8)
    path = write_small_webp(noise, tmp_path / "a.webp", max_bytes=5_000)
    assert path.stat().st_size <= 5_000
    with pytest.raises(ValueError, match="cannot be made smaller than 10 bytes"):
        write_small_webp(noise, tmp_path / "b.webp", max_bytes=10)


def test_the_list_of_benchmarks(capsys):
    assert run.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(run.QUICK)
    with pytest.raises(SystemExit):
        run.main(["nothing"])
