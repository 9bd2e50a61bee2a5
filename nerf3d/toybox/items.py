"""Training items: object, colours, camera, light, background and caption, each a pure function of its index."""

from __future__ import annotations

import colorsys
import dataclasses
import itertools
import math
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from nerf3d.toybox import captions
from nerf3d.toybox.heldout import held_out_colours, is_held_out
from nerf3d.toybox.kinds import KINDS, Kind
from nerf3d.toybox.primitives import Parts
from nerf3d.toybox.sketch import OBJECT_RADIUS, Sketch
from nerf3d.toybox.words import COLOUR_JITTER, COLOURS, PROPORTIONS, SMALL_SCALE, Rgb
from nerf3d.view_words import view_phrase

PROPORTION_SHARE = 0.08
"""Chance of each proportion word."""

TWO_COLOUR_SHARE = 0.45
VIEW_WORDS_SHARE = 0.9
MIN_ELEVATION, MAX_ELEVATION = -10.0, 65.0
LOW_VIEW_SHARE = 0.78
"""Share of cameras at elevations -10 to 40 degrees; the others are at 40 to 65."""

MIN_BACKGROUND_DISTANCE = 0.15
SIZE_JITTER = 0.12

ELEVATION_JITTER = 8.0
"""Degrees by which the views of one object differ from the first one's elevation."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One captioned object with its view. Colours in [0, 1]; light: unit vector toward the light, world frame.

    colours: (part, colour name) for every part. proportion: a word or "". prompt: the caption without view words.
    """

    index: int
    kind: str
    colours: tuple[tuple[str, str], ...]
    proportion: str
    azimuth_degrees: float
    elevation_degrees: float
    light: Rgb
    ambient: float
    background: Rgb
    caption: str
    prompt: str
    parts: Parts


def build_parts(
    kind: Kind, palette: Sequence[Rgb], *, proportion="", size=1.0, randoms: Sequence[float] | None = None
) -> Parts:
    """The object of a kind. palette: rgb per part of the kind. size: share of the kind's own bounding radius.

    randoms: numbers in [0, 1) that vary the proportions (14 are enough); without them the canonical object.
    """
    sketch = Sketch(randoms)
    kind.draw(sketch)
    radius = OBJECT_RADIUS * kind.size * size * (SMALL_SCALE if proportion == "small" else 1.0)
    stretch = PROPORTIONS[proportion] if proportion else (1.0, 1.0, 1.0)
    return sketch.finish(stretch=stretch, radius=radius, palette=palette)


def make_item(index: int, *, seed: int = 0, held_out: bool = False, paint: Sequence[Rgb] | None = None) -> Item:
    """The item with this index: always the same for the same index and seed.

    held_out: draws only colour combinations that training never sees; otherwise only the others.
    paint: rgb of the kind's first, second ... part, in the place of the colours that it has by name.
    """
    rng = _generator(index, seed)
    u = iter(rng.random(256).tolist())
    kind = _choice(list(KINDS.values()), u)
    main, second = _draw_colours(kind, held_out, u, rng)
    proportion = _draw_proportion(kind, u)
    colours = tuple(second[1] if second and name == second[0] else main for name in kind.parts)
    palette = _draw_palette(colours, u)
    azimuth, elevation = 360.0 * next(u), _draw_elevation(u)
    light, ambient = _draw_light(azimuth, elevation, u), 0.35 + 0.35 * next(u)
    prompt = captions.draw_prompt(kind, main, second=second, proportion=proportion, u=u)
    caption = f"{prompt}, {view_phrase(azimuth, elevation)}" if next(u) < VIEW_WORDS_SHARE else prompt
    size = 1.0 - SIZE_JITTER * next(u)
    randoms = [next(u) for _ in range(14)]
    return Item(
        index=index,
        kind=kind.name,
        colours=tuple(zip(kind.parts, colours, strict=True)),
        proportion=proportion,
        azimuth_degrees=azimuth,
        elevation_degrees=elevation,
        light=light,
        ambient=ambient,
        background=_draw_background(palette, ambient, u),
        caption=caption,
        prompt=prompt,
        parts=build_parts(kind, paint or palette, proportion=proportion, size=size, randoms=randoms),
    )


def make_views(index: int, num_views: int, *, seed: int = 0, held_out: bool = False) -> list[Item]:
    """The item with this index from num_views cameras, evenly spaced around it from its own one on.

    Elevations differ by up to ELEVATION_JITTER; each view has a light of its own, all have one background. With one view,
    exactly `make_item`.
    """
    first = make_item(index, seed=seed, held_out=held_out)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index, num_views])))
    u = iter(rng.random(8 * num_views).tolist())
    return [first, *(_turned(first, 360.0 * view / num_views, u) for view in range(1, num_views))]


def _turned(item: Item, degrees: float, u: Iterator[float]) -> Item:
    azimuth = (item.azimuth_degrees + degrees) % 360.0
    elevation = item.elevation_degrees + ELEVATION_JITTER * (2 * next(u) - 1)
    elevation = min(max(elevation, MIN_ELEVATION), MAX_ELEVATION)
    worded = next(u) < VIEW_WORDS_SHARE
    return dataclasses.replace(
        item,
        azimuth_degrees=azimuth,
        elevation_degrees=elevation,
        light=_draw_light(azimuth, elevation, u),
        caption=f"{item.prompt}, {view_phrase(azimuth, elevation)}" if worded else item.prompt,
    )


def items_of_kinds(kinds: Collection[str], *, seed: int = 0) -> Iterator[int]:
    """The indices, without end, of the items of these kinds, without building the others."""
    names = list(KINDS)
    for index in itertools.count():
        if _choice(names, iter(_generator(index, seed).random(1).tolist())) in kinds:
            yield index


def _generator(index: int, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))


def _choice(options: Sequence, u: Iterator[float]):
    return options[int(next(u) * len(options))]


def _draw_colours(
    kind: Kind, held_out: bool, u: Iterator[float], rng: np.random.Generator
) -> tuple[str, captions.Second | None]:
    """Main colour and, in two-colour items, one named part with another colour."""
    names = list(COLOURS)
    two = len(kind.parts) > 1 and next(u) < TWO_COLOUR_SHARE
    part = kind.parts[1 + int(next(u) * (len(kind.parts) - 1))] if two else None
    if held_out and not two:
        return _choice(sorted(held_out_colours(kind.name)), u), None
    while True:
        main, second = (names[k] for k in rng.integers(len(names), size=2))
        if part is None and is_held_out(kind.name, main) == held_out:
            return main, None
        if part is not None and main != second and is_held_out(kind.name, main, second) == held_out:
            return main, (part, second)


def _draw_proportion(kind: Kind, u: Iterator[float]) -> str:
    choice = int(next(u) / PROPORTION_SHARE)
    words = list(PROPORTIONS)
    return words[choice] if choice < len(words) and words[choice] in kind.proportions else ""


def _draw_palette(colours: Sequence[str], u: Iterator[float]) -> list[Rgb]:
    """Albedo per part: parts of one colour share one jitter. Black, white and gray stay neutral and move less."""
    jittered = {}
    for name in dict.fromkeys(colours):
        if name in ("black", "white", "gray"):
            move = [0.6 * COLOUR_JITTER * (2 * next(u) - 1)] * 3
        else:
            move = [COLOUR_JITTER * (2 * next(u) - 1) for _ in range(3)]
        r, g, b = (min(max(v + m, 0.0), 1.0) for v, m in zip(COLOURS[name], move, strict=True))
        jittered[name] = (r, g, b)
    return [jittered[name] for name in colours]


def _draw_elevation(u: Iterator[float]) -> float:
    low = next(u) < LOW_VIEW_SHARE
    return MIN_ELEVATION + 50.0 * next(u) if low else 40.0 + (MAX_ELEVATION - 40.0) * next(u)


def _draw_light(azimuth: float, elevation: float, u: Iterator[float]) -> Rgb:
    """A light beside and above the camera: never right at it, so that neighbouring faces differ."""
    a, e = math.radians(azimuth), math.radians(elevation)
    right = (1 if next(u) < 0.5 else -1) * (0.35 + 0.75 * next(u))
    up = 0.2 + 0.8 * next(u)
    x = math.cos(e) * math.sin(a) + right * math.cos(a)
    y = math.sin(e) + up
    z = math.cos(e) * math.cos(a) - right * math.sin(a)
    norm = math.sqrt(x * x + y * y + z * z)
    return (x / norm, y / norm, z / norm)


def _draw_background(palette: Sequence[Rgb], ambient: float, u: Iterator[float]) -> Rgb:
    """Half greys, half hues; never near a part's colour, lit or in its own shade."""
    shades = [tuple(v * k for v in c) for c in dict.fromkeys(palette) for k in (1.0, (1 + ambient) / 2)]
    best, best_gap = (0.5, 0.5, 0.5), -1.0
    for _ in range(20):
        colour = _grey(u) if next(u) < 0.5 else _hue(u)
        gap = min(math.dist(colour, shade) for shade in shades)
        if gap >= MIN_BACKGROUND_DISTANCE:
            return colour
        if gap > best_gap:
            best, best_gap = colour, gap
    return best


def _grey(u: Iterator[float]) -> Rgb:
    value = 0.04 + 0.96 * next(u)
    return (value, value, value)


def _hue(u: Iterator[float]) -> Rgb:
    return colorsys.hsv_to_rgb(next(u), 0.2 + 0.75 * next(u), 0.3 + 0.7 * next(u))
