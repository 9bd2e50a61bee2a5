"""Buildings."""

from nerf3d.toybox.kinds.registry import BARK, DARK, GLASS, GOLD, kind
from nerf3d.toybox.sketch import Sketch


@kind("house", "walls", "roof")
def house(s: Sketch) -> None:
    """The door and two windows face +Z; the roof's ridge runs left to right."""
    w, d, h, r = s.vary(1.15), s.vary(0.95), s.vary(0.68), s.vary(0.52)
    s.box(0, (0, h / 2, 0), (w, h, d))
    s.box(1, (0, h + r / 2, 0), (w + 0.22, r, d + 0.26), top=(1, 0))
    s.box(1, (w * 0.3, h + r * 0.75, -d * 0.18), (0.16, r * 0.7, 0.16))
    s.box(BARK, (0, 0.22, d / 2), (0.24, 0.44, 0.04))
    for side in (-1, 1):
        s.box(GLASS, (side * w * 0.32, h * 0.55, d / 2), (0.22, 0.22, 0.04))
        s.box(GLASS, (side * w / 2, h * 0.55, 0), (0.04, 0.22, 0.3))


@kind("lighthouse", "tower", "roof")
def lighthouse(s: Sketch) -> None:
    """The door faces +Z; glowing lamp room under the roof."""
    h, r = s.vary(1.25), s.vary(0.34)
    s.tube(0, (0, 0, 0), (0, h, 0), r, r * 0.62)
    s.tube(DARK, (0, h, 0), (0, h + 0.07, 0), r * 0.9)
    s.tube(GOLD, (0, h + 0.06, 0), (0, h + 0.3, 0), r * 0.5)
    s.tube(1, (0, h + 0.29, 0), (0, h + 0.58, 0), r * 0.75, 0.0)
    s.tube(1, (0, -0.06, 0), (0, 0.1, 0), r * 1.25)
    s.box(BARK, (0, 0.26, r * 0.86), (0.19, 0.36, 0.14))


@kind("castle", "walls", "roofs")
def castle(s: Sketch) -> None:
    """Four round towers with pointed roofs; the gate faces +Z."""
    w, h = s.vary(0.55), s.vary(0.62)
    s.box(0, (0, h / 2, 0), (2 * w, h, 2 * w))
    for x in (-w, w):
        for z in (-w, w):
            s.tube(0, (x, 0, z), (x, h + 0.28, z), 0.22)
            s.tube(1, (x, h + 0.26, z), (x, h + 0.72, z), 0.29, 0.0)
    s.box(BARK, (0, 0.22, w), (0.34, 0.44, 0.06))
    s.box(0, (0, h + 0.15, 0), (w * 0.9, 0.5, w * 0.9))
    s.box(1, (0, h + 0.56, 0), (w * 1.1, 0.36, w * 1.1), top=(0, 0))


@kind("windmill", "tower", "blades")
def windmill(s: Sketch) -> None:
    """Four blades and the door face +Z; dark cap."""
    h, r = s.vary(1.1), s.vary(0.4)
    s.tube(0, (0, 0, 0), (0, h, 0), r, r * 0.6)
    s.dome(DARK, (0, h, 0), (r * 0.68, 0.24, r * 0.68))
    s.tube(DARK, (0, h + 0.02, 0), (0, h + 0.02, 0.46), 0.06)
    for turn in (45, 135):
        s.box(1, (0, h + 0.02, 0.42), (0.2, s.vary(1.5, 0.05), 0.04), turn=("z", turn))
    s.box(BARK, (0, 0.2, r * 0.9), (0.22, 0.4, 0.1))


@kind("tent", "canvas", "door", proportions=("tall", "wide", "small"))
def tent(s: Sketch) -> None:
    """A ridge tent; the opening faces +Z."""
    w, h, d = s.vary(1.3), s.vary(0.95), s.vary(1.3)
    s.box(0, (0, h / 2, 0), (w, h, d), top=(0, 1))
    s.box(1, (0, h * 0.36, d / 2), (w * 0.5, h * 0.72, 0.05), top=(0, 1))
    for z in (-d / 2, d / 2):
        s.tube(BARK, (0, h * 0.8, z), (0, h + 0.14, z), 0.035)


@kind("church", "walls", "roof")
def church(s: Sketch) -> None:
    """The tower with its spire and the door stand on +Z, the nave behind."""
    w, h = s.vary(0.72), s.vary(0.5)
    s.box(0, (0, h / 2, -0.3), (w, h, 1.1))
    s.box(1, (0, h + 0.2, -0.3), (w + 0.16, 0.42, 1.14), top=(0, 1))
    s.box(0, (0, 0.6, 0.4), (0.46, 1.2, 0.46))
    s.box(1, (0, 1.5, 0.4), (0.56, s.vary(0.66), 0.56), top=(0, 0))
    s.box(BARK, (0, 0.2, 0.63), (0.22, 0.4, 0.04))
    s.tube(GLASS, (0, 0.9, 0.6), (0, 0.9, 0.655), 0.12)
    for side in (-1, 1):
        s.box(GLASS, (side * w / 2, h * 0.55, -0.35), (0.04, 0.26, 0.6))
