"""One parquet file a shard, part-00007.parquet: a row per row of the table, failed ones included, the PNG file in `image`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow
import pyarrow.parquet

from jobs.batch_images import BatchImagesSpec
from orchestrator.batch.records import Finished, column_types
from orchestrator.batch.sinks.base import HashingWriter, ShardFile
from orchestrator.batch.storage.stores import Store

__all__ = ["ParquetSink"]

ROWS_PER_GROUP = 256
TYPES = {
    "bool": pyarrow.bool_(),
    "int": pyarrow.int64(),
    "float": pyarrow.float64(),
    "text": pyarrow.string(),
    "json": pyarrow.string(),
}


class ParquetSink:
    """See `orchestrator.batch.sinks.base.Sink`. All shards of a job have one schema; what has no plain type is JSON text."""

    def __init__(self, spec: BatchImagesSpec, store: Store) -> None:
        self._store = store
        self._types = column_types(spec)
        fields = [pyarrow.field(name, TYPES[kind]) for name, kind in self._types.items()]
        self._schema = pyarrow.schema([*fields, pyarrow.field("image", pyarrow.binary())])

    @contextlib.contextmanager
    def open(self, shard: int) -> Iterator[ShardFile]:
        """See `Sink`."""
        name = _name(shard)
        compression = dict.fromkeys(self._types, "zstd") | {"image": "none"}  # PNG is compressed already
        waiting: list[Finished] = []
        with self._store.create(name) as target:
            writer = HashingWriter(target)
            with pyarrow.parquet.ParquetWriter(
                pyarrow.PythonFile(writer, mode="w"), self._schema, compression=compression, use_dictionary=["prior_hash"]
            ) as parquet:

                def add(rows: Sequence[Finished]) -> None:
                    waiting.extend(rows)
                    while len(waiting) >= ROWS_PER_GROUP:
                        parquet.write_table(self._table(waiting[:ROWS_PER_GROUP]))
                        del waiting[:ROWS_PER_GROUP]

                file = ShardFile(add)
                yield file
                if waiting:
                    parquet.write_table(self._table(waiting))
        file.written = writer.written(name)

    def read(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """See `Sink`."""
        with self._store.open(_name(shard)) as file:
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(ROWS_PER_GROUP, columns=["index", "image"]):
                for row in batch.to_pylist():
                    if row["image"] is not None:
                        yield row["index"], row["image"]

    def hashes(self, shard: int) -> dict[int, str]:
        """See `Sink`."""
        return {}

    def names(self, shard: int, indices: Iterable[int]) -> Iterator[str]:
        """See `Sink`."""
        yield _name(shard)

    def _table(self, rows: Sequence[Finished]) -> pyarrow.Table:
        columns: dict[str, list[Any]] = {
            name: [_cell(row.record.get(name), kind) for row in rows] for name, kind in self._types.items()
        }
        return pyarrow.table({**columns, "image": [row.png for row in rows]}, schema=self._schema)


def _name(shard: int) -> str:
    return f"part-{shard:05d}.parquet"


def _cell(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind != "json":
        return float(value) if kind == "float" else value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
