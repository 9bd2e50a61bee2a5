"""The object that a toybox prompt means: known geometry to judge generated meshes and fields against."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from nerf3d.toybox import captions
from nerf3d.toybox.items import build_parts
from nerf3d.toybox.primitives import Parts
from nerf3d.toybox.words import COLOURS


@dataclasses.dataclass(frozen=True)
class ToyObject:
    """An object of mean proportions, its front on +Z, centred inside the sphere of radius 0.8 m.

    colours: (part, colour name) for every colourable part. proportion: a word or "".
    """

    kind: str
    colours: tuple[tuple[str, str], ...]
    proportion: str
    parts: Parts

    def sdf(self, points: Tensor) -> Tensor:
        """Points (..., 3) in metres -> signed distance bound (...): negative inside, outside at most the distance."""
        return self.parts.sdf(points)

    def occupancy(self, points: Tensor) -> Tensor:
        """Points (..., 3) in metres -> (...) bool, true inside or on the surface."""
        return self.parts.occupancy(points)


def object_from_prompt(prompt: str) -> ToyObject | None:
    """The canonical object of a prompt, view words allowed; gray without a colour, None without a known kind."""
    meaning = captions.parse(prompt)
    if meaning is None:
        return None
    parts = build_parts(meaning.kind, [COLOURS[c] for c in meaning.colours], proportion=meaning.proportion)
    colours = tuple(zip(meaning.kind.parts, meaning.colours, strict=True))
    return ToyObject(meaning.kind.name, colours, meaning.proportion, parts)
