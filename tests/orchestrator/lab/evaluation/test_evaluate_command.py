"""`orchestrator.lab.evaluation.evaluate.main` from run folders to report, with a judge that knows nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.errors import InputError
from nerf3d.toybox.heldout import held_out_prompts
from nerf3d.toybox.kinds import KINDS
from orchestrator.exports import write_glb, write_png
from orchestrator.lab.evaluation import evaluate
from orchestrator.lab.evaluation import report as reports
from orchestrator.lab.evaluation.captions import CaptionPool
from orchestrator.lab.evaluation.geometry import true_mesh
from orchestrator.lab.evaluation.judge import judge_folder, load_judge
from orchestrator.lab.evaluation.picture import GREEN, RED, Tile, labelled_sheet
from orchestrator.prior import local
from tests.fakes import load_fake_prior
from tests.orchestrator.lab.evaluation.tiny_judge import save_tiny_judge

PROMPTS = ("a red table", "a red mushroom with a white stem", "a tall vase made of glass")
"""Held out, taught, and not the toybox's."""


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> str:
    return str(save_tiny_judge(tmp_path_factory.mktemp("prior") / "judge"))


@pytest.fixture(scope="module")
def mesh_runs(tmp_path_factory) -> list[Path]:
    """Run folders of meshes: the true table, the true mushroom, and a ball for the vase."""
    folders = []
    for prompt, shape in zip(PROMPTS, ("a red table", "a mushroom", "a red ball"), strict=True):
        folder = tmp_path_factory.mktemp("run")
        write_glb(true_mesh(shape), folder / "mesh.glb", prompt=prompt)
        manifest = {"kind": "text-to-3d", "state": "succeeded", "spec": {"prompt": prompt}, "timings": {"fit": 2.5}}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        folders.append(folder)
    return folders


def scored(arguments, capsys, **options) -> tuple[dict, reports.ImagesReport | reports.MeshesReport]:
    """What `main` prints with --json, and the report that it wrote."""
    overrides = {"num_threads": "1", **options.pop("overrides", {})}
    assert evaluate.main(arguments, as_json=True, overrides=overrides, **options) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((Path(printed.pop("folder")) / "report.json").read_text())
    assert printed.pop("ok") is True and printed == written
    report = reports.from_json(written)
    assert json.loads(json.dumps(report.to_json())) == written
    return printed, report


def test_meshes(mesh_runs, judge, tmp_path, capsys):
    options = {"judge": judge, "num_views": "2", "num_captions": "200"}
    _, report = scored(["meshes", *mesh_runs], capsys, out=tmp_path / "out", overrides=options)
    table, mushroom, vase = report.items
    assert [item.prompt for item in report.items] == list(PROMPTS)
    assert [item.held_out for item in report.items] == [True, False, None]
    assert table.geometry.silhouette_iou > 0.99 and mushroom.geometry.volumetric_iou > 0.99 and vase.geometry is None
    assert report.geometry.num_objects == 2 and report.geometry.num_sound == 3
    assert report.geometry.f_score > 0.99 and table.seconds == 2.5 and table.is_watertight
    assert table.num_components == table.true_components == 1 and vase.true_components is None
    assert report.setting.num_captions == 200 and report.setting.num_views == 2
    assert report.setting.judge == str(judge), "a folder of one's own as it was given"
    assert {"coloured", "coloured, views", "coloured, held out", "textureless, taught"} < set(report.precision)
    for item in report.items:
        assert len(item.coloured.view_ranks) == 2 and 1 <= item.textureless.rank <= len(KINDS) + 1
    assert table.geometry.pose_error_degrees == 0 and report.geometry.pose_error_degrees == 0
    low, high = report.geometry.intervals["silhouette_iou"]
    assert low <= report.geometry.silhouette_iou + 1e-4 and report.geometry.silhouette_iou <= high + 1e-4
    assert report.precision["coloured, views"].num_scored == 6
    assert report.precision[reports.TRUE_OBJECTS].num_scored == 2
    assert report.precision[f"{reports.TRUE_OBJECTS}, textureless"].num_scored == 2
    with Image.open(tmp_path / "out" / "report.png") as page:
        assert page.width > 3 * 4 * 96


def test_the_judge_of_the_product_is_named_alike_on_every_machine():
    pool = CaptionPool(("a red table",), (0,), ("table",))
    setting = reports.Setting.of(load_judge(judge_folder("toybox")), pool)
    assert setting.judge == "diffusion/toybox_prior/judge"


def test_a_run_folder_alone_says_what_it_is(mesh_runs, judge, tmp_path, capsys):
    options = {"judge": judge, "num_views": 1}
    printed, _ = scored([mesh_runs[2]], capsys, out=tmp_path / "out", overrides=options)
    assert printed["kind"] == "meshes" and printed["geometry"] is None


def test_pictures_are_drawn_scored_and_kept(judge, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(local, "load_prior", load_fake_prior)
    options = {"judge": judge, "num_prompts": "6"}
    _, report = scored(["images"], capsys, out=tmp_path / "out", overrides=options)
    assert [item.prompt for item in report.items] == held_out_prompts(6)
    assert report.setting.prior == "fake" and report.precision["all"].num_scored == 6
    # What was kept can be scored again, with the same ranks.
    _, again = scored(["images", tmp_path / "out"], capsys, out=tmp_path / "again", overrides={"judge": judge})
    assert [item.judged for item in again.items] == [item.judged for item in report.items]
    assert again.setting.prior == "" and again.items[0].name == "000000000.png"
    _, taught = scored(["images"], capsys, out=tmp_path / "c", overrides={**options, "held_out": "false"})
    assert not any(item.held_out for item in taught.items)


def test_the_table_names_what_it_took_pictures_for(judge, tmp_path, capsys):
    write_png(np.zeros((16, 16, 3), np.uint8), tmp_path / "000000000.png", {"prompt": "a red table"})
    assert evaluate.main(["images", tmp_path], out=tmp_path / "out", overrides={"judge": judge, "num_threads": 1}) == 0
    shown = capsys.readouterr().out
    assert "R-Precision among 256 captions (chance 0.4%)" in shown and "report.png" in shown
    assert "taken for" in shown and "a red table" in shown


def test_the_mesh_table(mesh_runs, judge, tmp_path, capsys):
    options = {"judge": judge, "num_views": 1, "num_threads": 1}
    assert evaluate.main(["meshes", mesh_runs[0]], out=tmp_path, overrides=options) == 0
    shown = capsys.readouterr().out
    assert "silhouette IoU 1.000" in shown and "1 of 1 watertight" in shown


@pytest.mark.parametrize("missing", ["clip_config.json", "clip.safetensors", "tokenizer/merges.txt", ""])
def test_a_missing_judge_is_one_clear_sentence(missing, tmp_path):
    prior = tmp_path / "prior"
    if missing:
        (save_tiny_judge(prior / "judge") / missing).unlink()
    write_png(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.png", {"prompt": "a red table"})
    with pytest.raises(InputError, match=r"judge.*(holds no CLIP|lacks|cannot be read).*judge=FOLDER"):
        evaluate.main(["images", tmp_path], out=tmp_path / "out", overrides={"prior": str(prior), "num_threads": 1})


def test_a_damaged_judge(tmp_path):
    judge = save_tiny_judge(tmp_path / "judge")
    (judge / "clip.safetensors").write_bytes((judge / "clip.safetensors").read_bytes()[:1000])
    write_png(np.zeros((8, 8, 3), np.uint8), tmp_path / "a.png", {"prompt": "a red table"})
    with pytest.raises(InputError, match=r"cannot be read .*copy it again"):
        evaluate.main(["images", tmp_path], out=tmp_path / "o", overrides={"judge": str(judge), "num_threads": 1})


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        ([], {}, "nothing to score; say 'images' or 'meshes'"),
        (["meshs"], {}, "meshs is neither 'images' nor 'meshes' nor a folder"),
        (["meshes"], {}, "no meshes to score; give run folders"),
        (["images"], {"num_captions": "100"}, "num_captions is 100, but 200 to 4,000 is allowed"),
        (["images"], {"num_view": "3"}, "no setting 'num_view' .did you mean num_views"),
        (["images"], {"held_out": "maybe"}, "held_out is 'maybe', but true or false was expected"),
    ],
)
def test_bad_input(arguments, overrides, message, tmp_path):
    with pytest.raises(InputError, match=message):
        evaluate.main(arguments, out=tmp_path, overrides=overrides)


def test_frames_are_green_for_hits_and_red_for_misses():
    image = np.full((20, 30, 3), 7, np.uint8)
    tiles = [Tile(image, ("a hit",), GREEN), Tile(image, ("a miss", "taken for something with a long name"), RED)]
    page = labelled_sheet(tiles, num_columns=2)
    assert tuple(page[6, 6]) == GREEN and tuple(page[6, 6 + 36 + 6]) == RED and (page[12, 12] == 7).all()
    with pytest.raises(ValueError, match="all of one size"):
        labelled_sheet([tiles[0], Tile(image[:5], ("",))], num_columns=2)
