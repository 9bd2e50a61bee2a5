"""Shards are deterministic, resumable, and refuse to mix data sets."""

import os

import pytest
import torch
from torch.testing import assert_close

from nerf3d.toybox.items import make_item
from nerf3d.toybox.render import render_items
from nerf3d.toybox.shards import read_shards, write_shards

ARGUMENTS = {"shard_size": 6, "size": 16}


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_hold_the_items(tmp_path):
    paths = list(write_shards(tmp_path, 10, start=100, **ARGUMENTS))
    assert [path.name for path in paths] == ["items-000000100.safetensors", "items-000000106.safetensors"]
    shards = list(read_shards(tmp_path))
    assert [len(shard.images) for shard in shards] == [len(shard.records) for shard in shards] == [6, 4]
    item = make_item(107)
    assert shards[1].records[1]["caption"] == item.caption and shards[1].records[1]["index"] == 107
    expected = (render_items([item], size=16)[0][0] * 255).round().to(torch.uint8)
    assert_close(shards[1].images[1], expected, atol=0, rtol=0)


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    list(write_shards(whole, 18, **ARGUMENTS))
    run = write_shards(broken, 18, **ARGUMENTS)
    first = next(run)
    run.close()
    (broken / "items-000000006.jsonl").write_text("torn")
    before = os.stat(first).st_mtime_ns
    list(write_shards(broken, 18, **ARGUMENTS))
    assert os.stat(first).st_mtime_ns == before, "a finished shard is not drawn again"
    assert contents(broken) == contents(whole)


def test_views_of_an_item_follow_each_other(tmp_path):
    list(write_shards(tmp_path, 3, shard_size=2, views=4, size=16))
    records = [record for shard in read_shards(tmp_path) for record in shard.records]
    assert [record["index"] for record in records] == [0] * 4 + [1] * 4 + [2] * 4
    for first in range(0, 12, 4):
        group = records[first : first + 4]
        assert len({(record["prompt"], tuple(record["background"])) for record in group}) == 1
        turns = [(record["azimuth_degrees"] - group[0]["azimuth_degrees"]) % 360 for record in group]
        assert turns == pytest.approx([0, 90, 180, 270], abs=0.01)
        assert all(abs(record["elevation_degrees"] - group[0]["elevation_degrees"]) <= 8 for record in group)
    with pytest.raises(ValueError, match="only 'scene' has several cameras"):
        list(write_shards(tmp_path / "studio", 2, views=4, look="studio"))


def test_other_arguments_are_refused(tmp_path):
    list(write_shards(tmp_path, 6, **ARGUMENTS))
    with pytest.raises(ValueError, match="use another folder or the same arguments"):
        list(write_shards(tmp_path, 6, seed=1, **ARGUMENTS))


@pytest.mark.parametrize("name", ["num_images", "shard_size", "workers"])
def test_counts_under_one_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        next(write_shards(tmp_path, **({"num_images": 1} | {name: 0})))


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no items"):
        next(read_shards(tmp_path))
