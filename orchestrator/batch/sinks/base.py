"""What an output format is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any, Protocol

from orchestrator.batch.records import Finished

__all__ = ["HashingWriter", "ShardFile", "Sink", "Written"]


@dataclass(frozen=True)
class Written:
    """A file of a shard: its name below the job's folder, its size and sha256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass
class ShardFile:
    """A shard being written.

    Args:
        add: takes the next rows, in their order. written: what there is, once it is finished.
    """

    add: Callable[[Sequence[Finished]], None]
    written: Written | None = None


class Sink(Protocol):
    """Writes shards. The same rows give the same bytes, whenever, wherever and in whatever portions they are written."""

    def open(self, shard: int) -> AbstractContextManager[ShardFile]:
        """A shard to write; it is finished when the block ends well and then replaces an earlier one. Raises OutputError."""
        ...

    def read(self, shard: int) -> Iterator[tuple[int, bytes]]:
        """(index, PNG file) of every picture of a shard that was finished, in order of the index."""
        ...

    def hashes(self, shard: int) -> dict[int, str]:
        """Index -> sha256 of a finished shard's pictures that are files of their own.

        Where they are not, the sha256 of the shard's one file covers them.
        """
        ...

    def names(self, shard: int, indices: Iterable[int]) -> Iterator[str]:
        """Every file that a shard of these rows may have left, finished or not."""
        ...


class HashingWriter:
    """A binary file that is only appended to, with the size and sha256 of what went through."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """All of it."""
        view = memoryview(data).cast("B")
        self._digest.update(view)
        self._file.write(view)
        self.num_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """How much has been written."""
        return self.num_bytes

    def flush(self) -> None:
        """Left to the file's owner."""

    def close(self) -> None:
        """Left to the file's owner."""
        self.closed = True

    def readable(self) -> bool:
        """No."""
        return False

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """No."""
        return False

    def written(self, name: str) -> Written:
        """The file so far, under that name."""
        return Written(name, self.num_bytes, self._digest.hexdigest())
