"""Pictures and meshes read back from what a job leaves."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from torch.testing import assert_close

from jobs.errors import InputError
from orchestrator.exports import Placement, write_glb, write_png
from orchestrator.exports.reading import linear_to_srgb, read_glb
from orchestrator.exports.transform import place, srgb_to_linear
from orchestrator.lab.evaluation.image_sets import Picture, as_tensor, draw_pictures, read_pictures
from orchestrator.lab.evaluation.mesh_sets import differences, read_mesh
from orchestrator.prior.local import LocalPrior
from tests.fakes import FakePrior, load_fake_prior
from tests.orchestrator.exports.sample_meshes import tower


def test_a_glb_comes_back_as_it_was_placed(tmp_path):
    [path] = write_glb(tower(), tmp_path / "mesh.glb", Placement(size_metres=2.0))
    mesh, expected = read_glb(path), place(tower(), longest_side=2.0)
    for name in ("vertices", "faces", "normals"):
        np.testing.assert_array_equal(getattr(mesh, name), getattr(expected, name))
    np.testing.assert_allclose(mesh.colours, expected.colours, atol=1e-4)
    assert mesh.is_watertight and mesh.num_components == 3


def test_srgb_and_linear_are_inverses():
    colours = np.linspace(0, 1, 101)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(colours)), colours, atol=1e-6)


def test_a_damaged_glb_is_named(tmp_path):
    [path] = write_glb(tower(), tmp_path / "mesh.glb")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"mesh\.glb cannot be read as a mesh of ours"):
        read_glb(path)


def write_manifest(folder, **changes):
    manifest = {"kind": "text-to-3d", "state": "succeeded", "spec": {"prompt": "a red car"}, "timings": {"fit": 3.0, "mesh": 1}}
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_a_run_of_text_to_3d(tmp_path):
    write_manifest(tmp_path)
    with pytest.raises(InputError, match=r"has no mesh\.glb \(its state is 'succeeded'\)"):
        read_mesh(tmp_path)
    write_glb(tower(), tmp_path / "mesh.glb")
    made = read_mesh(tmp_path)
    assert (made.prompt, made.name, made.seconds) == ("a red car", tmp_path.name, 4.0)
    write_manifest(tmp_path, kind="images")
    with pytest.raises(InputError, match="holds a run of 'images', but one of 'text-to-3d' was expected"):
        read_mesh(tmp_path)
    with pytest.raises(InputError, match="is not a run folder: its manifest"):
        read_mesh(tmp_path / "nowhere")


def test_runs_of_one_prompt_are_told_apart(tmp_path):
    """By folder and by what was asked differently; a run that has its prompt alone needs no more words."""
    specs = {
        "a": {"prompt": "a red car", "seed": 0, "fit": {"num_steps": 160, "radius": 2.7}},
        "b": {"prompt": "a red car", "seed": 1, "fit": {"num_steps": 400, "radius": 2.7}},
        "c": {"prompt": "a blue car", "seed": 2, "fit": {"num_steps": 400, "radius": 2.7}},
    }
    for name, spec in specs.items():
        write_manifest(tmp_path / name, spec=spec)
        write_glb(tower(), tmp_path / name / "mesh.glb")
    meshes = [read_mesh(tmp_path / name) for name in specs]
    assert differences(meshes) == ["a, seed=0, fit.num_steps=160", "b, seed=1, fit.num_steps=400", ""]


def test_pictures_of_a_run_without_its_overviews(tmp_path):
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    for name in ("000000001.png", "000000000.png", "grid.png", "other.png"):
        write_png(pixels, tmp_path / name, {"prompt": "a red car"})
    pictures = read_pictures(tmp_path)
    assert [picture.name for picture in pictures] == ["000000000.png", "000000001.png"]
    np.testing.assert_array_equal(pictures[0].pixels, pixels)


def test_any_folder_of_pictures_with_prompts(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    write_png(pixels, tmp_path / "b.png", {"prompt": "a red car"})
    write_png(pixels, tmp_path / "a.png")
    assert [picture.name for picture in read_pictures(tmp_path)] == ["b.png"]
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"c\.png is not a readable picture"):
        read_pictures(tmp_path)


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(InputError, match="holds no PNG with a prompt"):
        read_pictures(tmp_path)
    with pytest.raises(InputError, match="is not a folder; give run folders"):
        read_pictures(tmp_path / "nowhere")


def test_pictures_of_another_size_are_resampled():
    picture = Picture(np.full((20, 20, 3), 51, np.uint8), "a ball", "x")
    tensor = as_tensor([picture, picture], 8)
    assert tensor.shape == (2, 3, 8, 8)
    assert_close(tensor, tensor.new_full(tensor.shape, 0.2))


def test_drawn_pictures_follow_the_prompts_in_order():
    prompts = ["a red ball", "a green ball", "a blue ball"] * 3
    chunks = list(draw_pictures(load_fake_prior("toybox"), prompts, seed=5))
    drawn = [picture for chunk in chunks for picture in chunk]
    assert [len(chunk) for chunk in chunks] == [8, 1]
    assert [picture.prompt for picture in drawn] == prompts
    assert [picture.name for picture in drawn] == [f"seed {n}" for n in range(5, 14)]
    assert [int(picture.pixels[8, 8].argmax()) for picture in drawn] == [0, 1, 2] * 3


def test_another_prior_is_drawn_as_its_owners_draw_it(tmp_path):
    """Not with the toybox's guidance of 3, its rescale and its 20 steps."""
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    asked = []

    class Listening(LocalPrior):
        def generate(self, request):
            asked.append(request)
            return super().generate(dataclasses.replace(request, num_steps=2))

    list(draw_pictures(Listening(FakePrior()), ["a red ball"], source=str(tmp_path)))
    (request,) = asked
    assert (request.num_steps, request.sampler, request.guidance.scale, request.guidance.rescale) == (50, "ddim", 7.5, 0.0)
