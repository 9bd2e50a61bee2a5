"""A mesh of somebody else: read in whatever parts and axes it comes, painted, and written where it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
import trimesh
from PIL import Image

from jobs.errors import InputError
from jobs.texture import TextureSpec
from nerf3d.surface import PaintConfig
from orchestrator.cli.main import main
from orchestrator.exports.reading import read_file
from orchestrator.run.given_mesh import GivenMesh
from orchestrator.run.texturing import texture_mesh
from orchestrator.settings.groups import ExportSettings, RuntimeSettings
from tests.fakes import load_fake_prior

FAST = PaintConfig(num_steps=12, num_views=4, resolutions=(4, 8), texture_size=64, rate=0.3)
EXPORT = ExportSettings(preview_size=16, turntable_frames=0)


def box(extents=(1.0, 2.0, 3.0), at=(0.0, 0.0, 0.0)) -> trimesh.Trimesh:
    found = trimesh.creation.box(extents)
    found.apply_translation(at)
    return found


def with_uvs(mesh: trimesh.Trimesh, uvs: np.ndarray, colour=(200, 30, 30)) -> trimesh.Trimesh:
    picture = Image.new("RGB", (8, 8), colour)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uvs, image=picture)
    return mesh


def test_parts_of_a_scene_are_joined_where_their_nodes_put_them(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(box(), transform=trimesh.transformations.translation_matrix([5, 0, 0]))
    scene.add_geometry(box(), transform=np.diag([-1.0, 1, 1, 1]))
    scene.export(tmp_path / "two.glb")
    mesh = GivenMesh.read(tmp_path / "two.glb").mesh
    np.testing.assert_allclose(mesh.bounds, [[-0.5, -1, -1.5], [5.5, 1, 1.5]])
    assert len(mesh.faces) == 24 and mesh.volume == pytest.approx(12) and mesh.texture is None


def test_ply_stands_on_z_and_obj_on_y_unless_told(tmp_path):
    for name in ("a.ply", "a.obj"):
        box().export(tmp_path / name)
    extents = {up: GivenMesh.read(tmp_path / name, up=up).mesh.extents for name, up in (("a.ply", None), ("a.ply", "y"))}
    np.testing.assert_allclose(extents[None], [1, 3, 2])
    np.testing.assert_allclose(extents["y"], [1, 2, 3])
    np.testing.assert_allclose(GivenMesh.read(tmp_path / "a.obj").mesh.extents, [1, 2, 3])


def test_an_inside_out_mesh_is_turned_outwards(tmp_path):
    mesh = box()
    mesh.invert()
    mesh.export(tmp_path / "in.obj")
    found = GivenMesh.read(tmp_path / "in.obj").mesh
    assert found.volume == pytest.approx(6) and "wound inwards" in found.notes[0].text
    assert (np.einsum("ni,ni->n", found.normals, found.vertices) > 0).all()


def test_a_usable_uv_map_is_kept_and_another_is_dropped_with_a_note(tmp_path):
    square = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], [[0, 1, 2], [0, 2, 3]], process=False)
    flat = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    with_uvs(square.copy(), flat).export(tmp_path / "good.glb")
    kept = GivenMesh.read(tmp_path / "good.glb").mesh
    assert kept.texture is not None and tuple(kept.texture.base_colour[0, 0]) == (200, 30, 30) and not kept.notes
    # v runs down in a picture: the vertex at the origin lies at its lower left.
    np.testing.assert_allclose(kept.texture.uv_map.uvs[0], [0, 1], atol=1e-6)
    with_uvs(square.copy(), 3 * flat).export(tmp_path / "tiled.glb")
    assert "leaves the picture" in GivenMesh.read(tmp_path / "tiled.glb").mesh.notes[0].text
    with_uvs(square.copy(), flat[[0, 1, 2, 1]]).export(tmp_path / "folded.glb")
    folded = GivenMesh.read(tmp_path / "folded.glb").mesh
    assert folded.texture is None and "overlaps itself" in folded.notes[0].text


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.fbx", b"", r"x\.fbx has none of the suffixes.*\.glb, \.gltf, \.obj, \.ply"),
        ("none.obj", None, r"There is no mesh .*none\.obj"),
        ("bad.glb", b"glTF nonsense", r"bad\.glb cannot be read as a mesh \("),
        ("points.obj", b"v 0 0 0\nv 1 0 0\n", r"points\.obj (holds no faces|cannot be read)"),
        (
            "flat.obj",
            b"v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n",
            r"flat\.obj (has vertices.* in one place|cannot be read|holds no faces)",
        ),
    ],
)
def test_what_cannot_be_painted_is_said(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        GivenMesh.read(tmp_path / name)


def test_a_mesh_is_painted_where_it_stands_in_its_own_size(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=2, radius=3.0)
    ball.apply_translation([10, 20, 30])
    ball.export(tmp_path / "ball.ply")
    given = GivenMesh.read(tmp_path / "ball.ply")
    spec = TextureSpec(prompt="a red ball", mesh_sha256=given.digest, up=given.up, texture=FAST, formats=("glb", "ply", "obj"))
    settings = RuntimeSettings(kind="inline", device="cpu")
    job = {"out": tmp_path / "run", "export": EXPORT, "runtime": settings, "load_prior": load_fake_prior}
    outcome = texture_mesh(spec, given, **job)
    assert {"mesh.glb", "mesh.ply", "mesh.obj", "preview.png"} <= set(outcome.artefacts)
    glb, ply = read_file(tmp_path / "run/mesh.glb"), read_file(tmp_path / "run/mesh.ply")
    np.testing.assert_allclose(ply.triangles.mean((0, 1)), [10, 20, 30], atol=0.05)
    np.testing.assert_allclose(glb.triangles.mean((0, 1)), [10, 30, -20], atol=0.05)
    mean = glb.picture.reshape(-1, 3).mean(0)
    assert mean[0] > 190 and mean[1] < 135 and mean[2] < 135  # the fake prior sees red balls
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["kind"] == "texture" and manifest["state"] == "succeeded"
    assert manifest["metrics"]["prior_score"] > manifest["metrics"]["prior_score_before"]
    assert texture_mesh(spec, given, **job).did == "nothing to do"


def test_the_verb_refuses_before_it_loads_anything(tmp_path, capsys):
    assert main(["texture", str(tmp_path / "no.glb"), "a red ball"]) == 2
    assert "There is no mesh" in capsys.readouterr().err
    box().export(tmp_path / "a.obj")
    assert main(["texture", str(tmp_path / "a.obj"), "a red ball", "--up", "x"]) == 2
    assert "--up is 'x', but y or z was expected" in capsys.readouterr().err
    assert main(["texture", str(tmp_path / "a.obj"), "a red ball", "texture.rate=0"]) == 2
    assert "rate is 0" in capsys.readouterr().err
