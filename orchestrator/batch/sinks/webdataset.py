"""One tar a shard, as WebDataset reads it: 000007000.png, .txt (the prompt) and .json (everything else) a sample."""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence

from jobs.batch_images import BatchImagesSpec
from orchestrator.batch.records import Finished, stem
from orchestrator.batch.sinks.base import HashingWriter, ShardFile
from orchestrator.batch.storage.stores import Store

__all__ = ["WebDatasetSink"]


_NAMELESS = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # its mode is 0644, and it has no time, owner or group


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

            def add(rows: Sequence[Finished]) -> None:
                writer.write(b"".join(part for row in rows if row.png is not None for part in _sample(row, row.png)))

            file = ShardFile(add)
            yield file
            end = writer.num_bytes + 2 * tarfile.BLOCKSIZE
            writer.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        file.written = writer.written(name)

    def read(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """See `Sink`."""
        with self._store.open(f"{shard:05d}.tar") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    data = tar.extractfile(member)
                    assert data is not None
                    yield int(member.name.removesuffix(".png")), data.read()

    def hashes(self, shard: int) -> dict[int, str]:
        """See `Sink`."""
        return {}

    def names(self, shard: int, indices: Iterable[int]) -> Iterator[str]:
        """See `Sink`."""
        yield f"{shard:05d}.tar"


def _sample(row: Finished, png: bytes) -> Iterator[bytes]:
    """The row's three members, as they stand in the tar."""
    record = json.dumps(row.record, ensure_ascii=False).encode()
    for suffix, data in (("png", png), ("txt", row.record["prompt"].encode()), ("json", record)):
        yield _header(f"{stem(row.index)}.{suffix}", len(data))
        yield data
        yield bytes(-len(data) % tarfile.BLOCKSIZE)


def _header(name: str, num_bytes: int) -> bytes:
    """tarfile's own, with what differs from member to member filled in: its own way there takes five times as long."""
    header = bytearray(_NAMELESS)
    header[: len(name)] = name.encode()
    header[124:135] = b"%011o" % num_bytes
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)  # the checksum, summed with spaces in its own place
    return bytes(header)
