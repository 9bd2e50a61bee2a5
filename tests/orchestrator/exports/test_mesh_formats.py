"""Every mesh format read back: axes, size, colours, material, and agreement between the formats."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import trimesh
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nerf3d.mesh import Mesh
from nerf3d.mesh.mesh import vertex_normals
from orchestrator.exports import MESH_WRITERS, write_glb, write_obj, write_ply, write_stl
from orchestrator.exports.transform import place, srgb_to_linear
from tests.orchestrator.exports.sample_meshes import tower

VALIDATOR = Path(__file__).parents[2] / "gltf_validator"


def read_back(path: Path) -> trimesh.Trimesh:
    return trimesh.load_mesh(path, process=False)


def colours_of(path: Path) -> np.ndarray:
    """Vertex colours in [0, 1]; an OBJ's are read by hand, because trimesh prefers its material."""
    if path.suffix == ".obj":
        return np.loadtxt([line[2:] for line in path.read_text().splitlines() if line.startswith("v ")])[:, 3:]
    return read_back(path).visual.vertex_colors[:, :3] / 255


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
    [path] = write_glb(mesh, tmp_path / "mesh.glb", prompt=prompt, size_metres=2.0)
    document = pygltflib.GLTF2().load(str(path))
    assert document.asset.version == "2.0" and document.asset.generator.startswith("DreamKiln")
    assert document.asset.extras == document.nodes[0].extras == {"prompt": prompt}
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


def test_glb_without_a_prompt_has_no_extras(tmp_path):
    [path] = write_glb(tower(), tmp_path / "mesh.glb")
    assert pygltflib.GLTF2().load(str(path)).asset.extras == {}


@pytest.mark.parametrize(
    ("name", "unit", "left", "up", "front"),
    [
        ("glb", 1, (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ("obj", 1, (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ("ply", 1, (1, 0, 0), (0, 0, 1), (0, -1, 0)),
        ("stl", 100, (1, 0, 0), (0, 0, 1), (0, -1, 0)),
    ],
)
def test_axes_and_size_of_each_format(tmp_path, name, unit, left, up, front):
    mesh = tower()
    MESH_WRITERS[name](mesh, tmp_path / f"mesh.{name}", size_metres=0.5)
    loaded = read_back(tmp_path / f"mesh.{name}")
    assert len(loaded.faces) == len(mesh.faces)
    np.testing.assert_allclose(loaded.bounds.sum(0), 0, atol=1e-5 * unit)
    assert np.dot(loaded.extents, np.abs(up)) == pytest.approx(0.5 * unit, rel=1e-5)
    frame = np.array([left, up, front], float)
    # The triangles themselves, turned back, are the placed originals: no mirror, no other order.
    expected = place(mesh, longest_side=0.5 * unit)
    np.testing.assert_allclose(loaded.triangles @ frame.T, expected.vertices[expected.faces], atol=2e-6 * unit, rtol=1e-5)
    assert loaded.volume > 0


def test_all_formats_agree_in_colour(tmp_path):
    mesh = tower()
    for name in ("obj", "ply"):
        MESH_WRITERS[name](mesh, tmp_path / f"mesh.{name}")
        np.testing.assert_allclose(colours_of(tmp_path / f"mesh.{name}"), mesh.colours, atol=0.003)


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
        write_glb(tower(), tmp_path / "mesh.glb", size_metres=-1)
    with pytest.raises(ValueError, match="in one place"):
        place(Mesh(np.zeros((3, 3)), [[0, 1, 2]], np.ones((3, 3)), np.ones((3, 3))), longest_side=1)
    assert not list(tmp_path.iterdir())


def test_the_same_mesh_gives_the_same_bytes(tmp_path):
    for name, write in MESH_WRITERS.items():
        [first, *_], [second, *_] = (write(tower(), tmp_path / f"{turn}.{name}", prompt="x") for turn in "ab")
        a, b = (path.read_bytes().replace(b"a.mtl", b"b.mtl") for path in (first, second))
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
        unit = 100 if name == "stl" else 1
        write(mesh, tmp_path / f"mesh.{name}", size_metres=size)
        loaded = read_back(tmp_path / f"mesh.{name}")
        expected = place(mesh, longest_side=size * unit, up="z" if name in ("ply", "stl") else "y")
        assert loaded.triangles.shape == (len(mesh.faces), 3, 3)
        np.testing.assert_allclose(loaded.triangles, expected.vertices[expected.faces], atol=2e-6 * size * unit)
        if name in ("obj", "ply"):
            np.testing.assert_allclose(colours_of(tmp_path / f"mesh.{name}"), mesh.colours, atol=0.003)


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


@pytest.mark.parametrize("prompt", ["", 'a red mushroom 🍄 with "quotes" and a \\ and ü'], ids=["plain", "unicode"])
def test_khronos_validator_finds_nothing(tmp_path, validator, prompt):
    [path] = write_glb(tower(), tmp_path / "mesh.glb", prompt=prompt)
    command = ["node", "validate.mjs", str(path)]
    run = subprocess.run(command, cwd=validator, check=True, capture_output=True, text=True, timeout=60)
    report = json.loads(run.stdout)
    assert report["issues"]["messages"] == []
    assert report["info"]["totalTriangleCount"] == len(tower().faces)
