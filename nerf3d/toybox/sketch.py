"""A sketch collects primitives in plain numbers and becomes the `Parts` of one object.

Kinds draw in any unit with +Y up and the front on +Z; `Sketch.finish` stretches, centres and scales the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from nerf3d.toybox.primitives import HEXAHEDRON, MAX_PARTS, QUADRIC, TORUS, Parts

OBJECT_RADIUS = 0.8
"""Every object lies inside the sphere of this radius around the origin, metres."""

Vector = tuple[float, float, float]
Slot = int | Vector
"""Index of a colourable part of the kind, or a fixed rgb colour in [0, 1]."""

_ANGLE = np.arange(16) * (math.pi / 8)
_COS, _SIN = np.cos(_ANGLE), np.sin(_ANGLE)
_LEVEL = np.sin(np.linspace(-math.pi / 2, math.pi / 2, 9))
_RIM = np.sqrt(1 - _LEVEL**2)


class Sketch:
    """A pen for one object. `vary` gives the mean proportion itself unless random numbers in [0, 1) are handed in."""

    def __init__(self, randoms: Sequence[float] | None = None) -> None:
        self._randoms = None if randoms is None else iter(randoms)
        self.shapes: list[int] = []
        self.params: list[Sequence[float]] = []
        self.frames: list[list[float]] = []
        self.slots: list[Slot] = []

    def vary(self, value: float, share: float = 0.1) -> float:
        """value, changed by up to the given share either way."""
        if self._randoms is None:
            return value
        return value * (1 + share * (2 * next(self._randoms) - 1))

    def box(self, slot: Slot, centre: Vector, size: Vector, *, top=(1.0, 1.0), shift=(0.0, 0.0), turn=None) -> None:
        """A box of full extents size; its top face is scaled by top and moved by shift, both (x, z), shift in units.

        turn: (axis "x" | "y" | "z", degrees), a right-handed rotation about the centre.
        """
        hx, hy, hz = size[0] / 2, size[1] / 2, size[2] / 2
        params = (1.0, 1.0, max(top[0], 1e-3), max(top[1], 1e-3), shift[0] / hx, shift[1] / hz)
        self._add(HEXAHEDRON, params, _columns(turn, hx, hy, hz), centre, slot)

    def ball(self, slot: Slot, centre: Vector, radii: Vector | float, *, turn=None) -> None:
        """An ellipsoid."""
        rx, ry, rz = radii if isinstance(radii, tuple) else (radii, radii, radii)
        self._add(QUADRIC, (1.0, 0.0, -1.0, -1.0, 1.0, 0.0), _columns(turn, rx, ry, rz), centre, slot)

    def dome(self, slot: Slot, base: Vector, radii: Vector, *, turn=None) -> None:
        """Half an ellipsoid with its flat side at base; a negative height radius opens upward, like a bowl."""
        self._add(QUADRIC, (1.0, 0.0, -1.0, 0.0, 1.0, 0.0), _columns(turn, *radii), base, slot)

    def tube(self, slot: Slot, start: Vector, end: Vector, radius: float, end_radius=None, *, middle=None, flat=(1, 1)):
        """A cylinder or cone frustum from start to end; middle: the radius halfway, for barrels and waists.

        flat scales the cross-section along the two axes that are not the tube's, in the order x, y, z where they exist.
        """
        last = radius if end_radius is None else end_radius
        largest = max(radius, last, middle or 0.0)
        r0, r1 = radius / largest, last / largest
        if middle is None:
            a, b, c = r0 * r0, 2 * r0 * (r1 - r0), (r1 - r0) ** 2
        else:
            m2 = (middle / largest) ** 2
            a, c = r0 * r0, 2 * (r0 * r0 + r1 * r1) - 4 * m2
            b = r1 * r1 - r0 * r0 - c
        axis = [e - s for s, e in zip(start, end, strict=True)]
        length = math.sqrt(sum(v * v for v in axis))
        d = [v / length for v in axis]
        reference = (0.0, 1.0, 0.0) if abs(d[0]) > 0.9 else (1.0, 0.0, 0.0)
        along = sum(p * q for p, q in zip(reference, d, strict=True))
        ex = [p - along * q for p, q in zip(reference, d, strict=True)]
        norm = math.sqrt(sum(v * v for v in ex))
        ex = [v / norm for v in ex]
        ez = (ex[1] * d[2] - ex[2] * d[1], ex[2] * d[0] - ex[0] * d[2], ex[0] * d[1] - ex[1] * d[0])
        wide, deep = largest * flat[0], largest * flat[1]
        columns = ([v * wide for v in ex], axis, [v * deep for v in ez])
        self._add(QUADRIC, (a, b, c, 0.0, 1.0, 0.0), columns, start, slot)

    def ring(self, slot: Slot, centre: Vector, radius: float, thickness: float, *, turn=None) -> None:
        """A torus around the y axis (before turn): radius to the tube's centre, thickness the tube's radius."""
        columns = _columns(turn, radius, radius, radius)
        self._add(TORUS, (thickness / radius, 0.0, 0.0, 0.0, 0.0, 0.0), columns, centre, slot)

    def _add(self, shape, params, columns, origin, slot) -> None:
        self.shapes.append(shape)
        self.params.append(params)
        x, y, z = columns
        self.frames.append([v for k in range(3) for v in (x[k], y[k], z[k], origin[k])])
        self.slots.append(slot)

    def finish(self, *, stretch: Vector, radius: float, palette: Sequence[Vector]) -> Parts:
        """Stretches along x, y, z, centres the bounding box and scales to the bounding radius (metres).

        palette: the rgb colour of each slot number. Raises ValueError for more than 14 parts.
        """
        if len(self.shapes) > MAX_PARTS:
            raise ValueError(f"this object has {len(self.shapes)} parts; draw at most {MAX_PARTS}, the renderer's share.")
        frame = np.array(self.frames).reshape(-1, 3, 4) * np.array(stretch)[:, None]
        params = np.array(self.params)
        shape = np.array(self.shapes)
        points = surface_points(shape, params)
        world = points @ frame[:, :, :3].transpose(0, 2, 1) + frame[:, None, :, 3]
        world = world.reshape(-1, 3)
        centre = (world.min(0) + world.max(0)) / 2
        world -= centre
        scale = radius / math.sqrt((world * world).sum(1).max())
        frame[:, :, 3] -= centre
        frame *= scale
        albedo = np.array([palette[s] if isinstance(s, int) else s for s in self.slots], dtype=np.float32)
        return Parts(
            torch.from_numpy(shape),
            torch.from_numpy(params.astype(np.float32)),
            torch.from_numpy(frame.astype(np.float32)),
            torch.from_numpy(albedo),
        )


def _columns(turn, x: float, y: float, z: float):
    """Columns of rotation(turn) @ diag(x, y, z)."""
    if turn is None:
        return (x, 0.0, 0.0), (0.0, y, 0.0), (0.0, 0.0, z)
    axis, degrees = turn
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    if axis == "x":
        return (x, 0.0, 0.0), (0.0, c * y, s * y), (0.0, -s * z, c * z)
    if axis == "y":
        return (c * x, 0.0, -s * x), (0.0, y, 0.0), (s * z, 0.0, c * z)
    return (c * x, s * x, 0.0), (-s * y, c * y, 0.0), (0.0, 0.0, z)


def surface_points(shape: np.ndarray, params: np.ndarray) -> np.ndarray:
    """Local points on each part's surface (P, 144, 3) that reach its extremes."""
    p = params[:, :, None]
    y = (p[:, 3] + p[:, 4]) / 2 + (p[:, 4] - p[:, 3]) / 2 * _LEVEL
    radius = np.sqrt(np.maximum(p[:, 0] + p[:, 1] * y + p[:, 2] * y * y, 0))
    torus = shape == TORUS
    if torus.any():
        y[torus] = p[torus, 0] * _LEVEL
        radius[torus] = 1 + p[torus, 0] * _RIM
    rings = np.empty((len(shape), 9, 16, 3))
    rings[..., 0] = radius[..., None] * _COS
    rings[..., 1] = y[..., None]
    rings[..., 2] = radius[..., None] * _SIN
    points = rings.reshape(len(shape), 144, 3)
    hexa = shape == HEXAHEDRON
    if hexa.any():
        bx, bz, tx, tz, sx, sz = params[hexa].T
        one = np.ones_like(bx)
        corners = [(u * bx, -one, v * bz) for u in (-1, 1) for v in (-1, 1)]
        corners += [(sx + u * tx, one, sz + v * tz) for u in (-1, 1) for v in (-1, 1)]
        points[hexa] = np.tile(np.array(corners).transpose(2, 0, 1), (1, 18, 1))
    return points
