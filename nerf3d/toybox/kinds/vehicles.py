"""Vehicles; all drive or fly toward +Z unless their docstring says otherwise."""

from nerf3d.toybox.kinds.registry import BLACK, DARK, GLASS, GOLD, STEEL, kind
from nerf3d.toybox.sketch import Sketch


def _wheels(s: Sketch, x: float, zs: tuple[float, ...], radius: float, width: float = 0.16) -> None:
    for side in (-1, 1):
        for z in zs:
            s.tube(BLACK, (side * (x - width / 2), radius, z), (side * (x + width / 2), radius, z), radius)


@kind("car", "body", "roof")
def car(s: Sketch) -> None:
    """Bonnet and yellow lights toward +Z; black wheels, blue windows."""
    length, w = s.vary(1.7), s.vary(0.78)
    s.box(0, (0, 0.36, 0), (w, 0.32, length))
    s.box(GLASS, (0, 0.64, -0.1), (w - 0.06, 0.3, length * 0.58), top=(0.86, 0.66))
    s.box(1, (0, 0.81, -0.1), (w - 0.1, 0.08, length * 0.42), top=(0.9, 0.9))
    _wheels(s, w / 2 - 0.02, (-length * 0.3, length * 0.3), 0.22)
    for side in (-1, 1):
        s.ball(GOLD, (side * w * 0.33, 0.4, length / 2), (0.09, 0.07, 0.04))


@kind("truck", "cab", "trailer")
def truck(s: Sketch) -> None:
    """The cab is toward +Z, the box behind it."""
    w = s.vary(0.74)
    s.box(0, (0, 0.5, 0.6), (w, 0.66, 0.5))
    s.box(GLASS, (0, 0.66, 0.62), (w + 0.02, 0.24, 0.5), top=(1, 0.94))
    s.box(1, (0, 0.68, -0.3), (w + 0.06, s.vary(0.88), 1.2))
    s.box(DARK, (0, 0.2, -0.05), (w - 0.14, 0.1, 1.6))
    _wheels(s, w / 2 - 0.04, (-0.62, -0.2, 0.58), 0.2)
    for side in (-1, 1):
        s.ball(GOLD, (side * w * 0.34, 0.34, 0.85), (0.09, 0.07, 0.04))


@kind("bus", "body", "roof")
def bus(s: Sketch) -> None:
    """Wind screen and lights toward +Z, a row of windows on both sides."""
    length, w = s.vary(1.7), s.vary(0.68)
    s.box(0, (0, 0.5, 0), (w, 0.66, length))
    s.box(GLASS, (0, 0.66, -0.02), (w + 0.02, 0.22, length * 0.84))
    s.box(GLASS, (0, 0.62, length / 2 - 0.03), (w * 0.84, 0.3, 0.1))
    s.box(1, (0, 0.87, 0), (w, 0.14, length), top=(0.8, 0.94))
    _wheels(s, w / 2 - 0.04, (-length * 0.3, length * 0.3), 0.19)
    for side in (-1, 1):
        s.ball(GOLD, (side * w * 0.32, 0.32, length / 2), (0.08, 0.06, 0.04))
        s.box(0, (side * w / 2, 0.66, 0), (0.03, 0.24, 0.09))


@kind("train", "engine", "cab")
def train(s: Sketch) -> None:
    """A steam engine, boiler and chimney toward +Z, the cab behind."""
    r = s.vary(0.3)
    s.tube(0, (0, 0.56, -0.3), (0, 0.56, 0.72), r)
    s.tube(DARK, (0, 0.56, 0.7), (0, 0.56, 0.76), r * 0.8)
    s.tube(DARK, (0, 0.8, 0.5), (0, s.vary(1.22, 0.05), 0.5), 0.09, 0.15)
    s.ball(GOLD, (0, 0.86, 0.1), (0.12, 0.13, 0.12))
    s.box(1, (0, 0.72, -0.5), (0.7, 0.8, 0.5))
    s.box(1, (0, 1.16, -0.5), (0.86, 0.09, 0.66))
    s.box(GLASS, (0, 0.9, -0.5), (0.72, 0.22, 0.28))
    s.box(0, (0, 0.28, 0), (0.62, 0.12, 1.5))
    _wheels(s, 0.34, (-0.5, 0.02, 0.5), 0.2, 0.12)


@kind("rocket", "body", "nose", "fins")
def rocket(s: Sketch) -> None:
    """Upright; the round window faces +Z, one of the four fins points there too."""
    h, r = s.vary(0.95), s.vary(0.27)
    s.tube(0, (0, 0.25, 0), (0, 0.25 + h, 0), r * 0.9, r * 0.95, middle=r * 1.08)
    s.tube(1, (0, 0.25 + h, 0), (0, 0.72 + h, 0), r * 0.95, 0.0)
    s.tube(GLASS, (0, h * 0.85, r * 0.8), (0, h * 0.85, r * 1.08), 0.12)
    s.tube(DARK, (0, 0.1, 0), (0, 0.26, 0), 0.22, 0.15)
    for x, z in ((0, 1), (1, 0), (0, -1), (-1, 0)):
        size = (0.34, 0.55, 0.07) if x else (0.07, 0.55, 0.34)
        top, shift = ((0.2, 1), (-x * 0.14, 0)) if x else ((1, 0.2), (0, -z * 0.14))
        s.box(2, (x * (r + 0.12), 0.28, z * (r + 0.12)), size, top=top, shift=shift)


@kind("boat", "hull", "sail")
def boat(s: Sketch) -> None:
    """A sailing boat, bow toward +Z, with a brown mast."""
    length, w = s.vary(1.3), s.vary(0.56)
    s.box(0, (0, 0.15, -0.15), (w * 0.8, 0.32, length * 0.6), top=(1.25, 1.08), shift=(0, -0.02))
    bow = length * 0.36
    s.box(0, (0, 0.15, length * 0.28 - 0.15 + bow / 2), (w, bow, 0.32), top=(0, 0.4), shift=(0, -0.1), turn=("x", 90))
    s.tube((0.5, 0.32, 0.18), (0, 0.25, 0.1), (0, 1.5, 0.1), 0.04)
    h = s.vary(1.0)
    s.box(1, (0, 0.42 + h / 2, -0.28), (0.05, h, 0.7), top=(1, 0), shift=(0, 0.33))
    s.box(1, (0, 0.42 + h * 0.4, 0.35), (0.05, h * 0.8, 0.4), top=(1, 0), shift=(0, -0.19))


@kind("plane", "body", "wings")
def plane(s: Sketch) -> None:
    """Nose toward +Z; blue cockpit, tail fin on -Z."""
    r, span = s.vary(0.2), s.vary(1.8)
    s.tube(0, (0, 0, -0.35), (0, 0, 0.45), r)
    s.dome(0, (0, 0, 0.45), (r, 0.34, r), turn=("x", 90))
    s.tube(0, (0, 0, -0.35), (0, 0.06, -0.95), r, 0.06)
    s.ball(GLASS, (0, 0.14, 0.4), (0.12, 0.12, 0.22))
    for side in (-1, 1):
        centre, size = (side * span / 4, -0.03, 0.08), (0.06, span / 2, 0.5)
        s.box(1, centre, size, top=(1, 0.5), shift=(0, -0.14), turn=("z", -90 * side))
    s.box(1, (0, 0.04, -0.84), (0.7, 0.05, 0.24))
    s.box(1, (0, 0.26, -0.84), (0.05, 0.44, 0.3), top=(1, 0.5), shift=(0, -0.07))


@kind("helicopter", "body", "blades")
def helicopter(s: Sketch) -> None:
    """Blue cockpit toward +Z, tail toward -Z, four rotor blades on top."""
    r = s.vary(0.36)
    s.ball(0, (0, 0, 0.2), (r, 0.34, 0.5))
    s.ball(GLASS, (0, 0.06, 0.4), (r * 0.85, 0.26, 0.36))
    s.tube(0, (0, 0.08, -0.1), (0, 0.16, -0.98), 0.16, 0.06)
    s.box(1, (0, 0.28, -0.96), (0.05, 0.38, 0.18), top=(1, 0.7))
    s.tube(DARK, (0, 0.3, 0.15), (0, 0.5, 0.15), 0.05)
    for turn in (45, 135):
        s.box(1, (0, 0.5, 0.15), (s.vary(1.7, 0.05), 0.04, 0.13), turn=("y", turn))
    for side in (-1, 1):
        s.tube(DARK, (side * 0.26, -0.48, -0.25), (side * 0.26, -0.48, 0.7), 0.045)
        for z in (0.0, 0.4):
            s.tube(DARK, (side * 0.26, -0.48, z), (side * 0.16, -0.2, z), 0.035)


@kind("balloon", "balloon", "basket", proportions=("tall", "wide", "small"))
def balloon(s: Sketch) -> None:
    """A hot-air balloon; no front."""
    r = s.vary(0.6)
    s.dome(0, (0, 0.35, 0), (r, 0.6, r))
    s.tube(0, (0, -0.28, 0), (0, 0.35, 0), 0.2, r)
    s.box(1, (0, -0.72, 0), (0.34, 0.26, 0.34))
    for x in (-1, 1):
        for z in (-1, 1):
            s.tube(DARK, (x * 0.15, -0.6, z * 0.15), (x * 0.13, -0.26, z * 0.13), 0.02)


@kind("tank", "hull", "turret", proportions=("wide", "tall", "small"))
def tank(s: Sketch) -> None:
    """The gun points to +Z; dark tracks on both sides."""
    w = s.vary(0.8)
    s.box(0, (0, 0.38, 0), (w, 0.28, 1.3), top=(0.9, 0.86))
    for side in (-1, 1):
        s.box(DARK, (side * (w / 2 + 0.02), 0.24, 0), (0.26, 0.36, 1.0))
        for z in (-0.5, 0.5):
            s.tube(DARK, (side * (w / 2 - 0.11), 0.24, z), (side * (w / 2 + 0.15), 0.24, z), 0.18)
    s.tube(1, (0, 0.5, -0.08), (0, 0.8, -0.08), s.vary(0.36), 0.27)
    s.tube(1, (0, 0.66, 0.1), (0, 0.7, 0.95), 0.07)
    s.tube(STEEL, (0, 0.79, -0.1), (0, 0.83, -0.1), 0.12)
