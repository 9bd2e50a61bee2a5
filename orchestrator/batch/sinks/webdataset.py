"""One tar a shard, as WebDataset reads it: 000007000.png, .txt (the prompt) and .json (everything else) a sample."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence

from jobs.batch_images import BatchImagesSpec
from orchestrator.batch.records import Finished, stem
from orchestrator.batch.sinks.base import HashingWriter, ShardFile
from orchestrator.batch.stores import Store

__all__ = ["WebDatasetSink"]


class WebDatasetSink:
    """See `orchestrator.batch.sinks.base.Sink`. A row that failed is not a sample."""

    def __init__(self, spec: BatchImagesSpec, store: Store) -> None:
        self._store = store

    @contextlib.contextmanager
    def open(self, shard: int) -> Iterator[ShardFile]:
        """See `Sink`. Members carry no time, owner or group, so that the bytes follow from the rows."""
        name = f"{shard:05d}.tar"
        with self._store.create(name) as target:
            writer = HashingWriter(target)
            with tarfile.open(fileobj=writer, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # type: ignore[call-overload]

                def add(rows: Sequence[Finished]) -> None:
                    for row in rows:
                        if row.png is not None:
                            _add_sample(tar, row, row.png)

                file = ShardFile(add)
                yield file
        file.written = writer.written(name)

    def read(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """See `Sink`."""
        with self._store.open(f"{shard:05d}.tar") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    data = tar.extractfile(member)
                    assert data is not None
                    yield int(member.name.removesuffix(".png")), data.read()

    def names(self, shard: int, indices: Iterable[int]) -> Iterator[str]:
        """See `Sink`."""
        yield f"{shard:05d}.tar"


def _add_sample(tar: tarfile.TarFile, row: Finished, png: bytes) -> None:
    record = json.dumps(row.record, ensure_ascii=False).encode()
    for suffix, data in (("png", png), ("txt", row.record["prompt"].encode()), ("json", record)):
        member = tarfile.TarInfo(f"{stem(row.index)}.{suffix}")
        member.size, member.mode = len(data), 0o644
        tar.addfile(member, io.BytesIO(data))
