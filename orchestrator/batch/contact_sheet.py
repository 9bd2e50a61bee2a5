"""grid.png and index.html: what a person looks at first. Both follow from the shards alone."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.batch_images import BatchImagesSpec
from orchestrator.batch import preview
from orchestrator.batch.storage.stores import Store
from orchestrator.exports.image_grid import image_grid
from orchestrator.exports.png_metadata import encode_png

__all__ = ["GRID", "PAGE", "ContactSheet"]

GRID, PAGE = "grid.png", "index.html"
MAX_TILES = 64
MAX_SHARDS = 200
MAX_FAILURES = 100

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
h2 { font-size: 1rem; margin: 2rem 0 .5rem; } img { max-width: 100%; } table { border-collapse: collapse; }
td, th { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top; }
ol { columns: 2; font-size: .85rem; color: #555; }
"""


class ContactSheet:
    """Fed with the markers in order, it keeps a bounded number of pictures and lines, however many shards there are."""

    def __init__(self, store: Store, spec: BatchImagesSpec) -> None:
        self._store = store
        self._spec = spec
        shown = min(spec.num_shards, MAX_SHARDS)
        self._shown = {position * spec.num_shards // shown for position in range(shown)}
        self._tiles_per_shard = max(1, -(-MAX_TILES // shown))
        self._tiles: list[np.ndarray] = []
        self._sections: list[str] = []
        self._failures: list[str] = []

    def add(self, marker: Mapping[str, Any]) -> None:
        """The next shard."""
        self._failures += [_row(one) for one in marker["failures"][: MAX_FAILURES - len(self._failures)]]
        if marker["shard"] not in self._shown:
            return
        self._sections.append(_section(marker))
        if marker["preview"] and len(self._tiles) < MAX_TILES and marker["shard"] in self._tile_shards():
            with self._store.open(preview.grid_name(marker["shard"])) as file:
                tiles = preview.tiles(file.read(), marker)
            step = max(1, len(tiles) // self._tiles_per_shard)
            self._tiles += tiles[::step][: self._tiles_per_shard]

    def write(self, *, num_succeeded: int, failures_by_cause: Mapping[str, int]) -> None:
        """Both files; no grid where nothing was drawn."""
        files = {PAGE: self._page(num_succeeded, failures_by_cause).encode()}
        if tiles := self._tiles[:MAX_TILES]:
            files[GRID] = encode_png(image_grid(tiles))
        self._store.put(files)

    def _tile_shards(self) -> set[int]:
        shown = sorted(self._shown)
        num = min(len(shown), MAX_TILES)
        return {shown[position * len(shown) // num] for position in range(num)}

    def _page(self, num_succeeded: int, failures_by_cause: Mapping[str, int]) -> str:
        spec, num_failed = self._spec, sum(failures_by_cause.values())
        title = html.escape(spec.table.name)
        settings = {
            "pictures": f"{num_succeeded:,} of {spec.table.num_rows:,} rows",
            "failed": ", ".join(f"{num:,} {cause}" for cause, num in failures_by_cause.items()) or "none",
            "shards": f"{spec.num_shards:,} of up to {spec.shard_size:,} rows, {spec.output_format}",
            "prior": spec.prior,
            "sampler": f"{spec.sampler}, {spec.num_steps} steps, guidance scale {spec.guidance_scale:g}",
            "seed": f"{spec.seed} + row",
        }
        lines = [f"<tr><th>{name}</th><td>{html.escape(str(value))}</td></tr>" for name, value in settings.items()]
        parts = [f"<h1>{title}</h1>", f"<table>{''.join(lines)}</table>"]
        if self._failures:
            more = f" (the first {len(self._failures):,} of {num_failed:,}; all of them are in _failures.jsonl)"
            heading = f"<h2>Rows without a picture{more if num_failed > len(self._failures) else ''}</h2>"
            parts += [heading, f"<table>{''.join(self._failures)}</table>"]
        if len(self._shown) < spec.num_shards:
            parts.append(f"<p>{len(self._shown):,} of {spec.num_shards:,} shards are shown.</p>")
        body = "\n".join([*parts, *self._sections])
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
        )


def _section(marker: Mapping[str, Any]) -> str:
    last = marker["first_index"] + marker["num_rows"] - 1
    name = html.escape(marker["file"]["name"])
    heading = f'<h2>Shard {marker["shard"]:,}: rows {marker["first_index"]:,} to {last:,} (<a href="{name}">{name}</a>)</h2>'
    if not marker["preview"]:
        return heading
    captions = "".join(f"<li>{html.escape(one['prompt'])} (seed {one['seed']})</li>" for one in marker["preview"])
    picture = f'<img loading="lazy" src="{preview.grid_name(marker["shard"])}" alt="pictures of shard {marker["shard"]}">'
    return f"{heading}\n{picture}\n<ol>{captions}</ol>"


def _row(failure: Mapping[str, Any]) -> str:
    return f"<tr><td>{html.escape(failure['cause'])}</td><td>{html.escape(failure['message'])}</td></tr>"
