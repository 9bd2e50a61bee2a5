"""LoRAs and textual inversions that cells point to, by path."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from diffusion.checkpoints.lora_files import AdapterFile
from jobs.batch_images import Row
from jobs.batch_images.cells import AdapterColumn
from jobs.errors import InputError
from jobs.specs import find_embeddings, find_loras
from orchestrator.batch.storage.urls import is_url
from orchestrator.batch.tables.source import TableSource

__all__ = ["RowAdapters"]


class RowAdapters:
    """A `jobs.batch_images.FindAdapters`. Relative paths start at the folder of the row's own table file."""

    def __init__(self, source: TableSource) -> None:
        self._source = source

    def __call__(self, column: AdapterColumn, texts: Sequence[str], row: Row) -> tuple[AdapterFile, ...]:
        """The adapters, each file hashed once and again when it has changed. Raises InputError for what cannot be read."""
        return tuple(self._find(column, text, row.file) for text in texts)

    def _find(self, column: AdapterColumn, text: str, file: str) -> AdapterFile:
        place = text if os.path.isabs(text) else self._source.resolve(text, file)
        if is_url(place):
            raise InputError(f"The {column} {place} is a URL; give a path on this machine's disk.")
        return _found(column, place, _state(place))


@functools.lru_cache(maxsize=256)
def _found(column: AdapterColumn, text: str, state: tuple[tuple[str, int, int], ...]) -> AdapterFile:
    del state  # of the file; another one is another answer
    (found,) = find_loras([text]) if column == "lora" else find_embeddings([text])
    return found


def _state(text: str) -> tuple[tuple[str, int, int], ...]:
    """Size and time of the files that may be meant."""
    paths = [Path(text), Path(text.rpartition(":")[0])]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.glob("*")) if path.is_dir() else [])]
    return tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
