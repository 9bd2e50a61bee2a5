"""Food."""

from nerf3d.toybox.kinds.registry import BARK, CHERRY, LEAF, kind
from nerf3d.toybox.sketch import Sketch


@kind("donut", "icing", "dough", proportions=("small",))
def donut(s: Sketch) -> None:
    """Lying flat, icing on the upper half; no front."""
    r = s.vary(0.25)
    s.ring(1, (0, 0, 0), 0.52, r)
    s.ring(0, (0, 0.075, 0), 0.52, r * 0.94)


@kind("ice cream", "scoop", "cone")
def ice_cream(s: Sketch) -> None:
    """One scoop in a cone, with a cherry; no front."""
    r = s.vary(0.4)
    s.tube(1, (0, 0, 0), (0, s.vary(0.95), 0), 0.03, 0.36)
    s.ball(0, (0, 1.12, 0), r)
    s.ring(0, (0, 0.95, 0), 0.33, 0.09)
    s.ball(CHERRY, (0, 1.12 + r + 0.04, 0), 0.12)


@kind("cake", "cake", "icing")
def cake(s: Sketch) -> None:
    """A round cake on a plate, icing on top, one lit candle; no front."""
    r, h = s.vary(0.7), s.vary(0.5)
    s.tube((0.93, 0.93, 0.93), (0, -0.06, 0), (0, 0, 0), r + 0.18)
    s.tube(0, (0, 0, 0), (0, h, 0), r)
    s.tube(1, (0, h * 0.78, 0), (0, h + 0.03, 0), r + 0.035)
    for x, z in ((0, 1), (0.866, -0.5), (-0.866, -0.5)):
        s.ball(CHERRY, (x * r * 0.7, h + 0.09, z * r * 0.7), 0.1)
    s.tube((0.6, 0.85, 0.95), (0, h, 0), (0, h + 0.35, 0), 0.06)
    s.ball((1.0, 0.75, 0.15), (0, h + 0.44, 0), (0.06, 0.11, 0.06))


@kind("apple", "apple", size=0.85, proportions=("small",))
def apple(s: Sketch) -> None:
    """Brown stem and green leaf on top, the leaf toward +X."""
    r = s.vary(0.6, 0.06)
    for side in (-1, 1):
        s.ball(0, (side * 0.1, 0, 0), (r * 0.95, 0.6, r))
    s.tube(BARK, (0, 0.5, 0), (0.05, 0.88, 0), 0.05)
    s.ball(LEAF, (0.24, 0.78, 0), (0.2, 0.06, 0.11), turn=("z", 25))


@kind("mushroom", "cap", "stem")
def mushroom(s: Sketch) -> None:
    """No front."""
    h, r = s.vary(0.6), s.vary(0.72)
    s.tube(1, (0, 0, 0), (0, h + 0.1, 0), 0.26, 0.2)
    s.dome(0, (0, h, 0), (r, s.vary(0.52), r))
    s.dome(0, (0, h + 0.01, 0), (r, -0.1, r))


@kind("carrot", "root", "leaves", proportions=("tall", "thin", "small"))
def carrot(s: Sketch) -> None:
    """Upright, tip down; no front."""
    s.tube(0, (0, 0, 0), (0, s.vary(1.2), 0), 0.02, s.vary(0.32))
    s.dome(0, (0, 1.18, 0), (0.3, 0.1, 0.3))
    s.tube(1, (0, 1.2, 0), (0, 1.75, 0), 0.05, 0.14)
    for x, z in ((0.25, 0.1), (-0.2, 0.2), (0.0, -0.27)):
        s.tube(1, (0, 1.2, 0), (x * 1.3, 1.65, z * 1.3), 0.05, 0.12)


@kind("burger", "bun", "filling", size=0.9, proportions=("small", "tall"))
def burger(s: Sketch) -> None:
    """Bun, filling and a fixed green salad leaf; no front."""
    r = s.vary(0.7)
    s.tube(0, (0, 0, 0), (0, 0.22, 0), r * 0.92, r)
    s.tube(1, (0, 0.22, 0), (0, 0.42, 0), r * 1.04)
    s.tube(LEAF, (0, 0.42, 0), (0, 0.49, 0), r * 1.12)
    s.dome(0, (0, 0.49, 0), (r, s.vary(0.48), r))
