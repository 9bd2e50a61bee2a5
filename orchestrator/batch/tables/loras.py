"""LoRAs that cells point to, by path."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from diffusion.checkpoints.lora_files import Lora
from jobs.batch_images import Row
from jobs.errors import InputError
from jobs.specs import find_loras
from orchestrator.batch.storage.urls import is_url
from orchestrator.batch.tables.source import TableSource

__all__ = ["RowLoras"]


class RowLoras:
    """A `jobs.batch_images.FindLoras`. Relative paths start at the folder of the row's own table file."""

    def __init__(self, source: TableSource) -> None:
        self._source = source

    def __call__(self, texts: Sequence[str], row: Row) -> tuple[Lora, ...]:
        """The LoRAs, each file hashed once and again when it has changed. Raises InputError for what cannot be read."""
        return tuple(self._find(text, row.file) for text in texts)

    def _find(self, text: str, file: str) -> Lora:
        place = text if os.path.isabs(text) else self._source.resolve(text, file)
        if is_url(place):
            raise InputError(f"The LoRA {place} is a URL; give a path on this machine's disk.")
        return _found(place, _state(place))


@functools.lru_cache(maxsize=256)
def _found(text: str, state: tuple[tuple[str, int, int], ...]) -> Lora:
    del state  # of the file; another one is another answer
    (lora,) = find_loras([text])
    return lora


def _state(text: str) -> tuple[tuple[str, int, int], ...]:
    """Size and time of the files that may be meant."""
    paths = [Path(text), Path(text.rpartition(":")[0])]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else [])]
    return tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
