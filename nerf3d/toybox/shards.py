"""Shards of rendered training items: uint8 images in safetensors, a record per image in JSON lines beside them.

    FOLDER/items-000000000.safetensors   images (n, 3, size, size) uint8; metadata: items (JSON)
    FOLDER/items-000000000.jsonl         one record per image, in the same order

The number is the first item's index, or its place among the items of the kinds that are wanted. With several views of
each object an item has as many images, one after the other. The images are moved
into place last, so a shard whose images exist is finished.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from nerf3d.toybox.items import Item, items_of_kinds, make_views
from nerf3d.toybox.render import render_items
from nerf3d.toybox.studio import Look, render_look

_IMAGES = "items-{:09d}.safetensors"
_ITEMS_PER_CALL = 512


@dataclasses.dataclass(frozen=True)
class Shard:
    """n pictures and what is known of them.

    Args:
        images: (n, 3, size, size) uint8.
        records: n dictionaries with at least "index", "caption" and "prompt".
    """

    images: Tensor
    records: list[dict]


@dataclasses.dataclass(frozen=True)
class _Plan:
    folder: Path
    start: int
    num_images: int
    seed: int
    size: int
    device: str
    look: Look
    kinds: tuple[str, ...] | None
    views: int

    @property
    def images_path(self) -> Path:
        return self.folder / _IMAGES.format(self.start)

    @property
    def metadata(self) -> dict[str, str]:
        """One entry, because safetensors writes several in an order that changes from run to run."""
        told = {k: getattr(self, k) for k in ("start", "num_images", "seed", "size")}
        if self.look != "scene":
            told["look"] = self.look
        if self.kinds is not None:
            told["kinds"] = self.kinds
        if self.views != 1:
            told["views"] = self.views
        return {"items": json.dumps(told)}

    @property
    def indices(self) -> list[int]:
        """Of its items."""
        every = itertools.count() if self.kinds is None else items_of_kinds(self.kinds, seed=self.seed)
        return list(itertools.islice(every, self.start, self.start + self.num_images))


def write_shards(
    folder: str | os.PathLike,
    num_images: int,
    *,
    shard_size: int = 4096,
    start: int = 0,
    seed: int = 0,
    size: int = 64,
    workers: int = 1,
    device: str = "cpu",
    look: Look = "scene",
    kinds: Sequence[str] | None = None,
    views: int = 1,
) -> Iterator[Path]:
    """Renders items start ... start + num_images - 1 and yields each shard's image file once it is there, in order.

    Nothing runs before the first `next`. Finished shards are kept, so an interrupted call is simply repeated.
    workers: processes, one thread each (1 draws in this process). The files do not depend on workers.
    look: see `studio.Look`. kinds: the only ones that are drawn; start and num_images then count these.
    views: images of each item, from cameras evenly spaced around it, of the "scene" look alone.
    Raises ValueError when a finished shard came from other arguments, or when a count is under 1.
    """
    counts = {"num_images": num_images, "shard_size": shard_size, "workers": workers, "views": views}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; give at least 1, because nothing can be drawn with less.")
    if views > 1 and look != "scene":
        raise ValueError(f"{views} views of each item were asked for in the look {look!r}; only 'scene' has several cameras.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    stop, only = start + num_images, None if kinds is None else tuple(sorted(kinds))
    plans = [
        _Plan(folder, first, min(shard_size, stop - first), seed, size, device, look, only, views)
        for first in range(start, stop, shard_size)
    ]
    todo = [plan for plan in plans if not _is_finished(plan)]
    if workers == 1 or len(todo) <= 1:
        done = set(todo)
        for plan in plans:
            yield _write(plan) if plan in done else plan.images_path
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(todo)), initializer=functools.partial(torch.set_num_threads, 1)) as pool:
        written = pool.imap(_write, todo)
        pending = set(todo)
        for plan in plans:
            yield next(written) if plan in pending else plan.images_path


def read_shards(folder: str | os.PathLike) -> Iterator[Shard]:
    """All finished shards of a folder in the order of their items. Raises FileNotFoundError when there is none."""
    paths = sorted(Path(folder).glob("items-*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"{folder} holds no items-*.safetensors; write_shards makes them.")
    for path in paths:
        with safe_open(path, framework="pt") as file:
            images = file.get_tensor("images")
        records = [json.loads(line) for line in path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
        yield Shard(images, records)


def record(item: Item) -> dict:
    """What is kept of an item beside its image."""
    return {
        "index": item.index,
        "caption": item.caption,
        "prompt": item.prompt,
        "kind": item.kind,
        "colours": dict(item.colours),
        "proportion": item.proportion,
        "azimuth_degrees": round(item.azimuth_degrees, 3),
        "elevation_degrees": round(item.elevation_degrees, 3),
        "background": [round(v, 4) for v in item.background],
    }


def _is_finished(plan: _Plan) -> bool:
    if not plan.images_path.exists():
        return False
    with safe_open(plan.images_path, framework="pt") as file:
        found = file.metadata()
    if found != plan.metadata:
        raise ValueError(
            f"{plan.images_path} was written with {found}, but this call would write {plan.metadata}; "
            "use another folder or the same arguments, because a mixed data set could not be repeated."
        )
    return True


def _write(plan: _Plan) -> Path:
    images, records = [], []
    indices = plan.indices
    for first in range(0, plan.num_images, _ITEMS_PER_CALL):
        some = indices[first : first + _ITEMS_PER_CALL]
        if plan.views > 1:
            items = [view for index in some for view in make_views(index, plan.views, seed=plan.seed)]
            rgb = render_items(items, size=plan.size, device=plan.device)[0]
        else:
            items, rgb = render_look(some, plan.look, seed=plan.seed, size=plan.size, device=plan.device)
        images.append((rgb * 255).round().to(torch.uint8).cpu())
        records += [json.dumps(record(item)) for item in items]
    lines = plan.images_path.with_suffix(".jsonl")
    temporary = lines.with_name(f"{lines.name}.{os.getpid()}.tmp")
    temporary.write_text("\n".join(records) + "\n", encoding="utf-8")
    os.replace(temporary, lines)
    temporary = plan.images_path.with_name(f"{plan.images_path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(save({"images": torch.cat(images)}, metadata=plan.metadata))
    os.replace(temporary, plan.images_path)
    return plan.images_path
