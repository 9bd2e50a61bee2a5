"""Draw a mesh without a GPU: a vectorised z-buffer, so that previews show the mesh that the user gets.

Written here because none of the installed libraries draws shaded triangles on a bare CPU: trimesh needs pyglet or
embree, matplotlib sorts faces by depth instead of testing pixels, and VTK and pyrender bring an EGL driver with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nerf3d.cameras import Cameras
from nerf3d.mesh.mesh import Mesh

Shading = Literal["lambert", "albedo", "normal", "textureless"]
SHADINGS = ("lambert", "albedo", "normal", "textureless")

_CANDIDATES_PER_CHUNK = 1 << 21
_NEAREST = 1e-3


def draw_mesh(
    mesh: Mesh,
    cameras: Cameras,
    size: int,
    *,
    supersample: int = 2,
    shading: Shading = "lambert",
    background: Sequence[float] = (1.0, 1.0, 1.0),
    ambient: float = 0.5,
    light: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """The mesh from V cameras: rgb (V, 3, size, size) in [0, 1] over the background, and alpha (V, 1, size, size).

    With the same `light`, the picture that `nerf3d.toybox.render.render_object` draws of the object:
    colour = albedo * (ambient + (1 - ambient) * max(0, n . l)), drawn with supersample^2 rays a pixel. Faces seen from
    behind are not drawn, as in a game engine, so an inside-out mesh looks wrong here too. A textured mesh shows its texture,
    not its vertex colours, and the normals of its vertices. No gradients flow.

    shading: "lambert"; "albedo" (unlit colours); "textureless" (white, lit); "normal" (n / 2 + 1 / 2).
    light: a world direction toward the light; without it each view is lit from above its own camera
    (`render_object`: from above and left of it).
    Raises ValueError for another shading.
    """
    if shading not in SHADINGS:
        raise ValueError(f"shading is {shading!r}; choose one of {', '.join(SHADINGS)}, the only ones drawn here.")
    poses = cameras.camera_to_world.cpu().numpy().astype(np.float64)
    fovs = np.radians(cameras.fov_degrees.cpu().numpy().astype(np.float64))
    pictures = []
    for pose, fov in zip(poses, fovs, strict=True):
        toward = np.asarray(light, np.float64) if light is not None else _unit(pose[:3, 3]) + np.array([0, 0.8, 0])
        hits = visible(mesh.vertices, mesh.faces, pose, fov, size * supersample)
        colours = _shade(mesh, hits, shading, ambient, _unit(toward))
        pictures.append(_average(hits.pixels, colours, size, supersample, np.asarray(background, np.float32)))
    rgba = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return rgba[:, :3].contiguous(), rgba[:, 3:].contiguous()


def fragments(triangles: np.ndarray, width: int, height: int, *, slack: float = 0.0) -> Iterator[tuple]:
    """Pixel centres (at +0.5) covered by each of triangles (F, 3, 2), given in pixels.

    Yields chunks of (faces (K,), pixels (K,) = row * width + column, barycentric (K, 3)), for both windings. slack: how
    far under 0 a barycentric coordinate may be, so that rounding opens no pinhole between neighbours.
    """
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    least, most = np.minimum(np.minimum(a, b), c), np.maximum(np.maximum(a, b), c)  # numpy reduces short axes slowly
    low = np.clip(np.ceil(least - 0.5), 0, (width, height)).astype(np.int64)
    high = np.clip(np.floor(most - 0.5) + 1, 0, (width, height)).astype(np.int64)
    spans = np.maximum(high - low, 0)
    boxes = spans[:, 0] * spans[:, 1]
    doubled = (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])
    usable = np.flatnonzero((boxes > 0) & (np.abs(doubled) > 1e-14))
    counts = boxes[usable]
    # Barycentric coordinates of corner 0 and 1 as planes over the pixel's offset from the box's first pixel centre.
    corner = low[usable] + 0.5
    scale = 1 / doubled[usable]
    planes = [_plane(p[usable], q[usable], corner, scale) for p, q in ((b, c), (c, a))]
    ends = np.cumsum(counts)
    starts = ends - counts
    first = 0
    while first < len(usable):
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + _CANDIDATES_PER_CHUNK)))
        row = np.repeat(np.arange(first, last), counts[first:last])
        dy, dx = np.divmod(np.arange(len(row)) + starts[first] - starts[row], spans[usable, 0][row])
        u, v = (along_x[row] * dx + along_y[row] * dy + at_corner[row] for along_x, along_y, at_corner in planes)
        keep = np.flatnonzero((u >= -slack) & (v >= -slack) & (u + v <= 1 + slack))
        row, u, v = row[keep], u[keep], v[keep]
        face = usable[row]
        pixel = (low[face, 1] + dy[keep]) * width + low[face, 0] + dx[keep]
        yield face, pixel, np.stack([u, v, 1 - u - v], 1)
        first = last


def _plane(p: np.ndarray, q: np.ndarray, origin: np.ndarray, scale: np.ndarray) -> tuple:
    """Twice the signed area of (pixel, p, q) times scale, as slopes along x and y and the value at `origin`."""
    p, q = p - origin, q - origin
    return (p[:, 1] - q[:, 1]) * scale, (q[:, 0] - p[:, 0]) * scale, (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]) * scale


@dataclasses.dataclass(frozen=True)
class Hits:
    """The nearest face at each covered sample: pixels (K,), faces (K,), perspective-correct weights (K, 3)."""

    pixels: np.ndarray
    faces: np.ndarray
    weights: np.ndarray


def visible(vertices: np.ndarray, faces: np.ndarray, pose: np.ndarray, fov: float, size: int) -> Hits:
    """The nearest face of a surface (N, 3), (M, 3) that looks towards a camera, at the size^2 samples of its picture.

    pose: (4, 4) camera to world. fov: radians.
    """
    local = (vertices.astype(np.float64) - pose[:3, 3]) @ pose[:3, :3]
    depth = np.maximum(-local[:, 2], 1e-9)
    focal = size / 2 / np.tan(fov / 2)
    screen = np.stack([size / 2 + focal * local[:, 0] / depth, size / 2 - focal * local[:, 1] / depth], 1)
    corners = screen[faces]
    sides = corners[:, 1:] - corners[:, :1]
    facing = sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0] < 0  # y points down on the screen
    ahead = (-local[:, 2] > _NEAREST)[faces]
    front = np.flatnonzero(facing & ahead[:, 0] & ahead[:, 1] & ahead[:, 2])
    inverse_depth = 1 / depth[faces[front]]
    # One integer holds closeness (a positive float's bits sort like the float) and the face, so one maximum decides.
    nearest = np.zeros(size * size, np.int64)
    for face, pixel, barycentric in fragments(corners[front], size, size, slack=1e-9):
        closeness = np.einsum("kc,kc->k", barycentric, inverse_depth[face]).astype(np.float32)
        np.maximum.at(nearest, pixel, (closeness.view(np.int32).astype(np.int64) << 32) | face)
    pixels = np.flatnonzero(nearest)
    winners = nearest[pixels] & 0xFFFFFFFF
    weights = weights_at(pixels, corners[front][winners], size) * inverse_depth[winners]
    return Hits(pixels, front[winners], weights / (weights[:, :1] + weights[:, 1:2] + weights[:, 2:]))


def weights_at(pixels: np.ndarray, corners: np.ndarray, size: int) -> np.ndarray:
    """Barycentric coordinates (K, 3) of pixel centres in their own triangle (K, 3, 2); not finite in one without area."""
    centre = np.stack([pixels % size, pixels // size], 1) + 0.5
    x, y = (corners - centre[:, None]).transpose(2, 0, 1)
    weights = np.roll(x, -1, 1) * np.roll(y, -2, 1) - np.roll(x, -2, 1) * np.roll(y, -1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return weights / (weights[:, :1] + weights[:, 1:2] + weights[:, 2:])


def _shade(mesh: Mesh, hits: Hits, shading: str, ambient: float, light: np.ndarray) -> np.ndarray:
    corners = mesh.faces[hits.faces]

    def interpolate(values: np.ndarray) -> np.ndarray:
        return np.einsum("kc,kci->ki", hits.weights.astype(np.float32), values[corners])

    def albedo() -> np.ndarray:
        if mesh.texture is None:
            return interpolate(mesh.colours)
        return mesh.texture.sample(mesh.texture.base_colour, hits.faces, hits.weights)

    if shading == "albedo":
        return albedo()
    normals = _unit(interpolate(mesh.normals))
    if shading == "normal":
        return normals / 2 + 0.5
    paint = np.ones_like(normals) if shading == "textureless" else albedo()
    return paint * (ambient + (1 - ambient) * np.maximum(normals @ light.astype(np.float32), 0))[:, None]


def _average(pixels: np.ndarray, colours: np.ndarray, size: int, supersample: int, background: np.ndarray) -> np.ndarray:
    """(size, size, 4): the mean over supersample^2 samples a pixel of colour over background, and of coverage."""
    row, column = np.divmod(pixels, size * supersample)
    coarse = row // supersample * size + column // supersample
    covered = np.bincount(coarse, minlength=size * size) / supersample**2
    sums = [np.bincount(coarse, colours[:, channel], size * size) / supersample**2 for channel in range(3)]
    rgb = np.stack(sums, 1) + (1 - covered)[:, None] * background
    return np.hstack([rgb, covered[:, None]]).astype(np.float32).reshape(size, size, 4)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
