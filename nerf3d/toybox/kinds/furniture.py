"""Furniture."""

from nerf3d.toybox.kinds.registry import BLACK, WHITE, kind
from nerf3d.toybox.sketch import Sketch


def _four_legs(s: Sketch, slot, x: float, z: float, height: float, size: float) -> None:
    for sx in (-1, 1):
        for sz in (-1, 1):
            s.box(slot, (sx * x, height / 2, sz * z), (size, height, size))


@kind("table", "top", "legs")
def table(s: Sketch) -> None:
    """A long side is the front."""
    w, d, h = s.vary(1.5), s.vary(0.95), s.vary(0.75)
    s.box(0, (0, h + 0.06, 0), (w, 0.13, d))
    _four_legs(s, 1, w / 2 - 0.1, d / 2 - 0.1, h, s.vary(0.13))


@kind("chair", "seat", "legs")
def chair(s: Sketch) -> None:
    """The back rest is behind the seat, on -Z; seat and back share a colour."""
    w, h, back = s.vary(0.62), s.vary(0.52), s.vary(0.72)
    s.box(0, (0, h, 0), (w, 0.11, w))
    s.box(0, (0, h + back / 2 + 0.02, -w / 2 + 0.05), (w, back, 0.1), shift=(0, -0.04))
    _four_legs(s, 1, w / 2 - 0.06, w / 2 - 0.06, h, 0.1)


@kind("stool", "seat", "legs")
def stool(s: Sketch) -> None:
    """Round seat on three splayed legs and a foot ring; one leg is in front."""
    h, r = s.vary(1.0), s.vary(0.42)
    s.tube(0, (0, h, 0), (0, h + 0.14, 0), r)
    for x, z in ((0, 1), (0.866, -0.5), (-0.866, -0.5)):
        s.tube(1, (x * r * 1.1, 0, z * r * 1.1), (x * r * 0.6, h, z * r * 0.6), 0.06)
    s.ring(1, (0, h * 0.4, 0), r * 0.9, 0.035)


@kind("bench", "seat", "legs")
def bench(s: Sketch) -> None:
    """A park bench of planks; the back rest is on -Z."""
    w = s.vary(1.7)
    for z in (-0.17, 0.17):
        s.box(0, (0, 0.45, z), (w, 0.09, 0.29))
    for y in (0.68, 0.95):
        s.box(0, (0, y, -0.36 - 0.06 * (y - 0.5)), (w, 0.2, 0.08))
    for side in (-1, 1):
        x = side * (w / 2 - 0.2)
        s.box(1, (x, 0.2, 0.22), (0.11, 0.42, 0.11))
        s.box(1, (x, 0.52, -0.33), (0.11, 1.05, 0.11))
        s.box(1, (x, 0.36, -0.05), (0.11, 0.1, 0.6))


@kind("bed", "frame", "blanket")
def bed(s: Sketch) -> None:
    """The foot end is the front; the head board and the white pillow are on -Z."""
    w, length = s.vary(1.1), s.vary(1.6)
    s.box(0, (0, 0.2, 0), (w, 0.2, length))
    s.box(0, (0, 0.42, -length / 2), (w + 0.08, s.vary(0.84), 0.1))
    s.box(0, (0, 0.26, length / 2), (w + 0.08, 0.52, 0.1))
    s.box(WHITE, (0, 0.36, 0), (w - 0.06, 0.14, length - 0.1))
    s.box(1, (0, 0.40, length * 0.12), (w + 0.02, 0.18, length * 0.68))
    s.ball(WHITE, (0, 0.48, -length * 0.35), (w * 0.36, 0.12, 0.2))


@kind("sofa", "frame", "cushions")
def sofa(s: Sketch) -> None:
    """The open side is the front; back rest on -Z."""
    w = s.vary(1.7)
    s.box(0, (0, 0.22, 0), (w, 0.28, 0.8))
    s.box(0, (0, 0.55, -0.33), (w, s.vary(0.75), 0.2))
    for side in (-1, 1):
        s.box(0, (side * (w / 2 - 0.04), 0.36, 0), (0.24, 0.56, 0.84))
        s.box(1, (side * w * 0.215, 0.45, 0.1), (w * 0.4, 0.2, 0.66))
        s.box(1, (side * w * 0.215, 0.72, -0.17), (w * 0.4, 0.38, 0.16), turn=("x", -12))
    for x in (-1, 1):
        for z in (-0.3, 0.3):
            s.box(BLACK, (x * (w / 2 - 0.1), 0.04, z), (0.1, 0.1, 0.1))


@kind("lamp", "shade", "base")
def lamp(s: Sketch) -> None:
    """A table lamp; no front."""
    h = s.vary(0.8)
    s.tube(1, (0, 0, 0), (0, 0.1, 0), 0.36)
    s.tube(1, (0, 0, 0), (0, h, 0), 0.065)
    s.tube(0, (0, h - 0.06, 0), (0, h + s.vary(0.52), 0), s.vary(0.55), 0.3)


@kind("television", "frame", "stand")
def television(s: Sketch) -> None:
    """The dark screen is the front."""
    w, h = s.vary(1.6), s.vary(1.0)
    s.box(0, (0, 0.35 + h / 2, 0), (w, h, 0.16))
    s.box((0.12, 0.14, 0.2), (0, 0.35 + h / 2, 0.03), (w - 0.16, h - 0.16, 0.13))
    s.box(1, (0, 0.2, 0), (0.2, 0.4, 0.1))
    s.box(1, (0, 0.03, 0), (0.8, 0.08, 0.42))
