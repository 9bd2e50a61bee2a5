"""Lay a surface flat: xatlas within a budget of processor time, a plain projection along the axes after it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np

from nerf3d.mesh.mesh import Note
from nerf3d.mesh.texture import UvMap

_CHARTING = Path(__file__).with_name("xatlas_process.py")
_WALL_SECONDS_PER_CPU_SECOND = 60  # the processor time ends it; a busy machine must not change the result


def unwrap(vertices: np.ndarray, faces: np.ndarray, *, size: int, padding: int, seconds: float) -> tuple[UvMap, Note | None]:
    """Charts without overlap in a square picture, `padding` texels of it apart.

    vertices: (N, 3). faces: (M, 3). size: texels per side. seconds: of processor time that xatlas may take; it needs
    about a second for 10,000 faces of a clean surface, and hours for a million or for one without clear edges. Past it
    `project_along_axes` takes over, and the note says so.
    """
    try:
        return _unwrap_with_xatlas(vertices, faces, size=size, padding=padding, seconds=seconds), None
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        note = Note(
            f"The surface of {len(faces):,} faces could not be unwrapped within mesh.unwrap_seconds = {seconds:g} ({reason}), "
            "so its texture has more seams; a smaller mesh.max_faces or more seconds help."
        )
        return project_along_axes(vertices, faces, size=size, padding=padding), note


def _unwrap_with_xatlas(vertices: np.ndarray, faces: np.ndarray, *, size: int, padding: int, seconds: float) -> UvMap:
    """xatlas in a process of its own, because nothing else stops it. Raises SubprocessError where it was stopped."""
    given = io.BytesIO()
    np.savez(given, vertices=vertices.astype(np.float32), faces=faces.astype(np.uint32))
    # -P keeps this folder, whose modules have everyday names, out of the process's path.
    command = [sys.executable, "-P", str(_CHARTING), str(size), str(padding), str(seconds)]
    wall = _WALL_SECONDS_PER_CPU_SECOND * seconds
    done = subprocess.run(command, input=given.getvalue(), capture_output=True, timeout=wall, check=False)
    if done.returncode:
        raise subprocess.SubprocessError(_reason(done))
    made = np.load(io.BytesIO(done.stdout))
    places = made["faces"].astype(np.int32)
    if not np.array_equal(made["vertices"][places], faces):
        raise ValueError("xatlas gave other faces back")
    return UvMap(made["vertices"], np.clip(made["uvs"], 0, 1), places)


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    if done.returncode < 0:
        return f"xatlas was stopped by signal {-done.returncode}"
    return (done.stderr.decode(errors="replace").strip().splitlines() or ["xatlas failed"])[-1]


def project_along_axes(vertices: np.ndarray, faces: np.ndarray, *, size: int, padding: int) -> UvMap:
    """Each face as seen along the axis that it faces most; neighbours that look the same way share a chart.

    Time grows with the number of faces alone. A chart that folds back over itself overlaps there.
    """
    corners = vertices[faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    axes = np.abs(normals).argmax(1)
    is_negative = np.take_along_axis(normals, axes[:, None], 1)[:, 0] < 0
    charts = _charts(faces, axes * 2 + is_negative)
    # Seen from outside: u to the right and, as a picture's v runs down, v against the second axis.
    flat = np.empty((len(faces), 3, 2))
    for axis in range(3):
        rows = axes == axis
        flat[rows] = corners[rows][:, :, [(axis + 1) % 3, (axis + 2) % 3]] * (1, -1)
    flat[is_negative, :, 0] *= -1
    keys = charts[:, None] * (int(faces.max()) + 1) + faces
    _, first, places = np.unique(keys, return_index=True, return_inverse=True)
    places = places.reshape(-1, 3).astype(np.int32)
    chart_of, uvs = np.repeat(charts, 3)[first], flat.reshape(-1, 2)[first]
    return UvMap(faces.reshape(-1)[first], _pack(uvs, chart_of, size=size, padding=padding), places)


def _charts(faces: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(M,) chart of each face: faces that share an edge and a label belong together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    owner = np.repeat(np.arange(len(faces)), 3)
    order = np.lexsort(edges.T)
    edges, owner = edges[order], owner[order]
    joined = (edges[1:] == edges[:-1]).all(1) & (labels[owner[1:]] == labels[owner[:-1]])
    pair = owner[:-1][joined], owner[1:][joined]
    graph = coo_array((np.ones(len(pair[0]), np.int8), pair), shape=(len(faces),) * 2)
    return connected_components(graph, directed=False)[1]


def _pack(uvs: np.ndarray, chart_of: np.ndarray, *, size: int, padding: int) -> np.ndarray:
    """uvs (K, 2) of charts in scene units, as places in [0, 1]^2: rows of charts, the tall ones first, at the largest scale."""
    num = int(chart_of.max()) + 1
    low, high = np.full((num, 2), np.inf), np.full((num, 2), -np.inf)
    np.minimum.at(low, chart_of, uvs)
    np.maximum.at(high, chart_of, uvs)
    extents = high - low
    order = np.argsort(-extents[:, 1], kind="stable")
    gap = min(padding, size / (2 * np.sqrt(num)))  # so many charts that padding alone would fill the picture
    smallest, largest = 0.0, size / max(float(extents.max()), 1e-12)
    best = np.zeros((num, 2))
    for _ in range(24):
        scale = (smallest + largest) / 2
        offsets = _rows(extents[order] * scale + gap, size)
        if offsets is None:
            largest = scale
        else:
            smallest, best[order] = scale, offsets
    placed = (uvs - low[chart_of]) * smallest + best[chart_of] + gap / 2
    return np.clip(placed / size, 0, 1)


def _rows(boxes: np.ndarray, size: int) -> np.ndarray | None:
    """(C, 2) offsets of boxes laid row by row into a square, the height of a row that of its first; None without room."""
    offsets = np.empty_like(boxes)
    x = y = height = 0.0
    for number, (width, tall) in enumerate(boxes.tolist()):
        if x + width > size:
            x, y, height = 0.0, y + height, 0.0
        height = max(height, tall)
        if x + width > size or y + height > size:
            return None
        offsets[number] = x, y
        x += width
    return offsets
