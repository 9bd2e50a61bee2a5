"""Whether a finished table of pictures is what its markers say: every shard read, every picture decoded.

Disks lose bytes, buckets lose objects and people delete files, and a job that is finished never looks at them again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs.batch_images import BatchImagesSpec, shard_range
from jobs.errors import OutputError
from orchestrator.batch.job_folder import read_spec
from orchestrator.batch.sinks import make_sink
from orchestrator.batch.storage import markers
from orchestrator.batch.storage.stores import Store, open_store

__all__ = ["Checked", "check_shards", "discard"]

BLOCK_BYTES = 1024**2


@dataclass(frozen=True)
class Checked:
    """A shard that was looked at. problem: what is missing or broken, "" where all is well. num_pictures: that were decoded."""

    shard: int
    problem: str = ""
    num_pictures: int = 0


def check_shards(location: str) -> Iterator[Checked]:
    """Check every shard of the job at a folder or URL, in order.

    That is its marker, its file's size and sha256, its number of pictures, and each picture decoded.

    Raises:
        OutputError: there is no job of a table, or the place does not answer.
    """
    store = open_store(location)
    spec = read_spec(store)
    marked = markers.marked_shards(store, spec)
    for shard in range(spec.num_shards):
        if shard not in marked:
            yield Checked(shard, "it has no commit marker, so it was never finished")
            continue
        try:
            yield Checked(shard, num_pictures=_check(store, spec, shard))
        except _Broken as broken:
            yield Checked(shard, str(broken))


def discard(location: str, shards: list[int]) -> None:
    """Take the markers of broken shards away, so that the same command draws them again. Raises OutputError."""
    store = open_store(location)
    with store.hold():
        store.remove(markers.marker_name(shard) for shard in shards)


class _Broken(Exception):
    """Why a shard is not what it should be."""


def _check(store: Store, spec: BatchImagesSpec, shard: int) -> int:
    """How many pictures it has. Raises _Broken."""
    marker = _read_marker(store, spec, shard)
    file = marker["file"]
    num_bytes, digest = _digest(store, file["name"])
    if num_bytes != file["bytes"]:
        raise _Broken(f"{file['name']} has {num_bytes:,} bytes, but {file['bytes']:,} were written")
    if digest != file["sha256"]:
        raise _Broken(f"{file['name']} has other bytes than were written (its sha256 differs)")
    num_pictures = 0
    try:
        sink = make_sink(spec, store)
        hashes = sink.hashes(shard)
        for index, png in sink.read(shard):
            if hashes and hashlib.sha256(png).hexdigest() != hashes.get(index):
                raise _Broken(f"picture {index} has other bytes than were written (its sha256 differs)")
            _decode(index, png)
            num_pictures += 1
    except FileNotFoundError as error:
        raise _Broken(f"a picture is missing ({error})") from None
    except (ValueError, OSError, EOFError) as error:
        raise _Broken(f"{file['name']} cannot be read ({error})") from error
    if num_pictures != marker["num_succeeded"]:
        raise _Broken(f"it holds {num_pictures:,} pictures, but {marker['num_succeeded']:,} were drawn")
    return num_pictures


def _read_marker(store: Store, spec: BatchImagesSpec, shard: int) -> dict[str, Any]:
    try:
        marker = markers.read_marker(store, shard)
    except OutputError as error:
        if error.may_pass and not isinstance(error.__cause__, ValueError):
            raise
        raise _Broken("its commit marker cannot be read") from None
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        is_whole = {"name", "bytes", "sha256"} <= marker["file"].keys() and isinstance(marker["failures"], list)
        if is_whole and marker["num_succeeded"] + marker["num_failed"] == marker["num_rows"] == len(shard_range(spec, shard)):
            return marker
    raise _Broken("its commit marker is damaged")


def _digest(store: Store, name: str) -> tuple[int, str]:
    digest, num_bytes = hashlib.sha256(), 0
    try:
        with store.open(name) as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                num_bytes += len(block)
    except FileNotFoundError:
        raise _Broken(f"{name} is missing") from None
    return num_bytes, digest.hexdigest()


def _decode(index: int, png: bytes) -> None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png)) as image:
            image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise _Broken(f"picture {index} cannot be decoded ({error})") from error
