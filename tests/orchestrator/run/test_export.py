"""Finished runs cut again: from the checkpoint, into the same folder or another, without a prior."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import trimesh

from jobs.errors import InputError
from jobs.specs import TextTo3DSpec
from orchestrator.cli.main import main
from orchestrator.exports.reading import read_file
from orchestrator.host.progress_display import SilentDisplay
from orchestrator.run.export import FinishedRun, export_run
from orchestrator.run.perform import perform
from orchestrator.settings.groups import ExportSettings, RuntimeSettings
from tests.fakes import FAST_FIT, FAST_MESH, load_fake_prior

SPEC = TextTo3DSpec(prompt="a red ball", fit=FAST_FIT, mesh=FAST_MESH)
EXPORT = ExportSettings(preview_size=32, turntable_frames=0)


class Listen(SilentDisplay):
    def __init__(self):
        self.told = []

    def message(self, text, level="info"):
        self.told.append(text)


def run(spec, out, display=None):
    return perform(
        *(spec,),
        out=out,
        export=dataclasses.replace(EXPORT, formats=spec.formats),
        runtime=RuntimeSettings(kind="inline", device="cpu"),
        display=display,
        load_prior=load_fake_prior,
    )


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(SPEC, folder)
    return folder


@pytest.fixture
def finished(original, tmp_path):
    """A copy of a finished run that the test may change."""
    return shutil.copytree(original, tmp_path / "run")


def test_an_export_without_settings_gives_the_same_bytes(finished):
    before = (finished / "mesh.glb").read_bytes()
    outcome = export_run(finished)
    assert (finished / "mesh.glb").read_bytes() == before
    assert set(outcome.artefacts) == {"mesh.glb", "preview.png"} and manifest(finished)["state"] == "succeeded"
    assert len(manifest(finished)["attempts"]) == 2


def test_a_run_is_cut_again_into_another_folder(finished, tmp_path):
    before = manifest(finished)
    settings = {"mesh.max_faces": "300", "mesh.texture_size": "64", "export.formats": '["glb","stl","ply"]'}
    settings |= {"export.print_millimetres": "40", "export.origin": "base", "mesh.lods": "[150]"}
    outcome = export_run(finished, settings, out=tmp_path / "other")
    assert manifest(finished) == before
    names = {"mesh.glb", "mesh.stl", "mesh.ply", "mesh_lod1.glb", "mesh_lod1.stl", "mesh_lod1.ply", "preview.png"}
    assert set(outcome.artefacts) == names
    found = manifest(tmp_path / "other")
    assert found["spec"]["mesh"]["max_faces"] == 300 and found["exported_from"] == str(finished)
    assert found["metrics"]["num_faces"] <= 300 and found["timings"] == before["timings"]
    assert found["artefacts"]["mesh.glb"]["holds"]["colours"] == "a texture of 64 texels"
    assert found["artefacts"]["mesh_lod1.glb"]["holds"]["num_faces"] <= 150
    printed = read_file(tmp_path / "other" / "mesh.stl").triangles.reshape(-1, 3)
    assert printed[:, 2].min() == pytest.approx(0, abs=1e-5)
    assert (printed.max(0) - printed.min(0)).max() == pytest.approx(40, rel=1e-4)
    with pytest.raises(InputError, match=r"no checkpoint.safetensors .* export .* instead, where it came from"):
        export_run(tmp_path / "other")


def test_a_run_that_was_cut_again_is_still_the_same_job(finished):
    export_run(finished, {"mesh.max_faces": "300"})
    assert len(trimesh.load_mesh(finished / "mesh.glb").faces) <= 300
    again = Listen()
    outcome = run(dataclasses.replace(SPEC, mesh=dataclasses.replace(FAST_MESH, max_faces=300)), finished, again)
    assert outcome.did == "nothing to do" and not again.told
    outcome = run(SPEC, finished, again)
    assert outcome.did == "nothing to do"
    assert f"dreamkiln export {finished} mesh.max_faces=1000" in again.told[0] and "max_faces 300, not 1000" in again.told[0]


def test_files_of_an_earlier_cut_are_named_and_edited_ones_are_not_replaced(finished):
    export_run(finished, {"export.formats": '["glb","stl"]'})
    display = Listen()
    export_run(finished, {"export.formats": '["glb"]', "mesh.max_faces": "200"}, display=display)
    assert any("mesh.stl is of an earlier cut" in text for text in display.told)
    (finished / "mesh.glb").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"mesh.glb was changed since it was written and would be replaced"):
        export_run(finished)
    assert (finished / "mesh.glb").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fit.num_steps": "5"}, "fit.num_steps cannot be changed by an export"),
        ({"mesh": "fine"}, "mesh cannot be changed by an export"),
        ({"mesh.max_facs": "5"}, r"no setting 'mesh.max_facs' \(did you mean max_faces"),
        ({"mesh.max_faces": "5"}, "max_faces is 5"),
        ({"export.origin": "left"}, "export.origin is 'left'"),
        ({"export.formats": '["fbx"]'}, "There is no mesh format fbx"),
    ],
)
def test_what_an_export_cannot_change_is_said(finished, settings, message):
    with pytest.raises(InputError, match=message):
        export_run(finished, settings)


def test_only_finished_fits_are_exported(finished, tmp_path):
    with pytest.raises(InputError, match="is not a run folder"):
        FinishedRun.read(tmp_path)
    unfinished = manifest(finished)
    unfinished["spec"]["fit"]["num_steps"] += 1
    (finished / "manifest.json").write_text(json.dumps(unfinished))
    with pytest.raises(InputError, match=r"The fit in .* stands at step 30 of 31; repeat its command"):
        FinishedRun.read(finished)
    (finished / "checkpoint.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match=r"has no checkpoint\.safetensors that can be read"):
        FinishedRun.read(finished)


def test_another_field_than_the_settings_describe_is_said(finished):
    other = manifest(finished)
    other["spec"]["fit"]["field"]["resolutions"] = [4, 8]
    (finished / "manifest.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="does not hold the field that its settings describe"):
        export_run(finished, out=finished.parent / "elsewhere")


def test_the_command_exports_many_runs_and_says_which_failed(finished, tmp_path, capsys):
    out = tmp_path / "all"
    assert (
        main(["export", str(finished), str(tmp_path / "none"), "mesh.max_faces=200", "--out", str(out), "--format", "ply"]) == 1
    )
    printed = capsys.readouterr()
    assert "1 of 2 runs could not be exported" in printed.err and str(out / "run" / "mesh.ply") in printed.out
    assert main(["export", str(finished), "--json"]) == 0
    [report] = json.loads(capsys.readouterr().out)["runs"]
    assert set(report["artefacts"]) == {"mesh.glb", "preview.png"}
    assert main(["export", "mesh.max_faces=200"]) == 2
    assert "There is no run to export" in capsys.readouterr().err
