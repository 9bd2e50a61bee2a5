"""The studio: one view of every object, and label maps of it."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest
import torch

from nerf3d.toybox.items import items_of_kinds, make_item
from nerf3d.toybox.shards import read_shards, write_shards
from nerf3d.toybox.studio import PART_COLOURS, part_colours, render_look


def test_the_studio_changes_the_view_and_not_the_object() -> None:
    items, rgb = render_look(range(12), "studio", size=32)
    assert {(i.azimuth_degrees, i.elevation_degrees, i.light, i.background) for i in items} == {
        (30.0, 20.0, items[0].light, (1.0, 1.0, 1.0))
    }
    for index, item in enumerate(items):
        own = make_item(index)
        assert (item.kind, item.colours, item.caption) == (own.kind, own.colours, own.prompt)
        torch.testing.assert_close(item.parts.frame, own.parts.frame, rtol=0, atol=0)
    assert float(rgb[:, :, 0].min()) == 1.0, "white above the object"
    assert float(rgb.amin((1, 2, 3)).max()) < 0.95, "every object is seen"


def test_a_label_map_says_which_part_every_pixel_shows() -> None:
    mushrooms = list(islice(items_of_kinds(["mushroom"]), 4))
    cars = list(islice(items_of_kinds(["car"]), 4))
    _, rgb = render_look(mushrooms + cars, "parts", size=32)
    distance, labels = torch.cdist(rgb.movedim(1, -1).flatten(1, 2), part_colours()).min(dim=-1)
    assert float(distance.max()) < 1e-3, "no pixel is shaded or mixed"
    counts = torch.stack([(labels == k).sum(1) for k in range(len(PART_COLOURS))], 1)
    assert bool((counts[:4, [0, 1, 2]] > 0).all()) and bool((counts[:4, 3:] == 0).all()), "a cap and a stem"
    assert bool((counts[4:, [0, 1, 2, 4]] > 0).all()) and bool((counts[4:, 3] == 0).all()), "body, roof, wheels and windows"
    cap, stem = (labels[:4].unflatten(1, (32, 32)) == part for part in (1, 2))
    rows = torch.arange(32.0)[:, None]
    assert bool(((cap * rows).sum((1, 2)) / cap.sum((1, 2)) < (stem * rows).sum((1, 2)) / stem.sum((1, 2))).all())


def test_items_of_kinds_are_those_that_make_item_says() -> None:
    expected = [index for index in range(120) if make_item(index, seed=3).kind in ("car", "cake")]
    assert len(expected) > 2 and list(islice(items_of_kinds(["car", "cake"], seed=3), len(expected))) == expected


def test_shards_of_some_kinds_hold_them_alone_and_all_of_them(tmp_path: Path) -> None:
    names = [path.name for path in write_shards(tmp_path, 6, shard_size=4, size=16, look="studio", kinds=["car", "cake"])]
    assert names == ["items-000000000.safetensors", "items-000000004.safetensors"]
    records = [record for shard in read_shards(tmp_path) for record in shard.records]
    assert [record["index"] for record in records] == list(islice(items_of_kinds(["car", "cake"]), 6))
    with pytest.raises(ValueError, match=r"was written with .*studio.*use another folder"):
        next(write_shards(tmp_path, 6, shard_size=4, size=16, kinds=["car", "cake"]))
