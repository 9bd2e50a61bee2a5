"""A prompt table as the user names it: a file, a folder, a glob, or a URL of any of these."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from jobs import codec
from jobs.batch_images import Row, Table, TableFile
from jobs.errors import InputError
from orchestrator.batch.storage.urls import clear_url_errors, is_url, join, open_filesystem
from orchestrator.batch.tables.compression import COMPRESSIONS, clear_damage, decompressed
from orchestrator.batch.tables.readers import READERS, Record, read_header, read_records
from orchestrator.run.manifest import MANIFEST

__all__ = ["TableSource"]

MAX_COLUMNS = 1000
NOTHING = "null"
ENDINGS = f"{', '.join(READERS)}, all but parquet perhaps with {', '.join(COMPRESSIONS)}"
OUTPUT = re.compile(r"(^|/)(part-\d{5,}\.parquet|\d{5,}/metadata\.jsonl|progress\.jsonl)$")
"""Files that our own jobs write and that would pass for tables."""


@dataclass(frozen=True)
class TableSource:
    """Where a table lies; picklable, so that workers can find what its cells point to.

    Args:
        location: the common folder or URL of the files.
        names: of the files below it, in the order in which their rows are counted.
        prompt_column: the column that holds the prompts.
    """

    location: str
    names: tuple[str, ...]
    prompt_column: str = "prompt"

    @classmethod
    def find(cls, location: str, *, prompt_column: str = "prompt") -> TableSource:
        """The table that a user named.

        Raises:
            InputError: there is no such file, no table in the folder, or a kind of file that is not read.
        """
        filesystem, path = open_filesystem(location)
        with clear_url_errors(f"{location} could not be read"):
            paths, folder = _expand(filesystem, path, location)
        if is_url(location):
            folder = filesystem.unstrip_protocol(folder)
        return cls(folder, tuple(posixpath.relpath(one, _stripped(filesystem, folder)) for one in paths), prompt_column)

    def scan(self) -> Table:
        """Read every file once: its sha256, its rows, its columns.

        Raises:
            InputError: a file that cannot be read, or that has no prompt column.
        """
        files: list[TableFile] = []
        columns: dict[str, str] = {}
        for name in self.names:
            with self._clear(name):
                file, found = self._scan_file(name)
            if self.prompt_column not in found and file.num_rows:
                raise InputError(self._no_prompts(name, list(found)))
            files.append(file)
            for column, kind in found.items():
                columns[column] = _joint_kind(columns.get(column), kind)
        known = {column: "text" if kind == NOTHING else kind for column, kind in columns.items()}
        return Table(files=tuple(files), columns=known)

    def rows(self) -> Iterator[Row]:
        """Every row of every file, in order."""
        index = 0
        for name in self.names:
            with self._clear(name), self._open(name) as file:
                records = read_records(file, _suffix(name), prompt_column=self.prompt_column)
                for number, record in enumerate(records, 1):
                    yield Row(
                        index=index, file=name, number=number, line=record.line, values=record.values, problem=record.problem
                    )
                    index += 1

    def resolve(self, cell: str, file: str) -> str:
        """Where the path or URL in a cell of `file` points: relative ones start at the file's own folder."""
        return join(join(self.location, posixpath.dirname(file)) if posixpath.dirname(file) else self.location, cell)

    def _scan_file(self, name: str) -> tuple[TableFile, dict[str, str]]:
        suffix = _suffix(name)
        with self._open(name) as file:
            header = read_header(file, suffix, prompt_column=self.prompt_column)
        kinds: dict[str, str] = dict(header or {})
        if suffix == ".parquet":
            num_rows = self._count_parquet(name)
        else:
            with self._open(name) as file:
                num_rows = 0
                for record in read_records(file, suffix, prompt_column=self.prompt_column):
                    num_rows += 1
                    if header is None:
                        _note_kinds(kinds, record)
        num_bytes, digest = self._digest(name)
        return TableFile(name=name, num_bytes=num_bytes, sha256=digest, num_rows=num_rows), kinds

    def _count_parquet(self, name: str) -> int:
        import pyarrow.parquet

        with self._open(name) as file:
            return pyarrow.parquet.ParquetFile(file).metadata.num_rows

    def _digest(self, name: str) -> tuple[int, str]:
        filesystem, path = open_filesystem(join(self.location, name))
        digest, num_bytes = hashlib.sha256(), 0
        with filesystem.open(path, "rb") as file:
            while block := file.read(1024**2):
                digest.update(block)
                num_bytes += len(block)
        return num_bytes, digest.hexdigest()

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        from fsspec.spec import AbstractBufferedFile

        filesystem, path = open_filesystem(join(self.location, name))
        with filesystem.open(path, "rb") as file, decompressed(file, name) as plain:
            # A remote file has no readline with a limit of its own.
            yield io.BufferedReader(plain) if isinstance(plain, AbstractBufferedFile) else plain

    @contextlib.contextmanager
    def _clear(self, name: str) -> Iterator[None]:
        with clear_url_errors(f"{join(self.location, name)} could not be read"):
            try:
                with clear_damage(name):
                    yield
            except InputError as error:
                # The readers do not know the file's name; their sentences begin with the verb.
                words = str(error)
                raise InputError(f"{join(self.location, name)} {words}." if words[:1].islower() else words) from error

    def _no_prompts(self, name: str, columns: list[str]) -> str:
        hint = codec.near_matches(self.prompt_column, columns)
        shown = ", ".join(columns[:20]) or "none at all"
        return (
            f"{join(self.location, name)} has no column {self.prompt_column!r}{hint}; its columns are: {shown}. Name the one "
            "with the prompts: --prompt-column."
        )


def _expand(filesystem: Any, path: str, location: str) -> tuple[list[str], str]:
    """Paths of the table's files, sorted, and the folder that they share."""
    if any(sign in path for sign in "*?[") and not filesystem.exists(path):
        found = [one for one in filesystem.glob(path) if not posixpath.basename(one).startswith(".")]
        paths = [one for one in _without_our_own(filesystem, found) if _is_table(one) and not filesystem.isdir(one)]
        folder = posixpath.dirname(path[: min(path.index(sign) for sign in "*?[" if sign in path)])
        if not paths:
            raise InputError(f"No file matches {location}; tables end in {ENDINGS}.")
        return sorted(paths), folder
    if filesystem.isdir(path):
        folder = path.rstrip("/")
        found = _without_our_own(filesystem, filesystem.find(folder))
        paths = [one for one in found if _is_table(one) and not _is_hidden(posixpath.relpath(one, folder))]
        if not paths:
            raise InputError(f"{location} holds no table; tables end in {ENDINGS}.")
        return sorted(paths), folder
    if not filesystem.exists(path):
        hint = f" (did you mean {location.replace(':/', '://', 1)}?)" if ":/" in location and not is_url(location) else ""
        raise InputError(f"There is no prompt table {location}{hint}.")
    if not _is_table(path):
        kind = os.path.splitext(path)[1] or "no ending"
        array = "; of a JSON array 'jq -c .[] FILE' makes a jsonl" if kind == ".json" else ""
        raise InputError(f"{location} is of a kind that is not read ({kind}); give {ENDINGS}{array}.")
    return [path], posixpath.dirname(path)


def _without_our_own(filesystem: Any, paths: list[str]) -> list[str]:
    """The paths without what a job of ours wrote: an --out may lie in the table's own folder."""
    folders = {posixpath.dirname(path) for path in paths if OUTPUT.search(path)}
    ours = {one for folder in folders for one in (folder, posixpath.dirname(folder)) if _is_job_folder(filesystem, one)}
    return [path for path in paths if not (OUTPUT.search(path) and ours & set(_up(path, levels=2)))]


def _up(path: str, *, levels: int) -> list[str]:
    """The folders directly above a path."""
    folders = [posixpath.dirname(path)]
    while len(folders) < levels:
        folders.append(posixpath.dirname(folders[-1]))
    return folders


def _is_job_folder(filesystem: Any, folder: str) -> bool:
    try:
        with filesystem.open(f"{folder}/{MANIFEST}", "rb") as file:
            return "manifest_version" in json.loads(file.read())
    except (OSError, ValueError, TypeError):
        return False


def _is_hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _is_table(path: str) -> bool:
    suffix = _suffix(path)
    return suffix in READERS and (suffix != ".parquet" or path.lower().endswith(suffix))


def _suffix(path: str) -> str:
    """The kind of table, without what says how it is compressed."""
    stem, ending = posixpath.splitext(path)
    return (posixpath.splitext(stem)[1] if ending.lower() in COMPRESSIONS else ending).lower()


def _stripped(filesystem: Any, folder: str) -> str:
    return filesystem._strip_protocol(folder) if is_url(folder) else folder


def _note_kinds(kinds: dict[str, str], record: Record) -> None:
    for column, value in record.values.items():
        kinds[column] = _joint_kind(kinds.get(column), _kind(value))
    if len(kinds) > MAX_COLUMNS:
        raise InputError(f"has more than {MAX_COLUMNS:,} different keys; put what differs from row to row into one of them")


def _kind(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "json"
    return {float: "float", str: "text"}.get(type(value), "json")


def _joint_kind(before: str | None, now: str) -> str:
    """The narrowest type that holds both."""
    if before is None or before in (NOTHING, now):
        return now
    if now == NOTHING:
        return before
    return "float" if {before, now} == {"int", "float"} else "json"
