"""A density field becomes a closed, smooth, coloured mesh: sample, smooth, cut, clean, decimate, paint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nerf3d.errors import check_settings
from nerf3d.mesh import cleanup
from nerf3d.mesh.bridging import bridge
from nerf3d.mesh.colours import prepared, query_in_chunks
from nerf3d.mesh.errors import BrokenField, EmptyMesh
from nerf3d.mesh.floor import without_floor
from nerf3d.mesh.mesh import Mesh, Note, is_closed
from nerf3d.mesh.painting import Painter

_FEWEST_VOXELS = 27  # a blob under 3x3x3 voxels is noise, so a lower iso level is tried
_FULLEST_SHARE = 0.98
_TEXTURE_SIZES = (0, 64, 128, 256, 512, 1024, 2048, 4096)
# (coarsening of the grid, factor on the level), tried in turn until the surface is closed and light enough: another
# level makes other cells, which mends a surface that touches itself; a coarser grid loses handles that bar decimation.
# A surface of more faces for each square of the grid's side than _NOISE_FACES is noise, which no decimation saves.
_ATTEMPTS = ((1, 1.0), (1, 0.97), (1, 1.04), (2, 1.0), (2, 0.95), (4, 1.0))
_NOISE_FACES = 50
_BYTES_PER_POINT = 30
_FLAT = 0.2
_WORTH_A_WARNING = 0.02


class DensityField(Protocol):
    """What extraction asks of a field: points (N, 3) float32 in [-1, 1]^3, answers on the same device."""

    def density(self, points: Tensor) -> Tensor:
        """(N,) non-negative density per scene unit."""
        ...

    def colour(self, points: Tensor) -> Tensor:
        """(N, 3) albedo in [0, 1]."""
        ...


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How a field is cut into a mesh. The default face budget suits viewers and game engines.

    resolution: grid points per axis over the scene box [-1, 1]^3.
    iso: density (per scene unit) of the surface; lower_isos are tried in turn when nothing reaches it.
    smoothing: standard deviation of the Gaussian on log(1 + density), in voxels, or where they are wider in spacings of the
        field's own finest grid, whose vertices differ from their neighbours by a fit's noise; 0 turns it off.
    max_faces: face budget, kept within 5 % when the raw surface has more.
    keep_components: smallest share of the main component's volume that a component needs to stay.
    bridge_gap: smaller components that are dense and this near to the rest, in scene units, are joined to it; 0 joins none.
    taubin_iterations: smoothing steps on the raw surface.
    texture_size: texels per side of the pictures that the surface gets, a power of two; 0 leaves it with vertex colours.
    normal_map: whether the texture also holds the normals that decimation loses.
    unwrap_seconds: processor time to lay the surface flat with few seams; past it a plain projection does.
    lods: face budgets of lighter versions of the mesh, each with a texture of its own.
    face_front: whether the mesh is turned where the prior that made it clearly takes another side for the front.
    """

    resolution: int = 128
    iso: float = 5.0
    lower_isos: tuple[float, ...] = (2.5, 1.0, 0.5)
    smoothing: float = 0.8
    max_faces: int = 20_000
    keep_components: float = 0.15
    bridge_gap: float = 0.06
    taubin_iterations: int = 10
    texture_size: int = 1024
    normal_map: bool = True
    unwrap_seconds: float = 20.0
    lods: tuple[int, ...] = ()
    face_front: bool = True

    def __post_init__(self) -> None:
        checks = {
            "resolution": (8 <= self.resolution <= 1024, "8 to 1024 grid points an axis"),
            "iso": (self.iso > 0, "a density over 0"),
            "smoothing": (0 <= self.smoothing <= 10, "0 to 10 voxels"),
            "max_faces": (100 <= self.max_faces <= 100_000_000, "100 to 100,000,000 faces"),
            "keep_components": (0 <= self.keep_components <= 1, "a share between 0 and 1"),
            "bridge_gap": (0 <= self.bridge_gap <= 0.5, "0 to 0.5 scene units"),
            "taubin_iterations": (0 <= self.taubin_iterations <= 1000, "0 to 1000 steps"),
            "texture_size": (self.texture_size in _TEXTURE_SIZES, f"one of {', '.join(map(str, _TEXTURE_SIZES))} texels"),
            "unwrap_seconds": (0 < self.unwrap_seconds <= 3600, "seconds over 0 and at most 3600"),
            "lods": (all(budget >= 100 for budget in self.lods), "budgets of at least 100 faces"),
        }
        check_settings(self, checks)


def extract_mesh(field: DensityField, config: MeshConfig | None = None, *, device: torch.device | str = "cpu") -> Mesh:
    """The surface where the field's smoothed density crosses config.iso.

    Closed and wound outwards; where that could not be reached the mesh is returned all the same, `is_watertight` is
    False and a note says so. `notes` also names pieces that were left out, another level than was asked for, a floor in
    the place of an object, and mended colours. The same field gives the same mesh. No gradients flow.

    Raises EmptyMesh when no level finds a surface, BrokenField when the density is not a number or fills the box.
    """
    config = config or MeshConfig()
    voxels_per_vertex = _voxels_per_vertex(field, config.resolution)
    field = prepared(field)
    grid = density_grid(field, config.resolution, device=device)
    levels = smooth_levels(grid, config.smoothing * voxels_per_vertex)
    iso = _choose_iso(levels, grid, config)
    levels, had_floor = without_floor(levels, float(np.log1p(iso)))
    levels = bridge(levels, float(np.log1p(iso)), gap=config.bridge_gap, share=config.keep_components)
    step = 1 / (config.resolution - 1)
    painter = Painter(field, step, config.texture_size, config.normal_map, config.unwrap_seconds, device)
    cut = _cut_soundly(levels, float(np.log1p(iso)), config, painter)
    mesh = painter.paint(cut.light, cut.detail)
    lods = tuple(painter.paint(painter.decimate(cut.detail, budget), cut.detail) for budget in config.lods)
    return dataclasses.replace(mesh, lods=lods, notes=(*_notes(mesh, config, iso, cut.dropped, had_floor), *mesh.notes))


def _voxels_per_vertex(field: DensityField, resolution: int) -> float:
    """How many voxels wide the field's own grid is, at least 1; 1 for a field without a grid."""
    spacing = getattr(field, "spacing", None) or 0.0
    return max(1.0, spacing * (resolution - 1) / 2)


def bytes_to_extract(config: MeshConfig) -> int:
    """Memory that an extraction needs at its peak, an estimate.

    20 bytes a grid point were measured for a smooth object, 68 for a rough one.
    """
    return _BYTES_PER_POINT * config.resolution**3


def _notes(mesh: Mesh, config: MeshConfig, iso: float, dropped: cleanup.Dropped, had_floor: bool) -> Iterator[Note]:
    if iso != config.iso:
        yield Note(f"Nothing in the field is denser than mesh.iso = {config.iso:g}, so the mesh was cut at {iso:g}.")
    if had_floor:
        yield Note("A floor under the object, which covers the ground to the edge of the scene, was left out.")
    if dropped.num_off_middle:
        larger = "A larger piece was" if dropped.num_off_middle == 1 else f"{dropped.num_off_middle} larger pieces were"
        yield Note(f"{larger} left out because another one stands in the middle of the scene, where the object belongs.")
    if dropped.num_pieces:
        pieces = "1 small piece was" if dropped.num_pieces == 1 else f"{dropped.num_pieces:,} small pieces were"
        yield Note(
            f"{pieces} left out ({100 * dropped.volume:.2g} % of the main piece's volume, the largest of them "
            f"{100 * dropped.largest:.2g} %); mesh.keep_components={dropped.largest * 0.9:.2g} keeps that one.",
            is_warning=dropped.largest >= _WORTH_A_WARNING,
        )
    if _is_floor(mesh):
        yield Note(
            "The mesh is a flat slab as wide as the scene, which is a floor or a wall rather than an object"
            + ("; the object may be among the pieces that were left out" if dropped.num_pieces else "")
            + ": try another seed."
        )
    if not mesh.is_watertight:
        yield Note("The mesh has open or doubled edges; 3D printing tools may ask to repair it.")
    if len(mesh.faces) > config.max_faces:
        yield Note(f"The mesh has {len(mesh.faces):,} faces, over mesh.max_faces = {config.max_faces:,}.")


def _is_floor(mesh: Mesh) -> bool:
    """Whether the mesh is thin on one axis and comes to the walls of the scene on the two others."""
    low, high = mesh.bounds
    axis = int(np.argmin(high - low))
    others = [other for other in range(3) if other != axis]
    is_wide = bool((low[others] <= -0.98).all() and (high[others] >= 0.98).all())
    return is_wide and float(high[axis] - low[axis]) <= _FLAT * float((high - low)[others].min())


def density_grid(field: DensityField, resolution: int, *, device: torch.device | str = "cpu") -> np.ndarray:
    """(R, R, R) float32 densities at the points of a grid whose corners are the scene box's, indexed [x, y, z].

    Raises BrokenField when a density is not finite.
    """
    axis = torch.linspace(-1, 1, resolution, device=device)
    rows_per_slab = max(1, (1 << 18) // resolution**2)
    slabs = []
    for x in axis.split(rows_per_slab):
        points = torch.stack(torch.meshgrid(x, axis, axis, indexing="ij"), -1).reshape(-1, 3)
        slabs.append(query_in_chunks(field.density, points).reshape(len(x), resolution, resolution).float().cpu())
    grid = torch.cat(slabs).numpy()
    broken = ~np.isfinite(grid)
    if broken.any():
        raise BrokenField(
            f"The field's density is not a number at {broken.sum()} of {grid.size} points, so it has no surface: the "
            "fit diverged; lower its learning rates or take another seed."
        )
    return grid


def smooth_levels(grid: np.ndarray, smoothing: float) -> np.ndarray:
    """log(1 + density), (R, R, R) to (R, R, R), after a Gaussian of `smoothing` voxels.

    Values at the box's walls go on beyond them, so that a solid there does not get thin. The logarithm keeps
    a few very dense voxels from swallowing their surroundings.
    """
    levels = np.log1p(np.maximum(grid, 0))
    if smoothing:
        from scipy.ndimage import gaussian_filter

        levels = gaussian_filter(levels, smoothing, mode="nearest")
    return levels


def isosurface(levels: np.ndarray, level: float) -> cleanup.Surface:
    """Marching cubes (Lewiner et al. 2003) over [-1, 1]^3: vertices (N, 3) float64, outward faces (M, 3) int32.

    One layer of empty voxels around the box closes whatever touches its walls. Raises ValueError without a crossing.
    """
    from skimage.measure import marching_cubes

    # A grid value equal to the level gives vertices on top of each other, which welding would turn into bad edges.
    near = np.abs(levels - level) < 1e-4
    padded = np.pad(np.where(near, level + 1e-4, levels), 1)
    voxel = 2 / (np.array(levels.shape) - 1)
    # Density is larger inside, and with 'descent', the default, skimage winds such faces inwards.
    vertices, faces, _, _ = marching_cubes(padded, level, gradient_direction="ascent")
    return (vertices.astype(np.float64) - 1) * voxel - 1, faces.astype(np.int32)


def _choose_iso(levels: np.ndarray, grid: np.ndarray, config: MeshConfig) -> float:
    """The first of iso and lower_isos that encloses something."""
    for iso in (config.iso, *(i for i in config.lower_isos if i < config.iso)):
        level = float(np.log1p(iso))
        inside = int((levels > level).sum())
        if inside > _FULLEST_SHARE * levels.size:
            raise BrokenField(
                f"The field is denser than {iso:g} in {100 * inside / levels.size:.0f} % of the scene box, so there is "
                "no surface to cut: the fit filled the box; raise its sparsity weight or take another seed."
            )
        if inside >= _FEWEST_VOXELS:
            return iso
    raise EmptyMesh(
        f"The field is empty: its density reaches only {grid.max():.3g} where a surface needs {config.iso:g}, so there "
        "is no mesh to write; take another seed, or more steps."
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Cut:
    """A surface before and after its decimation, and what was left out of it."""

    detail: cleanup.Surface
    light: cleanup.Surface
    dropped: cleanup.Dropped


def _cut_soundly(levels: np.ndarray, level: float, config: MeshConfig, painter: Painter) -> _Cut:
    """The first cut that is closed and within the face budget; else the first closed one; else the first."""
    first = closed = None
    for raw in _cuts(levels, level):
        surface, dropped = cleanup.keep_solids(*raw, share=config.keep_components)
        detail = cleanup.taubin(*surface, iterations=config.taubin_iterations)
        cut = _Cut(detail, painter.decimate(detail, config.max_faces), dropped)
        if is_closed(cut.light[1]):
            if len(cut.light[1]) <= config.max_faces:
                return cut
            closed = closed or cut
        first = first or cut
    assert first is not None  # the first attempt is at the chosen level, which lies under the largest value
    return closed or first


def _cuts(levels: np.ndarray, level: float) -> Iterator[cleanup.Surface]:
    """The surfaces of `_ATTEMPTS` that are smoother than the grid they are cut from; where none is, the lightest."""
    lightest: cleanup.Surface | None = None
    is_any_smooth = False
    for coarsening, nudge in _ATTEMPTS:
        grid = _coarsen(levels, coarsening)
        if nudge * level >= grid.max():
            continue
        surface = isosurface(grid, nudge * level)
        if len(surface[1]) <= _NOISE_FACES * len(grid) ** 2:
            is_any_smooth = True
            yield surface
        elif lightest is None or len(surface[1]) < len(lightest[1]):
            lightest = surface
    if lightest is not None and not is_any_smooth:
        yield lightest


def _coarsen(levels: np.ndarray, factor: int) -> np.ndarray:
    """The same box on a grid with `factor` times fewer points an axis, at least 16."""
    if factor == 1:
        return levels
    from scipy.ndimage import gaussian_filter, zoom

    return zoom(gaussian_filter(levels, factor / 2, mode="nearest"), max(1 / factor, 16 / len(levels)), order=1)
