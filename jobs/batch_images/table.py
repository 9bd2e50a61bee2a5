"""A prompt table as data: which files, which columns, and one row of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from jobs import codec

__all__ = ["COLUMN_TYPES", "Row", "Table", "TableFile", "batched", "row_digest"]

COLUMN_TYPES = ("bool", "int", "float", "text", "json")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """One file of a prompt table: its name within the table, its content's size and sha256, and its rows."""

    name: str
    num_bytes: int
    sha256: str
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Table:
    """What a prompt table holds; two tables with one content are equal wherever they lie.

    Args:
        files: in the order in which their rows are counted.
        columns: name -> one of `COLUMN_TYPES`, in order of first appearance.
    """

    files: tuple[TableFile, ...]
    columns: Mapping[str, str]

    @property
    def num_rows(self) -> int:
        """Of all files, unreadable ones included."""
        return sum(file.num_rows for file in self.files)

    @property
    def name(self) -> str:
        """The first file's, and how many more there are."""
        return self.files[0].name + (f"-and-{len(self.files) - 1}-more" if len(self.files) > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Args:
        index: over the whole table, from 0. file, number: which file, and which of its rows, from 1. line: of a text file.
        values: column -> cell. problem: why the row could not be read; then `values` is empty.
    """

    index: int
    file: str
    number: int
    line: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    @property
    def place(self) -> str:
        """Its file and row in words, as 'prompts.csv, row 517 (line 518)'."""
        return f"{self.file}, row {self.number:,}" + (f" (line {self.line:,})" if self.line is not None else "")


def row_digest(rows: Iterable[Row]) -> str:
    """sha256 (hex) of where rows stand and what they hold."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(codec.canonical_json([row.index, dict(row.values)]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
