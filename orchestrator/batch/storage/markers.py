"""The commit marker of a shard, _shards/00007.json: where it stands, the shard is complete.

It is written last and at once, and holds what the rest of the program wants to know of the shard without opening its
pictures: counts, times, every failure, the prompts of the preview. Shards may be moved away when their marker stands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jobs.batch_images import BatchImagesSpec
from orchestrator.batch.storage.stores import Store
from orchestrator.host.atomic import output_error

__all__ = ["FOLDER", "TIMINGS", "marked_shards", "marker_name", "read_marker", "write_marker"]

FOLDER = "_shards"
TIMINGS = ("seconds", "cpu_seconds", "images_per_second")
"""Keys of a marker that differ from run to run."""


def marker_name(shard: int) -> str:
    """Below the job's folder."""
    return f"{FOLDER}/{shard:05d}.json"


def marked_shards(store: Store, spec: BatchImagesSpec) -> set[int]:
    """Shards whose marker stands."""
    stems = (name.removesuffix(".json") for name in store.names(FOLDER) if name.endswith(".json"))
    return {int(stem) for stem in stems if stem.isdecimal() and int(stem) < spec.num_shards}


def read_marker(store: Store, shard: int) -> dict[str, Any]:
    """What the marker says. Raises OutputError for one that is not ours."""
    name = marker_name(shard)
    try:
        with store.open(name) as file:
            marker = json.loads(file.read())
        if not isinstance(marker, dict) or marker.get("shard") != shard:
            raise ValueError("another content was expected")
    except (OSError, ValueError) as error:
        message = f"{store.location}/{name} cannot be read ({error}); delete it, and the same command draws its shard again."
        raise output_error(message, error) from error
    return marker


def write_marker(store: Store, shard: int, content: Mapping[str, Any]) -> dict[str, Any]:
    """Commit the shard; returns the marker."""
    marker = dict(content)
    store.put({marker_name(shard): json.dumps(marker, ensure_ascii=False, indent=1).encode() + b"\n"})
    return marker
