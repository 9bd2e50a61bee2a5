"""Plain solids."""

from nerf3d.toybox.kinds.registry import kind
from nerf3d.toybox.sketch import Sketch

_SMALL = ("small",)


@kind("ball", "ball", size=0.78, proportions=_SMALL)
def ball(s: Sketch) -> None:
    """A sphere; no front."""
    s.ball(0, (0, 0, 0), 1.0)


@kind("cube", "cube", size=0.95, proportions=_SMALL)
def cube(s: Sketch) -> None:
    """A cube; a face is the front."""
    s.box(0, (0, 0, 0), (1, 1, 1))


@kind("cylinder", "cylinder")
def cylinder(s: Sketch) -> None:
    """Upright; no front."""
    s.tube(0, (0, 0, 0), (0, s.vary(1.5), 0), 0.5)


@kind("cone", "cone")
def cone(s: Sketch) -> None:
    """Upright, point up; no front."""
    s.tube(0, (0, 0, 0), (0, s.vary(1.5), 0), 0.6, 0.0)


@kind("pyramid", "pyramid")
def pyramid(s: Sketch) -> None:
    """Four sides, point up; a side is the front."""
    s.box(0, (0, 0, 0), (1.5, s.vary(1.2), 1.5), top=(0, 0))


@kind("egg", "egg", size=0.88, proportions=_SMALL)
def egg(s: Sketch) -> None:
    """Upright, narrow end up; no front."""
    s.dome(0, (0, 0, 0), (0.62, -0.62, 0.62))
    s.dome(0, (0, 0, 0), (0.62, s.vary(0.98), 0.62))
