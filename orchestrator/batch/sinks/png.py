"""One folder a shard: 00007/000007000.png …, and metadata.jsonl as Hugging Face's ImageFolder reads it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jobs.batch_images import BatchImagesSpec
from orchestrator.batch.records import Finished, stem
from orchestrator.batch.sinks.base import ShardFile, Written
from orchestrator.batch.storage.stores import Store

__all__ = ["PngSink"]


class PngSink:
    """See `orchestrator.batch.sinks.base.Sink`. A row that failed has no picture and no line in metadata.jsonl."""

    def __init__(self, spec: BatchImagesSpec, store: Store) -> None:
        self._store = store

    @contextlib.contextmanager
    def open(self, shard: int) -> Iterator[ShardFile]:
        """See `Sink`. metadata.jsonl, which names the pictures with their hashes, comes last."""
        folder = f"{shard:05d}"
        self._store.clean(folder)
        lines: list[bytes] = []

        def add(rows: Sequence[Finished]) -> None:
            self._store.put({f"{folder}/{stem(row.index)}.png": row.png for row in rows if row.png is not None and row.is_new})
            for row in rows:
                if row.png is not None:
                    line = {"file_name": f"{stem(row.index)}.png", **row.record}
                    lines.append(json.dumps(line, ensure_ascii=False).encode() + b"\n")

        file = ShardFile(add)
        yield file
        data, name = b"".join(lines), f"{folder}/metadata.jsonl"
        self._store.put({name: data})
        file.written = Written(name, len(data), hashlib.sha256(data).hexdigest())

    def read(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """See `Sink`."""
        for record in self._records(shard):
            with self._store.open(f"{shard:05d}/{record['file_name']}") as file:
                yield record["index"], file.read()

    def hashes(self, shard: int) -> dict[int, str]:
        """See `Sink`."""
        return {record["index"]: record["sha256"] for record in self._records(shard)}

    def _records(self, shard: int) -> list[dict[str, Any]]:
        with self._store.open(f"{shard:05d}/metadata.jsonl") as file:
            return [json.loads(line) for line in file]

    def names(self, shard: int, indices: Iterable[int]) -> Iterator[str]:
        """See `Sink`."""
        folder = f"{shard:05d}"
        yield from (f"{folder}/{stem(index)}.png" for index in indices)
        yield f"{folder}/metadata.jsonl"
