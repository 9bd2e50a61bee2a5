"""Exported meshes in the tools that artists use, with figures for docs/assets.md.

Of each object: every format through the product's own export, the Khronos validator, UsdValidation, unlit renders in Blender
and three.js against our own preview, prusa-slicer, seams at five mip levels, overlap, and a decimation to 20k, 5k and 1k faces.
Objects are run folders of 'dreamkiln text-to-3d'; without any, the 24 objects of the gallery as the toybox knows them, which
need no fit. Programs:
apt-get install blender python3-numpy prusa-slicer chromium nodejs npm.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.asset_tools import measures, tools
from benchmarks.gallery import PROMPTS
from benchmarks.machine import describe_machine
from benchmarks.pictures import write_small_webp
from nerf3d.cameras import Cameras
from nerf3d.mesh import Mesh, MeshConfig, draw_mesh, extract_mesh
from nerf3d.mesh.colours import surface_colours
from nerf3d.mesh.nearest import NearestSurface
from nerf3d.toybox.primitives import signed_bounds
from nerf3d.toybox.truth import ToyObject, object_from_prompt
from orchestrator.exports import MESH_WRITERS, Placement
from orchestrator.exports.check import check_file
from orchestrator.exports.transform import place

SIZE = 256
BUDGETS = (20_000, 5_000, 1_000)
VIEWS = Cameras.orbit([25.0, 205.0], 20.0, fov_degrees=tools.FOV_DEGREES)


@dataclasses.dataclass(frozen=True)
class TrueField:
    """The toybox's object as a field: log(1 + density) is linear in the distance, and log 6 on the surface."""

    truth: ToyObject

    def density(self, points: torch.Tensor) -> torch.Tensor:
        return torch.expm1((math.log(6) - 20 * self.truth.sdf(points)).clamp(0, 5))

    def colour(self, points: torch.Tensor) -> torch.Tensor:
        return self.truth.parts.albedo[signed_bounds(self.truth.parts, points).argmin(-1)]


def main(arguments: list[str] | None = None) -> int:
    """Prints a line an object and writes the figures and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders")
    parser.add_argument("--only", type=int, default=len(PROMPTS), help="so many of the gallery's objects")
    parser.add_argument("--without", nargs="*", default=[], help="tools to leave out: blender, three, slicer")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/asset_tools.json"))
    parser.add_argument("--pictures", type=Path, default=Path("docs/pictures/assets"))
    options = parser.parse_args(arguments)
    if absent := [name for name in tools.missing_tools() if name not in options.without]:
        print(f"asset_tools: not installed: {', '.join(absent)}; apt-get install them, or see --without.", file=sys.stderr)
        return 2
    objects = {path.name: _field_of(path) for path in options.runs}
    objects = objects or {prompt: TrueField(_truth(prompt)) for prompt in PROMPTS[: options.only]}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        node = Path(scratch) / "node"
        tools.install_node_packages(node)
        for name, field in objects.items():
            folder = Path(scratch) / f"{len(results):02d}"
            folder.mkdir()
            results[name] = _examine(
                *(field, folder, node), without=options.without, pictures=None if results else options.pictures
            )
            print(f"{name}: {json.dumps(results[name])}", flush=True)
            report = {"machine": describe_machine(), "objects": results}
            options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _truth(prompt: str) -> ToyObject:
    truth = object_from_prompt(prompt)
    assert truth is not None
    return truth


def _field_of(run: Path):
    from nerf3d.fit import saved_field
    from orchestrator.run.export import FinishedRun

    finished = FinishedRun.read(run)
    tensors = {name: torch.from_numpy(array) for name, array in finished.checkpoint.tensors.items()}
    return saved_field(finished.spec.fit.field, tensors, seed=finished.spec.seed)


def _examine(field, folder: Path, node: Path, *, without: list[str], pictures: Path | None) -> dict[str, Any]:
    begin = time.process_time()
    mesh = extract_mesh(field)
    found: dict[str, Any] = {"cut_cpu_seconds": round(time.process_time() - begin, 2), "notes": [n.text for n in mesh.notes]}
    placement = Placement()
    files = {}
    for kind, write in MESH_WRITERS.items():
        files[kind] = write(mesh, folder / f"mesh.{kind}", placement)[0]
        found[kind] = check_file(files[kind], mesh, placement)
    found["export_cpu_seconds"] = round(time.process_time() - begin - found["cut_cpu_seconds"], 2)
    found["khronos"] = [issue for kind in ("glb", "gltf") for issue in tools.khronos_issues(files[kind], node)]
    found["usd"] = tools.usd_findings(files["usdz"])
    found |= measures.texture_figures(mesh) | {"slivers": measures.num_slivers(mesh)}
    found["seams"] = measures.seam_differences(mesh, _true_colours(field))
    found["steps_across_seams"] = measures.steps_across_seams(mesh)
    placed = place(mesh, longest_side=placement.size_metres)
    ours = _draw(placed)
    if "slicer" not in without:
        found["slicer"] = [problem for kind in ("stl", "3mf") if (problem := tools.slice_for_printing(files[kind], folder))]
    poses = VIEWS.camera_to_world.numpy().astype(float)
    drawn: dict[str, np.ndarray] = {}
    if "blender" not in without:
        views = tools.blender_views([files[kind] for kind in ("glb", "obj", "ply")], poses, folder, size=SIZE)
        drawn |= {f"Blender {name}": view for name, view in views.items()}
    if "three" not in without:
        views = tools.three_views([files[kind] for kind in ("glb", "obj")], poses, folder, node, size=SIZE)
        drawn |= {f"three.js {name}": view for name, view in views.items()}
    found["difference_to_preview"] = {name: _difference(view, ours) for name, view in drawn.items()}
    found["decimation"], decimated = _decimation(field)
    if pictures is not None:
        write_small_webp(decimated, pictures / "decimated.webp", max_bytes=90_000, max_width=1200)
        rows = [ours, *drawn.values()]
        write_small_webp(
            np.concatenate([np.concatenate(list(row), 1) for row in rows]), pictures / "tools.webp", max_bytes=90_000
        )
        if "blender" not in without:
            lit = tools.blender_views([files["glb"]], poses, folder, size=400, lit=True)["mesh.glb"]
            write_small_webp(np.concatenate(list(lit), 1), pictures / "blender.webp", max_bytes=60_000)
    return found


def _draw(mesh: Mesh, size: int = SIZE) -> np.ndarray:
    """(V, size, size, 3) uint8 unlit on white."""
    views = draw_mesh(mesh, VIEWS, size, shading="albedo", supersample=4)[0]
    return (views.permute(0, 2, 3, 1).numpy() * 255 + 0.5).astype(np.uint8)


def _difference(view: np.ndarray, ours: np.ndarray) -> float:
    return round(float(np.abs(view.astype(float) - ours).mean()), 3)


def _true_colours(field):
    """Colours at the undecimated surface, where a texture is baked."""
    full = extract_mesh(field, MeshConfig(max_faces=10**7, texture_size=0))
    surface = NearestSurface(full.vertices, full.faces)
    step = 1 / (MeshConfig().resolution - 1)

    def colours(places: np.ndarray, normals: np.ndarray) -> np.ndarray:
        faces, weights = surface.locate(places, normals)
        there, up = (np.einsum("kc,kci->ki", weights, v[surface.faces[faces]]) for v in (surface.vertices, surface.normals))
        return surface_colours(field, there, up / np.linalg.norm(up, axis=1, keepdims=True), step=step)

    return colours


def _decimation(field) -> tuple[dict[str, float], np.ndarray]:
    """Mean difference, of 255, between unlit views at 512 pixels of the mesh with 20k faces and with fewer, and the views: a
    row a budget, and last the fewest faces with vertex colours in the texture's place."""
    heavy, *light = (extract_mesh(field, MeshConfig(max_faces=budget, normal_map=False)) for budget in BUDGETS)
    bare = extract_mesh(field, MeshConfig(max_faces=BUDGETS[-1], texture_size=0))
    expected, *views, without = (_draw(mesh, 512) for mesh in (heavy, *light, bare))
    figures = {f"{budget} faces": _difference(view, expected) for budget, view in zip(BUDGETS[1:], views, strict=True)}
    rows = [np.concatenate(list(view), 1) for view in (expected, *views, without)]
    return figures, np.concatenate([np.concatenate(rows[:2], 1), np.concatenate(rows[2:], 1)])


if __name__ == "__main__":
    sys.exit(main())
