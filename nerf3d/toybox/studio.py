"""The toybox for small models: one camera, one light, a white background; and label maps of it, one colour a part."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from nerf3d.toybox.items import Item, make_item
from nerf3d.toybox.render import render_items
from nerf3d.toybox.words import Rgb

Look = Literal["scene", "studio", "parts"]
"""Any camera, light and background; one of each; which part every pixel shows."""

AZIMUTH_DEGREES, ELEVATION_DEGREES = 30.0, 20.0
LIGHT: Rgb = (0.2417, 0.7252, 0.6447)
AMBIENT = 0.5
WHITE: Rgb = (1.0, 1.0, 1.0)

PART_COLOURS = ("#ffffff", "#d62728", "#1f77b4", "#2ca02c", "#333333")
"""Of label maps: background, the kind's first, second and third part, and details that no caption names."""


def render_look(
    indices: Sequence[int], look: Look, *, seed: int = 0, size: int = 64, device: str = "cpu"
) -> tuple[list[Item], Tensor]:
    """The items of these numbers and their pictures (N, 3, size, size) in [0, 1].

    In "parts" every pixel has one of PART_COLOURS, without shading and without a mixture at the edges.
    """
    if look == "scene":
        items = [make_item(index, seed=seed) for index in indices]
        return items, render_items(items, size=size, device=device)[0]
    if look == "studio":
        items = [_in_studio(make_item(index, seed=seed)) for index in indices]
        return items, render_items(items, size=size, device=device)[0]
    colours = part_colours().to(device)
    paint = [tuple(colour) for colour in colours[1:-1].tolist()]
    items = [_in_studio(make_item(index, seed=seed, paint=paint)) for index in indices]
    rgb = render_items(items, size=size, supersample=1, shading="albedo", device=device)[0].movedim(1, -1)
    distance, nearest = torch.cdist(rgb.flatten(1, 2), colours).min(dim=-1)
    labels = nearest.where(distance < 1e-3, len(colours) - 1).unflatten(1, (size, size))
    return items, colours[labels].movedim(-1, 1).contiguous()


def part_colours() -> Tensor:
    """PART_COLOURS as (5, 3) in [0, 1]."""
    return torch.tensor([list(bytes.fromhex(colour[1:])) for colour in PART_COLOURS]) / 255


def _in_studio(item: Item) -> Item:
    return dataclasses.replace(
        item,
        azimuth_degrees=AZIMUTH_DEGREES,
        elevation_degrees=ELEVATION_DEGREES,
        light=LIGHT,
        ambient=AMBIENT,
        background=WHITE,
        caption=item.prompt,
    )
