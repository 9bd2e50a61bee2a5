"""Animals and figures; all look toward +Z."""

from nerf3d.toybox.kinds.registry import BLACK, DARK, GOLD, SKY_ORANGE, WHITE, kind
from nerf3d.toybox.sketch import Sketch


def _eyes(s: Sketch, x: float, y: float, z: float, radius: float) -> None:
    for side in (-1, 1):
        s.ball(BLACK, (side * x, y, z), radius)


@kind("snowman", "body", "hat")
def snowman(s: Sketch) -> None:
    """Orange nose and black eyes toward +Z, stick arms to both sides."""
    a, b = s.vary(0.42), s.vary(0.3)
    s.ball(0, (0, 0.38, 0), a)
    s.ball(0, (0, 0.92, 0), b)
    s.ball(0, (0, 1.32, 0), 0.22)
    s.tube(1, (0, 1.45, 0), (0, 1.5, 0), 0.32)
    s.tube(1, (0, 1.48, 0), (0, 1.8, 0), 0.2)
    s.tube(SKY_ORANGE, (0, 1.31, 0.18), (0, 1.29, 0.5), 0.065, 0.0)
    _eyes(s, 0.09, 1.38, 0.19, 0.04)
    for y in (0.84, 1.0):
        s.ball(BLACK, (0, y, b * 0.97), 0.045)
    for side in (-1, 1):
        s.tube((0.36, 0.22, 0.12), (side * 0.2, 0.95, 0), (side * 0.66, 1.2, 0), 0.035)


@kind("robot", "body", "head")
def robot(s: Sketch) -> None:
    """Yellow eyes and a dark chest panel toward +Z."""
    w = s.vary(0.62)
    s.box(0, (0, 0.75, 0), (w, 0.62, 0.42))
    s.box(DARK, (0, 0.8, 0.2), (w * 0.55, 0.26, 0.06))
    s.box(1, (0, 1.3, 0), (s.vary(0.46), 0.36, 0.38))
    s.tube(1, (0, 1.48, 0), (0, 1.66, 0), 0.03)
    s.ball(GOLD, (0, 1.68, 0), 0.07)
    for side in (-1, 1):
        s.ball(GOLD, (side * 0.11, 1.33, 0.19), (0.075, 0.075, 0.04))
        s.tube(0, (side * (w / 2 + 0.1), 0.98, 0), (side * (w / 2 + 0.16), 0.45, 0), 0.085)
        s.box(0, (side * 0.17, 0.26, 0), (0.18, 0.42, 0.2))
        s.box(DARK, (side * 0.17, 0.04, 0.06), (0.22, 0.12, 0.34))


@kind("duck", "body", "beak", proportions=("small", "tall", "wide"))
def duck(s: Sketch) -> None:
    """A bath duck: beak toward +Z, tail up on -Z."""
    w = s.vary(0.44)
    s.ball(0, (0, 0.4, -0.05), (w, 0.36, 0.62))
    s.ball(0, (0, 0.92, 0.36), s.vary(0.31))
    s.tube(0, (0, 0.5, -0.45), (0, 0.85, -0.82), 0.2, 0.03)
    s.ball(1, (0, 0.86, 0.7), (0.16, 0.06, 0.2))
    _eyes(s, 0.17, 1.0, 0.58, 0.055)
    for side in (-1, 1):
        s.ball(0, (side * (w - 0.02), 0.46, -0.12), (0.1, 0.18, 0.34))


@kind("fish", "body", "fins", proportions=("small", "tall", "wide"))
def fish(s: Sketch) -> None:
    """Swims toward +Z, tail fin on -Z."""
    h = s.vary(0.4)
    s.ball(0, (0, 0, 0.12), (0.22, h, 0.68))
    s.box(1, (0, 0, -0.72), (0.07, 0.42, 0.72), top=(1, 0.2), turn=("x", 90))
    s.box(1, (0, h + 0.06, -0.02), (0.06, 0.3, 0.6), top=(1, 0.4), shift=(0, -0.14))
    for side in (-1, 1):
        s.ball(1, (side * 0.26, -0.14, 0.2), (0.16, 0.04, 0.14), turn=("z", -25 * side))
        s.ball(WHITE, (side * 0.14, 0.1, 0.56), 0.085)
        s.ball(BLACK, (side * 0.18, 0.1, 0.6), 0.06)


@kind("cat", "body", "ears", proportions=("small", "tall", "wide"))
def cat(s: Sketch) -> None:
    """Sitting, face toward +Z, tail up behind."""
    w = s.vary(0.36)
    s.ball(0, (0, 0.42, -0.1), (w, 0.5, 0.42))
    s.ball(0, (0, 1.08, 0.1), (0.4, 0.34, 0.34))
    s.tube(0, (0, 0.15, -0.4), (0.0, 0.85, -0.78), 0.09, 0.07)
    for side in (-1, 1):
        s.box(1, (side * 0.24, 1.42, 0.08), (0.26, s.vary(0.32, 0.05), 0.16), top=(0, 0.2), shift=(side * 0.05, 0))
        s.tube(0, (side * 0.15, 0, 0.28), (side * 0.13, 0.62, 0.16), 0.1)
        s.ball(WHITE, (side * 0.15, 1.15, 0.39), (0.085, 0.085, 0.05))
        s.ball(BLACK, (side * 0.15, 1.15, 0.43), (0.05, 0.065, 0.035))
    s.ball((0.95, 0.5, 0.55), (0, 1.03, 0.44), (0.07, 0.05, 0.04))


@kind("penguin", "body", "belly", proportions=("small", "tall", "wide"))
def penguin(s: Sketch) -> None:
    """Belly, orange beak and feet toward +Z."""
    w = s.vary(0.44)
    s.ball(0, (0, 0.58, 0), (w, 0.6, 0.4))
    s.ball(1, (0, 0.54, 0.12), (w * 0.76, 0.5, 0.34))
    s.ball(0, (0, 1.2, 0.02), 0.31)
    s.tube(SKY_ORANGE, (0, 1.16, 0.26), (0, 1.13, 0.58), 0.1, 0.0)
    _eyes(s, 0.13, 1.27, 0.27, 0.05)
    for side in (-1, 1):
        s.ball(WHITE, (side * 0.13, 1.265, 0.24), 0.075)
        s.ball(0, (side * (w + 0.02), 0.62, 0), (0.08, 0.36, 0.18), turn=("z", side * 18))
        s.ball(SKY_ORANGE, (side * 0.18, 0.02, 0.18), (0.15, 0.06, 0.24))


@kind("dog", "body", "ears", proportions=("small", "tall", "wide"))
def dog(s: Sketch) -> None:
    """Standing on four legs, black nose toward +Z, tail up on -Z."""
    h = s.vary(0.42)
    s.tube(0, (0, h + 0.18, -0.5), (0, h + 0.2, 0.38), 0.24)
    s.ball(0, (0, h + 0.52, 0.5), (0.28, 0.27, 0.28))
    s.ball(0, (0, h + 0.42, 0.78), (0.15, 0.13, 0.2))
    s.ball(BLACK, (0, h + 0.47, 0.97), 0.07)
    s.tube(0, (0, h + 0.28, -0.45), (0, h + 0.68, -0.75), 0.07, 0.05)
    _eyes(s, 0.12, h + 0.6, 0.75, 0.05)
    for side in (-1, 1):
        s.ball(1, (side * 0.29, h + 0.48, 0.45), (0.08, 0.24, 0.14), turn=("z", side * 12))
        for z in (-0.38, 0.28):
            s.tube(0, (side * 0.15, 0, z), (side * 0.15, h + 0.1, z), 0.085)
