"""Plants."""

from nerf3d.toybox.kinds.registry import GOLD, kind
from nerf3d.toybox.sketch import Sketch


@kind("tree", "leaves", "trunk")
def tree(s: Sketch) -> None:
    """A round crown of several balls; no front."""
    h = s.vary(0.65)
    s.tube(1, (0, 0, 0), (0, h + 0.2, 0), s.vary(0.15), 0.11)
    s.ball(0, (0, h + 0.62, 0), s.vary(0.45))
    for x, z in ((0.32, 0.12), (-0.26, 0.22), (-0.05, -0.33)):
        s.ball(0, (x, h + 0.36, z), 0.34)


@kind("pine tree", "leaves", "trunk")
def pine_tree(s: Sketch) -> None:
    """Three stacked cones; no front."""
    r = s.vary(0.55)
    s.tube(1, (0, 0, 0), (0, 0.4, 0), s.vary(0.13))
    for y, k in ((0.32, 1.0), (0.7, 0.8), (1.06, 0.58)):
        s.tube(0, (0, y, 0), (0, y + 0.62 * k + 0.1, 0), r * k, 0.0)


@kind("plant", "leaves", "pot")
def plant(s: Sketch) -> None:
    """Long leaves in a pot; no front."""
    s.tube(1, (0, 0, 0), (0, 0.5, 0), 0.26, s.vary(0.38))
    s.tube(1, (0, 0.42, 0), (0, 0.55, 0), 0.43)
    s.tube((0.25, 0.15, 0.09), (0, 0.5, 0), (0, 0.56, 0), 0.36)
    s.ball(0, (0, 1.05, 0), (0.13, 0.5, 0.06))
    for x, z, turn in ((0.26, 0, ("z", -32)), (-0.26, 0, ("z", 32)), (0, 0.26, ("x", 32)), (0, -0.26, ("x", -32))):
        s.ball(0, (x, 0.92, z), (0.12, 0.46, 0.06), turn=turn)


@kind("flower", "petals", "stem")
def flower(s: Sketch) -> None:
    """The blossom faces the front, +Z."""
    h, r = s.vary(1.0), s.vary(0.3)
    s.tube(1, (0, 0, 0), (0, h, 0), 0.05)
    for side in (-1, 1):
        s.ball(1, (side * 0.2, h * 0.32, 0), (0.2, 0.07, 0.1), turn=("z", side * 30))
    for x, y in ((0, 1), (0.866, 0.5), (0.866, -0.5), (0, -1), (-0.866, -0.5), (-0.866, 0.5)):
        s.ball(0, (x * r, h + 0.1 + y * r, 0.06), (0.19, 0.19, 0.07))
    s.ball(GOLD, (0, h + 0.1, 0.09), (0.18, 0.18, 0.12))


@kind("cactus", "cactus", "pot", proportions=("tall", "small", "thin"))
def cactus(s: Sketch) -> None:
    """Two arms, the higher one on the object's left, +X."""
    h = s.vary(1.0)
    s.tube(1, (0, 0, 0), (0, 0.36, 0), 0.26, 0.36)
    s.tube(0, (0, 0.3, 0), (0, 0.36 + h, 0), 0.19)
    s.ball(0, (0, 0.36 + h, 0), 0.19)
    for side, y, top in ((1, 0.85, 0.42), (-1, 0.68, 0.36)):
        s.tube(0, (0, y, 0), (side * 0.4, y, 0), 0.1)
        s.ball(0, (side * 0.4, y, 0), 0.1)
        s.tube(0, (side * 0.4, y, 0), (side * 0.4, y + top, 0), 0.1)
        s.ball(0, (side * 0.4, y + top, 0), 0.1)
