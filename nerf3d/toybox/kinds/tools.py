"""Tools and hand-held things."""

from nerf3d.toybox.kinds.registry import BLACK, WOOD, kind
from nerf3d.toybox.sketch import Sketch

_HAND = ("small", "wide", "thin")


@kind("hammer", "head", "handle", proportions=_HAND)
def hammer(s: Sketch) -> None:
    """Handle down; the striking face is on the object's left, +X."""
    h = s.vary(1.2)
    s.tube(1, (0, 0, 0), (0, h + 0.1, 0), 0.085, 0.07)
    s.box(0, (0, h, 0), (s.vary(0.6), 0.26, 0.26))
    s.tube(0, (0.28, h, 0), (0.45, h, 0), 0.19)
    s.box(0, (-0.42, h, 0), (0.26, 0.26, 0.26), top=(0.15, 1), turn=("z", 90))


@kind("sword", "blade", "handle", proportions=("small", "wide"))
def sword(s: Sketch) -> None:
    """Point up, the flat of the blade to the front."""
    w = s.vary(0.2)
    s.box(0, (0, 0.95, 0), (w, 1.1, 0.07))
    s.box(0, (0, 1.6, 0), (w, 0.22, 0.07), top=(0, 0.3))
    s.box(1, (0, 0.38, 0), (s.vary(0.7), 0.11, 0.15))
    s.tube(1, (0, 0, 0), (0, 0.38, 0), 0.065)
    s.ball(1, (0, -0.03, 0), 0.11)


@kind("key", "key", "handle", proportions=("small", "wide"))
def key(s: Sketch) -> None:
    """The ring to hold on top, teeth on the object's left, +X."""
    h = s.vary(0.95)
    s.tube(0, (0, 0, 0), (0, h, 0), 0.08)
    s.ring(1, (0, h + 0.28, 0), s.vary(0.28), 0.1, turn=("x", 90))
    s.box(0, (0.17, 0.08, 0), (0.3, 0.14, 0.12))
    s.box(0, (0.14, 0.32, 0), (0.24, 0.14, 0.12))


@kind("pencil", "body", "eraser", proportions=("small", "wide"))
def pencil(s: Sketch) -> None:
    """Upright, point up; no front."""
    h, r = s.vary(1.15), s.vary(0.15)
    s.tube(1, (0, -0.2, 0), (0, 0, 0), r * 0.95)
    s.tube((0.75, 0.75, 0.78), (0, -0.05, 0), (0, 0.1, 0), r * 1.06)
    s.tube(0, (0, 0, 0), (0, h, 0), r)
    s.tube((0.90, 0.74, 0.52), (0, h, 0), (0, h + 0.3, 0), r, 0.045)
    s.tube(BLACK, (0, h + 0.26, 0), (0, h + 0.4, 0), 0.055, 0.0)


@kind("barbell", "weights", "bar", proportions=("small", "wide"))
def barbell(s: Sketch) -> None:
    """Lying along x; the long side is the front."""
    w, r = s.vary(0.55), s.vary(0.4)
    s.tube(1, (-w - 0.38, 0, 0), (w + 0.38, 0, 0), 0.08)
    for side in (-1, 1):
        s.tube(0, (side * w, 0, 0), (side * (w + 0.15), 0, 0), r)
        s.tube(0, (side * (w + 0.14), 0, 0), (side * (w + 0.28), 0, 0), r * 0.7)


@kind("ladder", "rails", "rungs", proportions=("small", "wide"))
def ladder(s: Sketch) -> None:
    """Upright; the rungs run left to right."""
    h = s.vary(1.7)
    for side in (-1, 1):
        s.box(0, (side * 0.32, h / 2, 0), (0.1, h, 0.14))
    for k in range(5):
        s.tube(1, (-0.32, h * (0.1 + 0.2 * k), 0), (0.32, h * (0.1 + 0.2 * k), 0), 0.055)


@kind("axe", "head", "handle", proportions=_HAND)
def axe(s: Sketch) -> None:
    """Handle down; the edge is on the object's left, +X."""
    h = s.vary(1.35)
    s.tube(1, (0, 0, 0), (0, h, 0), 0.075)
    s.box(0, (0, h - 0.22, 0), (0.24, 0.3, 0.2))
    s.box(0, (0.34, h - 0.22, 0), (0.66, 0.5, 0.16), top=(0.45, 1), turn=("z", 90))


@kind("guitar", "body", "neck", proportions=("small", "wide"))
def guitar(s: Sketch) -> None:
    """Neck up; the sound hole and strings face +Z."""
    r = s.vary(0.42)
    s.tube(0, (0, 0.42, -0.1), (0, 0.42, 0.1), r)
    s.tube(0, (0, 0.92, -0.1), (0, 0.92, 0.1), r * 0.76)
    s.tube(BLACK, (0, 0.78, 0), (0, 0.78, 0.11), 0.15)
    s.box(1, (0, 1.38, 0.07), (0.14, 0.95, 0.1))
    s.box(1, (0, 1.93, 0.06), (0.24, 0.28, 0.08))
    s.box(WOOD, (0, 0.3, 0.1), (0.34, 0.07, 0.06))
