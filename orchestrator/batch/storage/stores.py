"""Where a batch job's files go: a folder, or an object store by its URL. A file is there whole or not at all.

A folder's files appear by rename. An object store has no rename, but shows an object only when its upload has ended, so a
file is one upload there. Either way the last file of a shard, its commit marker, is a single step.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

from jobs.errors import OutputError
from orchestrator.batch.storage.lease import Lease, require_lease
from orchestrator.batch.storage.urls import clear_url_errors, is_url, open_filesystem
from orchestrator.host.atomic import TEMPORARY_PREFIX, atomic_path, clear_output_errors, remove_half_written
from orchestrator.run.folder import held_folder

__all__ = ["LocalStore", "RemoteStore", "Store", "open_store"]

SPOOL_BYTES = 32 * 1024**2


class Store(Protocol):
    """Names are relative, with forward slashes. Everything that writes raises OutputError where the place says no."""

    location: str

    def create(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file to write from start to end; it appears when the block ends well."""
        ...

    def put(self, files: Mapping[str, bytes]) -> None:
        """Whole files, each of which appears at once."""
        ...

    def open(self, name: str) -> IO[bytes]:
        """A file to read. Raises FileNotFoundError."""
        ...

    def names(self, folder: str = "") -> list[str]:
        """Files directly in a folder, without its name, sorted; none where there is no such folder."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Delete files, those that are not there included."""
        ...

    def clean(self, folder: str = "") -> None:
        """Delete what a killed process left half-written in a folder; only for the holder."""
        ...

    def hold(self) -> contextlib.AbstractContextManager[str]:
        """Keep every other process of ours from writing there; gives a token. Raises OutputError where one does."""
        ...

    def require_held(self, token: str) -> None:
        """To be asked before each commit, in any process. Raises OutputError where another one holds the place by now."""
        ...


def open_store(location: str | os.PathLike[str]) -> Store:
    """The store of a path or URL; `file://` is a path. Raises InputError for a URL that cannot be opened."""
    text = os.fspath(location)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return RemoteStore(text) if is_url(text) else LocalStore(Path(text))


class LocalStore:
    """A folder; it and its parents are made as they are needed."""

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        self._folder = folder

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """See `Store`."""
        path = self._path(name)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            yield file

    def put(self, files: Mapping[str, bytes]) -> None:
        """See `Store`. On the disk when it returns, with one flush of each folder."""
        folders = set()
        for name, data in files.items():
            path = self._path(name)
            folders.add(path.parent)
            # A name of its own: the worker of an attempt that was given up for lost may still write the same file.
            temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}{path.suffix[:16]}")
            try:
                with clear_output_errors(path):
                    with temporary.open("wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                    os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        for folder in folders:
            with clear_output_errors(folder):
                _flush_folder(folder)

    def open(self, name: str) -> IO[bytes]:
        """See `Store`."""
        return (self._folder / name).open("rb")

    def names(self, folder: str = "") -> list[str]:
        """See `Store`."""
        try:
            with os.scandir(self._folder / folder) as entries:
                return sorted(e.name for e in entries if e.is_file() and not e.name.startswith(TEMPORARY_PREFIX))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, names: Iterable[str]) -> None:
        """See `Store`. A folder that becomes empty goes too."""
        folders = set()
        for name in names:
            path = self._folder / name
            with clear_output_errors(path):
                path.unlink(missing_ok=True)
            folders.add(path.parent)
        for folder in folders - {self._folder}:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def clean(self, folder: str = "") -> None:
        """See `Store`."""
        remove_half_written(self._folder / folder)

    @contextlib.contextmanager
    def hold(self) -> Iterator[str]:
        """See `Store`. The folder itself is locked, so the hold leaves no file and ends with the process."""
        with held_folder(self._folder):
            yield ""

    def require_held(self, token: str) -> None:
        """Nothing: a lock is not lost."""

    def _path(self, name: str) -> Path:
        path = self._folder / name
        with clear_output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path


class RemoteStore:
    """A prefix of an object store, through fsspec."""

    def __init__(self, url: str) -> None:
        self.location = url.rstrip("/")
        self._filesystem, self._root = open_filesystem(self.location)
        self._root = self._root.rstrip("/")

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """See `Store`. Built in a local temporary file that has no name, so a killed process leaves none."""
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
            yield spool  # type: ignore[misc]
            size = spool.tell()
            spool.seek(0)
            if size <= SPOOL_BYTES:
                self.put({name: spool.read()})
                return
            with self._clear(name):
                # Left unfinished after an error, a multipart upload never becomes visible.
                upload = self._filesystem.open(self._path(name), "wb", autocommit=False)
                try:
                    while block := spool.read(SPOOL_BYTES // 4):
                        upload.write(block)
                    upload.close()
                    upload.commit()
                except BaseException:
                    upload.discard()
                    raise

    def put(self, files: Mapping[str, bytes]) -> None:
        """See `Store`. One single-part upload each, several at a time."""
        if files:
            with self._clear(next(iter(files))):
                self._filesystem.pipe({self._path(name): data for name, data in files.items()})

    def open(self, name: str) -> IO[bytes]:
        """See `Store`."""
        with self._asked(name):
            return self._filesystem.open(self._path(name), "rb")

    def names(self, folder: str = "") -> list[str]:
        """See `Store`."""
        path = self._path(folder) if folder else self._root
        try:
            self._filesystem.invalidate_cache()
            with self._asked(folder):
                entries = self._filesystem.ls(path, detail=True)
        except FileNotFoundError:
            return []
        files = [entry["name"] for entry in entries if entry["type"] == "file"]
        return sorted(name.rsplit("/", 1)[-1] for name in files if not name.endswith("/"))

    def remove(self, names: Iterable[str]) -> None:
        """See `Store`."""
        for name in names:
            with self._clear(name), contextlib.suppress(FileNotFoundError):
                self._filesystem.rm_file(self._path(name))

    def clean(self, folder: str = "") -> None:
        """Nothing: unfinished uploads are invisible, and the bucket's lifecycle rule ends them."""

    def hold(self) -> contextlib.AbstractContextManager[str]:
        """See `Store`. A lease that is renewed; one that is not is taken over."""
        return Lease(self)

    def require_held(self, token: str) -> None:
        """See `Store`."""
        require_lease(self, token)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        """What is not there stays a FileNotFoundError; a store that does not answer is an OutputError."""
        try:
            with clear_url_errors(f"{self.location}/{name} could not be read", OutputError):
                yield
        except OutputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None
            raise

    def _clear(self, name: str) -> Any:
        return clear_url_errors(f"{self.location}/{name} could not be written", OutputError)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems flush no folders
            os.fsync(handle)
    finally:
        os.close(handle)
