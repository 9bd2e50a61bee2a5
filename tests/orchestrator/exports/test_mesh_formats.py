"""Every mesh format read back: axes, size, colours, material, and agreement between the formats."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pygltflib
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.errors import OutputError
from nerf3d.cameras import Cameras
from nerf3d.mesh import Mesh, draw_mesh
from nerf3d.mesh.mesh import vertex_normals
from orchestrator.exports import MESH_WRITERS, Placement, write_glb, write_obj, write_ply, write_stl
from orchestrator.exports.check import check_file
from orchestrator.exports.marks import DIGITAL_SOURCE_TYPE
from orchestrator.exports.reading import read_file, read_glb
from orchestrator.exports.transform import place, srgb_to_linear
from tests.orchestrator.exports.sample_meshes import painted_tower, tower

VALIDATOR = Path(__file__).parents[2] / "gltf_validator"


def accessor(document: pygltflib.GLTF2, number: int) -> np.ndarray:
    """An accessor's rows, read by hand from the binary chunk."""
    entry = document.accessors[number]
    view = document.bufferViews[entry.bufferView]
    dtype = {5125: "<u4", 5126: "<f4", 5123: "<u2"}[entry.componentType]
    width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}[entry.type]
    data = document.binary_blob()[view.byteOffset : view.byteOffset + view.byteLength]
    return np.frombuffer(data, dtype).reshape(entry.count, width)


def test_glb_fields(tmp_path):
    mesh = tower()
    prompt = 'a "red" 塔 🍄\nwith a knob'
    [path] = write_glb(mesh, tmp_path / "mesh.glb", Placement(size_metres=2.0), prompt=prompt)
    document = pygltflib.GLTF2().load(str(path))
    assert document.asset.version == "2.0" and document.asset.generator.startswith("DreamKiln")
    assert document.nodes[0].extras == {"prompt": prompt}
    assert document.asset.extras == {"prompt": prompt, "digitalSourceType": DIGITAL_SOURCE_TYPE}
    assert not document.extensionsRequired
    [material] = document.materials
    assert material.pbrMetallicRoughness.metallicFactor == 0
    assert material.pbrMetallicRoughness.roughnessFactor == 0.8
    assert material.pbrMetallicRoughness.baseColorFactor == [1, 1, 1, 1]
    assert material.alphaMode == "OPAQUE" and not material.doubleSided
    node = document.nodes[0]
    assert not any((node.matrix, node.rotation, node.translation, node.scale))
    [primitive] = document.meshes[0].primitives
    assert primitive.material == 0

    positions = accessor(document, primitive.attributes.POSITION)
    entry = document.accessors[primitive.attributes.POSITION]
    assert entry.min == positions.min(0).tolist() and entry.max == positions.max(0).tolist()
    np.testing.assert_allclose(positions.min(0) + positions.max(0), 0, atol=1e-6)
    assert (positions.max(0) - positions.min(0))[1] == pytest.approx(2.0, abs=1e-6)
    np.testing.assert_array_equal(accessor(document, primitive.indices).reshape(-1, 3), mesh.faces)
    np.testing.assert_allclose(accessor(document, primitive.attributes.NORMAL), mesh.normals)
    colours = accessor(document, primitive.attributes.COLOR_0)
    assert document.accessors[primitive.attributes.COLOR_0].normalized
    np.testing.assert_allclose(colours[:, :3] / 65535, srgb_to_linear(mesh.colours), atol=1e-5)
    assert colours[0, 0] / 65535 == pytest.approx(0.214, abs=1e-3)  # sRGB 0.5
    assert (colours[:, 3] == 65535).all()


def test_srgb_to_linear_at_known_points():
    np.testing.assert_allclose(srgb_to_linear(np.array([0, 0.04045, 0.5, 1])), [0, 0.0031308, 0.2140411, 1], atol=1e-6)


def test_glb_without_a_prompt_still_says_that_a_model_made_it(tmp_path):
    [path] = write_glb(tower(), tmp_path / "mesh.glb")
    assert pygltflib.GLTF2().load(str(path)).asset.extras == {"digitalSourceType": DIGITAL_SOURCE_TYPE}


@pytest.mark.parametrize(
    ("name", "unit", "left", "up", "front"),
    [
        ("glb", 1, (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ("obj", 1, (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ("gltf", 1, (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ("usdz", 1, (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ("ply", 1, (1, 0, 0), (0, 0, 1), (0, -1, 0)),
        ("stl", 1000, (1, 0, 0), (0, 0, 1), (0, -1, 0)),
        ("3mf", 1000, (1, 0, 0), (0, 0, 1), (0, -1, 0)),
    ],
)
@pytest.mark.parametrize("make", [tower, painted_tower])
def test_axes_and_size_of_each_format(tmp_path, make, name, unit, left, up, front):
    mesh = make()
    MESH_WRITERS[name](mesh, tmp_path / f"mesh.{name}", Placement(size_metres=0.5, print_millimetres=500))
    loaded = read_file(tmp_path / f"mesh.{name}")
    corners = loaded.triangles.reshape(-1, 3)
    np.testing.assert_allclose(corners.min(0) + corners.max(0), 0, atol=1e-5 * unit)
    assert np.dot(np.ptp(corners, axis=0), np.abs(up)) == pytest.approx(0.5 * unit, rel=1e-5)
    frame = np.array([left, up, front], float)
    # The triangles themselves, turned back, are the placed originals: no mirror, no other order.
    expected = place(mesh, longest_side=0.5 * unit)
    np.testing.assert_allclose(loaded.triangles @ frame.T, expected.vertices[expected.faces], atol=2e-6 * unit, rtol=1e-5)


@pytest.mark.parametrize("name", MESH_WRITERS)
def test_an_object_may_stand_on_its_base(tmp_path, name):
    MESH_WRITERS[name](tower(), tmp_path / f"mesh.{name}", Placement(origin="base"))
    corners = read_file(tmp_path / f"mesh.{name}").triangles.reshape(-1, 3)
    upwards = 2 if name in ("ply", "stl", "3mf") else 1
    assert corners[:, upwards].min() == pytest.approx(0, abs=1e-6)
    sideways = np.delete(corners, upwards, axis=1)
    np.testing.assert_allclose(sideways.min(0) + sideways.max(0), 0, atol=1e-4)


@pytest.mark.parametrize("name", MESH_WRITERS)
def test_every_format_has_the_same_colours(tmp_path, name):
    mesh = tower()
    MESH_WRITERS[name](mesh, tmp_path / f"mesh.{name}")
    found = read_file(tmp_path / f"mesh.{name}").colours
    if name == "stl":
        assert found is None
    else:
        np.testing.assert_allclose(found, mesh.colours[mesh.faces], atol=0.003)


@pytest.mark.parametrize("name", ["glb", "gltf", "obj", "usdz"])
def test_every_format_that_holds_pictures_has_the_same_texture(tmp_path, name):
    mesh = painted_tower()
    written = MESH_WRITERS[name](mesh, tmp_path / f"mesh.{name}")
    found, uv_map = read_file(tmp_path / f"mesh.{name}"), mesh.texture.uv_map
    np.testing.assert_array_equal(found.picture, mesh.texture.base_colour)
    np.testing.assert_allclose(found.uvs, uv_map.uvs[uv_map.faces], atol=2e-6)
    if name != "obj":  # whose normal map trimesh does not know
        np.testing.assert_array_equal(found.normal_map, mesh.texture.normal_map)
    beside = {"gltf": {"mesh.bin"}, "obj": {"mesh.mtl"}}.get(name)
    pictures = {"mesh_base_colour.png", "mesh_normal.png"} if beside else set()
    assert written[0].name == f"mesh.{name}"
    assert (
        {path.name for path in written}
        == {path.name for path in tmp_path.iterdir()}
        == {f"mesh.{name}", *(beside or ()), *pictures}
    )


def test_a_textured_glb_has_a_full_material_and_no_vertex_colours(tmp_path):
    [path] = write_glb(painted_tower(), tmp_path / "mesh.glb")
    document = pygltflib.GLTF2().load(str(path))
    [material], [primitive] = document.materials, document.meshes[0].primitives
    surface = material.pbrMetallicRoughness
    assert (surface.metallicFactor, surface.roughnessFactor, surface.baseColorFactor) == (0, 0.8, [1, 1, 1, 1])
    assert document.images[surface.baseColorTexture.index].name == "base_colour"
    assert document.images[material.normalTexture.index].name == "normal"
    assert primitive.attributes.COLOR_0 is None and primitive.attributes.TANGENT is not None
    assert document.samplers[0].wrapS == document.samplers[0].wrapT == 33071  # clamped to the edge
    assert all(view.byteOffset % 4 == 0 for view in document.bufferViews)


def test_a_textured_glb_reads_back_as_the_mesh_that_it_was(tmp_path):
    mesh = place(painted_tower(), longest_side=1)
    [path] = write_glb(painted_tower(), tmp_path / "mesh.glb")
    found = read_glb(path)
    assert found.is_watertight == mesh.is_watertight
    np.testing.assert_allclose(found.vertices[found.faces], mesh.vertices[mesh.faces], atol=1e-6)
    cameras = Cameras.orbit([20, 200], 20)
    for shading in ("albedo", "lambert"):
        seen, expected = (draw_mesh(m, cameras, 64, shading=shading)[0] for m in (found, mesh))
        np.testing.assert_allclose(seen, expected, atol=1e-4)


@pytest.mark.parametrize("make", [tower, painted_tower])
@pytest.mark.parametrize("name", MESH_WRITERS)
def test_what_is_written_is_checked(tmp_path, name, make):
    mesh, placement = make(), Placement(size_metres=2, print_millimetres=60, origin="base")
    MESH_WRITERS[name](mesh, tmp_path / f"mesh.{name}", placement)
    report = check_file(tmp_path / f"mesh.{name}", mesh, placement)
    is_print, is_textured = name in ("stl", "3mf"), make is painted_tower and name in ("glb", "gltf", "obj", "usdz")
    assert report["num_faces"] == len(mesh.faces) and report["is_closed"]
    assert max(report["size"]) == pytest.approx(60 if is_print else 2)
    assert report["unit"] == ("millimetre" if is_print else "metre")
    assert report["up"] == ("z" if name in ("ply", "stl", "3mf") else "y")
    assert report["colours"] == ("a texture of 64 texels" if is_textured else "none" if name == "stl" else "vertices")


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("ply", lambda m: dataclasses.replace(m, colours=1 - m.colours), "a colour is 1 off"),
        ("stl", lambda m: dataclasses.replace(m, vertices=m.vertices * (1, 1, 1.1)), "a corner lies .* from its place"),
        ("glb", lambda m: dataclasses.replace(m, faces=m.faces[:-1]), r"it holds \d+ faces instead of"),
    ],
)
def test_a_file_that_is_not_the_mesh_is_refused(tmp_path, name, change, fault):
    MESH_WRITERS[name](tower(), tmp_path / f"mesh.{name}")
    with pytest.raises(OutputError, match=f"read back, but {fault}"):
        check_file(tmp_path / f"mesh.{name}", change(tower()), Placement())


def test_another_picture_and_a_damaged_file_are_refused(tmp_path):
    mesh = painted_tower()
    [path] = write_glb(mesh, tmp_path / "mesh.glb")
    other = dataclasses.replace(mesh.texture, base_colour=255 - mesh.texture.base_colour)
    with pytest.raises(OutputError, match="its picture is not that of the mesh"):
        check_file(path, dataclasses.replace(mesh, texture=other), Placement())
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(OutputError, match="it cannot be read"):
        check_file(path, mesh, Placement())


def test_obj_names_a_material_that_lies_beside_it(tmp_path):
    written = write_obj(tower(), tmp_path / "my thing.obj", prompt="two\nlines")
    assert [path.name for path in written] == ["my thing.obj", "my thing.mtl"]
    lines = written[0].read_text().splitlines()
    assert "# two lines" in lines
    assert f"mtllib {written[1].name}" in lines and "usemtl vertex_colours" in lines
    material = written[1].read_text().splitlines()
    assert "newmtl vertex_colours" in material and "Kd 1 1 1" in material
    assert {line.split(" ")[0] for line in lines} == {"#", "mtllib", "o", "v", "vn", "usemtl", "s", "f"}


def test_ply_and_stl_are_binary_with_normals(tmp_path):
    mesh = tower()
    [ply] = write_ply(mesh, tmp_path / "mesh.ply")
    header = ply.read_bytes().split(b"end_header")[0]
    assert b"binary_little_endian" in header and b"property float nx" in header and b"property uchar red" in header
    [stl] = write_stl(mesh, tmp_path / "mesh.stl")
    assert stl.stat().st_size == 84 + 50 * len(mesh.faces)
    assert not stl.read_bytes().startswith(b"solid")


def test_size_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="longest side is -1"):
        write_glb(tower(), tmp_path / "mesh.glb", Placement(size_metres=-1))
    with pytest.raises(ValueError, match="in one place"):
        place(Mesh(np.zeros((3, 3)), [[0, 1, 2]], np.ones((3, 3)), np.ones((3, 3))), longest_side=1)
    assert not list(tmp_path.iterdir())


def test_the_same_mesh_gives_the_same_bytes(tmp_path):
    for name, write in MESH_WRITERS.items():
        [first, *_], [second, *_] = (write(tower(), tmp_path / f"{turn}.{name}", prompt="x") for turn in "ab")
        a, b = (path.read_bytes().replace(b"a.mtl", b"b.mtl").replace(b"a.bin", b"b.bin") for path in (first, second))
        assert hashlib.sha256(a).digest() == hashlib.sha256(b).digest(), name


@st.composite
def random_meshes(draw) -> Mesh:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num = draw(st.integers(4, 40))
    vertices = rng.uniform(-1, 1, (num, 3)) * 10.0 ** draw(st.integers(-2, 2)) + rng.uniform(-1, 1, 3)
    corners = np.stack([rng.permutation(num)[:3] for _ in range(draw(st.integers(2, 60)))])
    corners[: num // 3 + 1] = np.resize(rng.permutation(num), (num // 3 + 1, 3))[: len(corners)]
    return Mesh(vertices, corners, vertex_normals(vertices, corners), rng.uniform(0, 1, (num, 3)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mesh=random_meshes(), size=st.floats(0.01, 100))
def test_round_trip_of_any_mesh(tmp_path, mesh, size):
    for name, write in MESH_WRITERS.items():
        unit = 1000 if name in ("stl", "3mf") else 1
        write(mesh, tmp_path / f"mesh.{name}", Placement(size_metres=size, print_millimetres=1000 * size))
        loaded = read_file(tmp_path / f"mesh.{name}")
        expected = place(mesh, longest_side=size * unit, up="z" if name in ("ply", "stl", "3mf") else "y")
        assert loaded.triangles.shape == (len(mesh.faces), 3, 3)
        # 3MF has six digits behind the point.
        np.testing.assert_allclose(loaded.triangles, expected.vertices[expected.faces], atol=2e-6 * size * unit + 1e-6)
        if loaded.colours is not None:
            np.testing.assert_allclose(loaded.colours, mesh.colours[mesh.faces], atol=0.003)


@pytest.fixture(scope="session")
def validator() -> Path:
    """A folder with the validator installed, once for each environment."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed, so the Khronos glTF validator cannot run")
    package = (VALIDATOR / "package.json").read_bytes()
    folder = Path(sys.prefix) / "cache" / f"gltf_validator-{hashlib.sha256(package).hexdigest()[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "validate.mjs"):
            shutil.copyfile(VALIDATOR / name, folder / name)
        if not (folder / "node_modules" / "gltf-validator" / "package.json").exists():
            command = ["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--loglevel=error"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, cwd=folder)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"npm could not install the glTF validator: {error.stderr.strip()[-300:]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"the glTF validator could not be installed: {error}")
    return folder


@pytest.mark.parametrize("make", [tower, painted_tower])
@pytest.mark.parametrize("prompt", ["", 'a red mushroom 🍄 with "quotes" and a \\ and ü'], ids=["plain", "unicode"])
@pytest.mark.parametrize("name", ["glb", "gltf"])
def test_khronos_validator_finds_nothing(tmp_path, validator, prompt, make, name):
    path = MESH_WRITERS[name](make(), tmp_path / f"a mesh.{name}", prompt=prompt)[0]
    command = ["node", "validate.mjs", str(path)]
    run = subprocess.run(command, cwd=validator, check=True, capture_output=True, text=True, timeout=60)
    report = json.loads(run.stdout)
    assert report["issues"]["messages"] == []
    assert report["info"]["totalTriangleCount"] == len(tower().faces)


@pytest.mark.parametrize("make", [tower, painted_tower])
def test_usd_validation_finds_nothing(tmp_path, make):
    usd = pytest.importorskip("pxr.Usd")
    from pxr import UsdValidation

    [path] = MESH_WRITERS["usdz"](make(), tmp_path / "mesh.usdz", prompt='a "red" 塔')
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    found = UsdValidation.ValidationContext(validators).Validate(usd.Stage.Open(str(path)))
    assert [error.GetMessage() for error in found] == []
