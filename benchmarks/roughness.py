"""Corduroy, terraces and ripples in clay renders: how rough a surface comes out that is flat or round in truth.

    python -m benchmarks.roughness

Fields are the product's pyramids, filled with a true solid plus noise from vertex to vertex of their finest grid, as much and
on as steep a slope as the fit of a house has (`--noise`, `--slope`: measured there before activation, the slope per unit).
Roughness: degrees between the surface's faces and the true ones, root mean square over the area, away from edges. Relief: the
share of a wave's height (wavelength 0.2, height 0.03) that the surface keeps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import describe_machine, one_line
from benchmarks.saving import save_run
from nerf3d.fields import DensePyramid, FieldConfig
from nerf3d.fields.dense_pyramid import grid_vertices
from nerf3d.mesh import MeshConfig, cleanup
from nerf3d.mesh.extraction import density_grid, isosurface, smooth_levels
from orchestrator.host.threads import use_threads

RESULTS = Path(__file__).parent / "results" / "roughness.json"
PRESETS = {"default": (64, 128), "fine": (96, 192)}
"""Vertices per side of the finest grid, and grid points per side that the mesh is cut from."""
HALF = torch.tensor([0.45, 0.3, 0.38])
WAVELENGTH, HEIGHT = 0.2, 0.03
CENTRE = torch.tensor([0.03, 0.02, -0.01])
_EDGE = 0.1  # scene units around a box's edges that are not counted


def _turn() -> Tensor:
    (c, s), (d, t) = ((np.cos(angle), np.sin(angle)) for angle in (0.15, 0.12))
    return torch.tensor(np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, d, -t], [0, t, d]])).float()


TURN = _turn()


def box(points: Tensor) -> Tensor:
    """Distance to a box that lies askew."""
    outside = (points @ TURN).abs() - HALF
    return outside.clamp(min=0).norm(dim=-1) + outside.amax(-1).clamp(max=0)


def ball(points: Tensor) -> Tensor:
    """Distance to a ball."""
    return (points - CENTRE).norm(dim=-1) - 0.5


def wave(points: Tensor) -> Tensor:
    """About the distance to a block whose top is a wave along x."""
    top = points[..., 1] - HEIGHT * torch.sin(2 * torch.pi / WAVELENGTH * points[..., 0])
    return torch.maximum(top, points.abs().amax(-1) - 0.6)


def field_of(distance: Callable[[Tensor], Tensor], side: int, *, slope: float, noise: float) -> DensePyramid:
    """A pyramid of one grid, its pre-activation values the distance times the slope, and noise."""
    field = DensePyramid(FieldConfig(resolutions=(side,)))
    raw = (-slope * distance(grid_vertices(side)) - 1.6).clamp(-9, 7)
    raw = raw + noise * torch.empty(raw.shape).normal_(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        field.density_grids[0].copy_((raw - field.start[0, 0])[None, None])
    return field


def surface(grid: np.ndarray, smoothing: float) -> cleanup.Surface:
    """Cut as `extract_mesh` does before it decimates."""
    config = MeshConfig()
    raw = isosurface(smooth_levels(grid, smoothing), float(np.log1p(config.iso)))
    solid, _ = cleanup.keep_solids(*raw, share=config.keep_components)
    return cleanup.taubin(*solid, iterations=config.taubin_iterations)


def roughness(vertices: np.ndarray, faces: np.ndarray, name: str) -> float:
    """Degrees."""
    a, b, c = vertices[faces].transpose(1, 0, 2)
    normals = np.cross(b - a, c - a)
    area = np.linalg.norm(normals, axis=1)
    middles = (a + b + c) / 3
    if name == "ball":
        true, counted = middles - CENTRE.numpy(), np.ones(len(middles), bool)
    else:
        inside, half = middles @ TURN.numpy(), HALF.numpy()
        side = (np.abs(inside) / half).argmax(1)
        true = np.zeros_like(inside)
        true[np.arange(len(inside)), side] = np.sign(inside[np.arange(len(inside)), side])
        true = true @ TURN.numpy().T
        counted = np.sort(half - np.abs(inside), axis=1)[:, 1] > _EDGE
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    angle = np.degrees(np.arccos(np.clip((normals * true).sum(1) / np.maximum(area, 1e-20), -1, 1)))
    return float(np.sqrt((area[counted] * angle[counted] ** 2).sum() / area[counted].sum()))


def relief(vertices: np.ndarray) -> float:
    """The wave's height in the surface over its true one, by projection."""
    top = vertices[(vertices[:, 1] > -0.2) & (np.abs(vertices[:, 0]) < 0.5) & (np.abs(vertices[:, 2]) < 0.5)]
    phase = 2 * np.pi / WAVELENGTH * top[:, 0]
    columns = np.stack([np.sin(phase), np.cos(phase), np.ones(len(phase))], 1)
    return float(np.linalg.lstsq(columns, top[:, 1], rcond=None)[0][0] / HEIGHT)


def main(arguments: list[str] | None = None) -> int:
    """Prints a line a preset and kind of smoothing, and saves them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.7)
    parser.add_argument("--slope", type=float, default=180.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    use_threads(1)
    rows = {}
    for preset, (side, resolution) in PRESETS.items():
        fields = {one.__name__: field_of(one, side, slope=options.slope, noise=options.noise) for one in (box, ball, wave)}
        grids = {name: density_grid(field, resolution) for name, field in fields.items()}
        wider = fields["box"].spacing * (resolution - 1) / 2
        for kind, factor in (("in voxels", 1.0), ("in the field's spacing", wider)):
            smoothing = MeshConfig().smoothing * factor
            cut = {name: surface(grid, smoothing) for name, grid in grids.items()}
            row = {f"roughness of a {name}": round(roughness(*cut[name], name), 2) for name in ("box", "ball")}
            rows[f"{preset}, smoothed {kind}"] = row | {"relief": round(relief(cut["wave"][0]), 2)}
            print(f"{preset}, smoothed {kind}", rows[f"{preset}, smoothed {kind}"], flush=True)
    machine = describe_machine()
    print(one_line(machine))
    save_run(options.out, machine, {"noise": options.noise, "slope": options.slope}, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
