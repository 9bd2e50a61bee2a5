"""The register of kinds: a name, its colourable parts, and the function that draws it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from nerf3d.toybox.sketch import Sketch

ALL_PROPORTIONS = ("tall", "wide", "thin", "small")

BLACK = (0.09, 0.09, 0.09)
DARK = (0.22, 0.22, 0.24)
STEEL = (0.70, 0.72, 0.76)
WHITE = (0.93, 0.93, 0.93)
GLASS = (0.60, 0.80, 0.94)
WOOD = (0.58, 0.38, 0.20)
BARK = (0.36, 0.22, 0.12)
SKY_ORANGE = (0.97, 0.50, 0.08)
GOLD = (0.98, 0.80, 0.22)
LEAF = (0.20, 0.58, 0.18)
CHERRY = (0.82, 0.08, 0.12)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One archetype. parts: names of the colourable parts, the main one first (slot 0).

    size: bounding radius of the canonical object over the largest allowed. proportions: the words that make sense.
    """

    name: str
    parts: tuple[str, ...]
    draw: Callable[[Sketch], None]
    size: float
    proportions: tuple[str, ...]


KINDS: dict[str, Kind] = {}


def kind(name: str, *parts: str, size: float = 0.95, proportions: tuple[str, ...] = ALL_PROPORTIONS):
    """Registers the decorated drawing function, whose docstring says where the front is."""

    def register(draw: Callable[[Sketch], None]) -> Callable[[Sketch], None]:
        KINDS[name] = Kind(name, parts, draw, size, proportions)
        return draw

    return register
