"""Make a raw isosurface sound and light: drop crumbs and hidden shells, smooth, decimate, remove bad faces.

Each step takes and returns (vertices (N, 3) float64, faces (M, 3) int32) and keeps a closed surface closed, or says so
through `nerf3d.mesh.mesh.is_closed`, which the caller checks at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nerf3d.mesh.mesh import face_areas, is_closed, signed_volumes, vertex_normals
from nerf3d.mesh.nearest import NearestSurface

Surface = tuple[np.ndarray, np.ndarray]


def component_labels(faces: np.ndarray) -> np.ndarray:
    """(M,) component of each face; faces belong together when they share a vertex."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = int(faces.max()) + 1
    rows, columns = faces[:, [0, 1]].ravel(), faces[:, [1, 2]].ravel()
    graph = coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(size, size))
    return connected_components(graph, directed=False)[1][faces[:, 0]]


@dataclass(frozen=True)
class Dropped:
    """Pieces that `keep_solids` left out because they are small: how many, and their shares of the main piece's volume.

    volume: of all of them together. largest: of the largest one. num_off_middle: pieces larger than the main one that were
    left out because they stand far from the middle.
    """

    num_pieces: int
    volume: float
    largest: float
    num_off_middle: int = 0


OFF_MIDDLE = 0.5
"""Distance in scene units of a piece's middle from the scene's, from which it stands off the middle."""

_IN_THE_MIDDLE = 0.1  # as near its box must come to the scene's middle
_SMALLEST_MAIN = 0.05  # of the largest piece's volume
_CLEARLY_LARGER = 1.5  # times the middle one's volume: equal pieces side by side are one object


def keep_solids(vertices: np.ndarray, faces: np.ndarray, *, share: float) -> tuple[Surface, Dropped]:
    """Keep the outer surfaces of the large components; say which small ones were left out.

    A component stays when it encloses at least `share` of the main component's volume: volume, because a thin
    floater has much area and many faces but hardly any volume. The main component is the largest one, unless that stands off
    the middle of the scene, where cameras look, and another one, clearly smaller but of some size, stands in it. Surfaces of
    cavities (negative volume) and whatever lies inside another component are dropped: nobody sees them and slicers cannot
    fill them.
    """
    labels = component_labels(faces)
    volumes = np.bincount(labels, signed_volumes(vertices, faces))
    main, off_middle = _main_piece(vertices, faces, labels, volumes)
    is_large = (volumes > 0) & (volumes >= share * volumes[main])
    small = volumes[(volumes > 0) & ~is_large] / volumes[main]
    is_large[off_middle] = False
    dropped = Dropped(len(small), float(small.sum()), float(small.max(initial=0)), len(off_middle))
    is_large[_lie_in_cavities(vertices, faces, labels, volumes, np.flatnonzero(is_large))] = False
    return drop_unused(vertices, faces[is_large[labels]]), dropped


def _main_piece(vertices: np.ndarray, faces: np.ndarray, labels: np.ndarray, volumes: np.ndarray) -> tuple[int, np.ndarray]:
    """The piece that is the object, and those larger than it that are none because they stand off the middle."""
    largest = int(volumes.argmax())
    candidates = np.flatnonzero(volumes >= _SMALLEST_MAIN * volumes[largest])
    boxes = np.array([_box(vertices[faces[labels == one]]) for one in candidates])
    is_off = np.linalg.norm(boxes.mean(1), axis=1) > OFF_MIDDLE
    in_middle = ((boxes[:, 0] < _IN_THE_MIDDLE) & (boxes[:, 1] > -_IN_THE_MIDDLE)).all(1) & ~is_off
    if not (is_off[candidates == largest].any() and in_middle.any()):
        return largest, candidates[:0]
    main = int(candidates[in_middle][volumes[candidates[in_middle]].argmax()])
    if volumes[largest] < _CLEARLY_LARGER * volumes[main]:
        return largest, candidates[:0]
    return main, candidates[is_off & (volumes[candidates] > volumes[main])]


def _box(corners: np.ndarray) -> np.ndarray:
    """(2, 3) from corners (M, 3, 3)."""
    return np.stack([corners.min((0, 1)), corners.max((0, 1))])


def _lie_in_cavities(
    vertices: np.ndarray, faces: np.ndarray, labels: np.ndarray, volumes: np.ndarray, solids: np.ndarray
) -> np.ndarray:
    """Those of the components `solids` that lie inside another one, which means: in the cavity of one.

    Where a level set nests, a surface of negative volume lies between. Only cavities that could hold the smallest solid are
    looked at, and only the solids with a corner in a cavity's bounding box, so the work does not grow with the pairs.
    """
    from scipy.spatial import cKDTree

    cavities = np.flatnonzero(-volumes > volumes[solids].min(initial=np.inf))
    if not len(cavities):
        return solids[:0]
    order = np.argsort(labels, kind="stable")
    begins = np.searchsorted(labels[order], np.arange(len(volumes) + 1))
    corners = vertices[faces[order[begins[solids]], 0]]
    tree = cKDTree(corners)
    inside = np.zeros(len(solids), bool)
    for cavity in cavities:
        triangles = vertices[faces[order[begins[cavity] : begins[cavity + 1]]]]
        low, high = triangles.min((0, 1)), triangles.max((0, 1))
        near = np.array(tree.query_ball_point((low + high) / 2, (high - low).max() / 2, p=np.inf), int)
        near = near[((corners[near] > low) & (corners[near] < high)).all(1) & ~inside[near]]
        inside[near] = [winding_number(corners[one], triangles) < -0.5 for one in near]
    return solids[inside]


def winding_number(point: np.ndarray, triangles: np.ndarray) -> float:
    """How often triangles (M, 3, 3) wrap around point (3,): 1 inside a closed outward surface, 0 outside.

    The sum of signed solid angles over 4 pi; van Oosterom and Strackee 1983, eq. 8; Jacobson et al. 2013, eq. 5.
    """
    a, b, c = (triangles - point).transpose(1, 0, 2)
    la, lb, lc = (np.linalg.norm(side, axis=1) for side in (a, b, c))
    top = np.einsum("mi,mi->m", a, np.cross(b, c))
    bottom = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
    return float(np.arctan2(top, bottom).sum() / (2 * np.pi))


def taubin(vertices: np.ndarray, faces: np.ndarray, *, iterations: int) -> Surface:
    """Smooth without shrinking: steps of lambda 0.5 alternate with mu -0.525 (Taubin 1995, pass band k = 0.095)."""
    if not iterations:
        return vertices, faces
    import trimesh

    mesh = trimesh.Trimesh(vertices, faces, process=False, validate=False)
    trimesh.smoothing.filter_taubin(mesh, lamb=0.5, nu=0.525, iterations=iterations)
    return np.asarray(mesh.vertices), faces


def decimate(vertices: np.ndarray, faces: np.ndarray, *, max_faces: int) -> Surface:
    """At most max_faces faces by quadric edge collapse (Garland and Heckbert 1997), at least 95 % of it when reduced.

    Milder settings are tried while the result is not closed; the last one is returned as it is.
    """
    if len(faces) <= max_faces:
        return tidy(vertices, faces)
    import fast_simplification

    for aggressiveness in (5.0, 7.0, 3.0):
        points, triangles = fast_simplification.simplify(
            vertices, faces.astype(np.int32), target_count=max_faces - max_faces // 100, agg=aggressiveness
        )
        surface = tidy(points, triangles)
        if is_closed(surface[1]) and 0.95 * max_faces <= len(surface[1]) <= max_faces:
            break
    return surface


def decimate_with_colours(
    vertices: np.ndarray, faces: np.ndarray, colours: np.ndarray, *, max_faces: int, height: float
) -> Surface:
    """`decimate` that keeps the borders between colours.

    colours: (N, 3) in [0, 1]. height: of a full step in the vertices' unit, some edges. Edge collapse sees shapes only, so
    each vertex is first lifted along its normal by its colour, along the axis on which the colours vary most: a border
    becomes a step, which costs as much as a crease. Afterwards the new vertices are lowered again.
    """
    if len(faces) <= max_faces:
        return tidy(vertices, faces)
    centred = colours - colours.mean(0)
    tone = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1]
    lift = vertex_normals(vertices, faces) * ((tone - tone.min()) * height)[:, None]
    points, triangles = decimate(vertices + lift, faces, max_faces=max_faces)
    lifted = NearestSurface(vertices + lift, faces)
    nearest, weights = lifted.locate(points, vertex_normals(points, triangles))
    return tidy(points - np.einsum("kc,kci->ki", weights, lift[lifted.faces[nearest]]), triangles)


def tidy(vertices: np.ndarray, faces: np.ndarray) -> Surface:
    """Weld equal vertices (as float32), drop degenerate faces, and drop faces that occur twice.

    Two faces on the same three corners are a fold without volume: both go, so that a closed surface stays closed.
    """
    _, first, welded = np.unique(vertices.astype(np.float32), axis=0, return_index=True, return_inverse=True)
    vertices, faces = vertices[first], welded.reshape(-1)[faces]
    while True:
        before = len(faces)
        a, b, c = faces.T
        faces = faces[(a != b) & (b != c) & (c != a)]
        _, inverse, counts = np.unique(np.sort(faces, 1), axis=0, return_inverse=True, return_counts=True)
        faces = faces[counts[inverse.reshape(-1)] == 1]
        vertices, faces = collapse_slivers(vertices, faces)
        if len(faces) == before:
            return drop_unused(vertices, faces)


def collapse_slivers(vertices: np.ndarray, faces: np.ndarray, *, min_area: float = 1e-11) -> Surface:
    """Join the two closest corners of every face without area; `tidy` then drops the faces this makes degenerate."""
    flat = faces[face_areas(vertices, faces) < min_area]
    if not len(flat):
        return vertices, faces
    sides = np.linalg.norm(vertices[flat] - vertices[np.roll(flat, -1, axis=1)], axis=2)
    shortest = sides.argmin(1)
    rows = np.arange(len(flat))
    target = np.arange(len(vertices))
    target[flat[rows, (shortest + 1) % 3]] = flat[rows, shortest]
    return vertices, target[faces]


def drop_unused(vertices: np.ndarray, faces: np.ndarray) -> Surface:
    """The same surface without vertices that no face uses; order is kept."""
    used, renumbered = np.unique(faces, return_inverse=True)
    return vertices[used], renumbered.reshape(-1, 3).astype(np.int32)
