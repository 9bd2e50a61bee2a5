"""Things found in a house."""

from nerf3d.toybox.kinds.registry import BLACK, DARK, GOLD, SKY_ORANGE, WHITE, kind
from nerf3d.toybox.sketch import Sketch


@kind("mug", "body", "handle")
def mug(s: Sketch) -> None:
    """The handle is on the object's left, +X; dark coffee inside."""
    h, r = s.vary(1.0), s.vary(0.44)
    s.tube(0, (0, 0, 0), (0, h, 0), r)
    s.tube((0.24, 0.14, 0.08), (0, h * 0.9, 0), (0, h + 0.004, 0), r * 0.85)
    s.ring(1, (r + 0.06, h * 0.52, 0), 0.27, 0.075, turn=("x", 90))


@kind("bottle", "body", "cap")
def bottle(s: Sketch) -> None:
    """Upright with shoulder and neck; no front."""
    r, h = s.vary(0.32), s.vary(0.85)
    s.tube(0, (0, 0, 0), (0, h, 0), r)
    s.tube(0, (0, h, 0), (0, h + 0.3, 0), r, 0.11)
    s.tube(0, (0, h + 0.2, 0), (0, h + 0.5, 0), 0.11)
    s.tube(1, (0, h + 0.44, 0), (0, h + 0.66, 0), 0.16)


@kind("vase", "body", "rim")
def vase(s: Sketch) -> None:
    """A round belly, a waist and a flared rim; no front."""
    h = s.vary(0.95)
    s.tube(0, (0, 0, 0), (0, h, 0), 0.24, 0.2, middle=s.vary(0.46))
    s.tube(0, (0, h, 0), (0, h + 0.36, 0), 0.2, 0.34)
    s.ring(1, (0, h + 0.36, 0), 0.31, 0.06)
    s.tube(BLACK, (0, h + 0.3, 0), (0, h + 0.365, 0), 0.27)


@kind("teapot", "body", "lid")
def teapot(s: Sketch) -> None:
    """The spout is on the object's left, +X, and the handle on its right."""
    w = s.vary(0.55)
    s.ball(0, (0, 0.45, 0), (w, 0.45, w))
    s.tube(0, (0, 0, 0), (0, 0.12, 0), 0.32, 0.3)
    s.tube(0, (w * 0.75, 0.3, 0), (w + 0.4, 0.8, 0), 0.15, 0.07)
    s.ring(0, (-w - 0.08, 0.48, 0), 0.26, 0.065, turn=("x", 90))
    s.dome(1, (0, 0.8, 0), (0.32, 0.16, 0.32))
    s.ball(1, (0, 1.02, 0), 0.1)


@kind("umbrella", "canopy", "handle")
def umbrella(s: Sketch) -> None:
    """Open and upright; the handle's hook points to the front."""
    r = s.vary(0.9)
    s.dome(0, (0, 1.0, 0), (r, s.vary(0.5), r))
    s.tube(0, (0, 1.45, 0), (0, 1.64, 0), 0.045, 0.02)
    s.tube(1, (0, 0.05, 0), (0, 1.1, 0), 0.05)
    s.tube(1, (0, 0.05, 0), (0, 0.05, 0.24), 0.055)
    s.tube(1, (0, 0.0, 0.24), (0, 0.2, 0.24), 0.055)


@kind("candle", "wax", "holder")
def candle(s: Sketch) -> None:
    """A lit candle on a dish; the holder's ring is on +X."""
    h = s.vary(0.9)
    s.tube(0, (0, 0.1, 0), (0, 0.1 + h, 0), s.vary(0.22))
    s.tube(BLACK, (0, h + 0.08, 0), (0, h + 0.2, 0), 0.025)
    s.ball(SKY_ORANGE, (0, h + 0.32, 0), (0.1, 0.18, 0.1))
    s.ball((1.0, 0.9, 0.35), (0, h + 0.27, 0), (0.105, 0.09, 0.105))
    s.tube(1, (0, 0, 0), (0, 0.14, 0), 0.36, 0.5)
    s.ring(1, (0.58, 0.1, 0), 0.14, 0.045, turn=("x", 90))


@kind("hat", "hat", "band")
def hat(s: Sketch) -> None:
    """A top hat; no front."""
    h = s.vary(0.8)
    s.tube(0, (0, 0, 0), (0, 0.07, 0), s.vary(0.8))
    s.tube(0, (0, 0.05, 0), (0, h, 0), 0.45, 0.5)
    s.tube(1, (0, 0.07, 0), (0, 0.27, 0), 0.475, 0.485)


@kind("ring", "band", "gem", size=0.88)
def ring(s: Sketch) -> None:
    """An upright finger ring seen through from the front, the gem on top."""
    s.ring(0, (0, 0, 0), 0.55, s.vary(0.1), turn=("x", 90))
    s.tube(1, (0, 0.6, 0), (0, 0.84, 0), 0.06, s.vary(0.28))
    s.tube(1, (0, 0.84, 0), (0, 0.95, 0), 0.28, 0.17)


@kind("crown", "band", "jewels")
def crown(s: Sketch) -> None:
    """Six points with a jewel on each; one jewel is in front."""
    r = 0.6
    s.tube(0, (0, 0, 0), (0, s.vary(0.36), 0), r, r * 1.06)
    for x, z in ((0, 1), (0.866, 0.5), (0.866, -0.5), (0, -1), (-0.866, -0.5), (-0.866, 0.5)):
        s.tube(0, (x * r * 0.86, 0.25, z * r * 0.86), (x * r * 1.1, 0.8, z * r * 1.1), 0.19, 0.03)
        s.ball(1, (x * r * 1.1, 0.82, z * r * 1.1), s.vary(0.1, 0.05))


@kind("drum", "body", "rims")
def drum(s: Sketch) -> None:
    """White skin on top, two drum sticks lying across it, pointing to the front."""
    r, h = s.vary(0.62), s.vary(0.75)
    s.tube(0, (0, 0.03, 0), (0, h, 0), r)
    s.tube(1, (0, 0, 0), (0, 0.12, 0), r + 0.06)
    s.tube(1, (0, h - 0.1, 0), (0, h + 0.02, 0), r + 0.06)
    s.tube(WHITE, (0, h, 0), (0, h + 0.03, 0), r - 0.03)
    for side in (-1, 1):
        s.tube(GOLD, (side * 0.3, h + 0.12, -0.45), (side * 0.1, h + 0.07, 0.5), 0.04)
        s.ball(GOLD, (side * 0.1, h + 0.08, 0.5), 0.075)


@kind("barrel", "body", "hoops")
def barrel(s: Sketch) -> None:
    """An upright cask; no front."""
    h, m = s.vary(1.3), s.vary(0.55)
    e = 0.42
    s.tube(0, (0, 0, 0), (0, h, 0), e, middle=m)
    for t in (0.06, 0.3, 0.7, 0.94):
        r = (e * e + 4 * (m * m - e * e) * t * (1 - t)) ** 0.5 + 0.025
        s.tube(1, (0, h * t - 0.045, 0), (0, h * t + 0.045, 0), r)


@kind("present", "box", "ribbon", proportions=("tall", "small"))
def present(s: Sketch) -> None:
    """A wrapped box with a crossed ribbon and a bow; a face is the front."""
    h = s.vary(0.85)
    s.box(0, (0, h / 2, 0), (1.0, h, 1.0))
    s.box(1, (0, h / 2, 0), (0.2, h + 0.03, 1.03))
    s.box(1, (0, h / 2, 0), (1.03, h + 0.03, 0.2))
    for side in (-1, 1):
        s.ball(1, (side * 0.2, h + 0.13, 0), (0.22, 0.12, 0.12), turn=("z", side * 25))
    s.ball(1, (0, h + 0.08, 0), 0.1)


@kind("book", "cover", "pages", proportions=("small", "tall", "thin"))
def book(s: Sketch) -> None:
    """Standing upright: the front cover faces +Z, the spine is on the object's right, -X."""
    w, h, d = s.vary(0.9), s.vary(1.25), s.vary(0.32)
    for side in (-1, 1):
        s.box(0, (0, 0, side * d / 2), (w, h, 0.06))
    s.box(0, (-w / 2 + 0.03, 0, 0), (0.06, h, d))
    s.box(1, (-0.02, 0, 0), (w - 0.08, h - 0.1, d - 0.04))
    s.box(GOLD, (0, h * 0.2, d / 2 + 0.02), (w * 0.6, 0.16, 0.04))


@kind("phone", "case", "buttons", proportions=("small", "wide"))
def phone(s: Sketch) -> None:
    """Standing upright; screen and buttons face +Z."""
    w, h = s.vary(0.75), s.vary(1.45)
    s.box(0, (0, 0, 0), (w, h, 0.22))
    s.box((0.55, 0.85, 0.75), (0, h * 0.22, 0.03), (w - 0.14, h * 0.42, 0.18))
    for y in (-0.14, -0.28, -0.42):
        for x in (-0.27, 0, 0.27):
            s.box(1, (x * w, y * h * 0.95 + 0.04, 0.04), (w * 0.19, h * 0.09, 0.2))
    s.tube(DARK, (-w * 0.35, h / 2, 0), (-w * 0.35, h / 2 + 0.3, 0), 0.06)
