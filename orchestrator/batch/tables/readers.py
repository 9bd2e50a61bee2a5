"""Prompt tables, read row by row: txt, csv, tsv, jsonl and parquet.

A reader never gives up on a bad row: it yields a `Record` with a problem, which counts like any other, so that the numbers
of the rows after it do not change when the row is mended. txt, csv and jsonl go through the standard library because
pyarrow's readers of these give up a whole block for one bad row; parquet goes through pyarrow.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from jobs.batch_images import ALIASES, SETTINGS
from jobs.errors import InputError
from orchestrator.batch.tables.csv_records import CsvRecords

__all__ = ["READERS", "Record", "read_header", "read_records"]

MAX_LINE_BYTES = 1024**2
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True)
class Record:
    """One row: its cells by column as JSON values, or why there are none. line: where it begins in a text file."""

    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    line: int | None = None


def read_records(file: IO[bytes], suffix: str, *, prompt_column: str) -> Iterator[Record]:
    """Every row of an open file, in order.

    Raises:
        InputError: the file as a whole cannot be read; the message lacks the file's name.
    """
    return READERS[suffix](file, prompt_column)


def read_header(file: IO[bytes], suffix: str, *, prompt_column: str) -> dict[str, str] | None:
    """Columns and their types where the file says them without being read: csv and parquet. None for jsonl."""
    if suffix == ".txt":
        return {prompt_column: "text"}
    if suffix in (".csv", ".tsv"):
        with _text(file) as text:
            return dict.fromkeys(_named_once(CsvRecords(text, prompt_column).header), "text")
    if suffix == ".parquet":
        schema = _parquet(file).schema_arrow
        _named_once(schema.names)
        kinds = {column.name: _arrow_kind(column.type) for column in schema}
        if kinds.get(prompt_column, "text") != "text":
            kind = schema.field(prompt_column).type
            raise InputError(f"has {kind} in its column {prompt_column!r}, but text was expected; write the prompts as text")
        return kinds
    return None


def _read_txt(file: IO[bytes], prompt_column: str) -> Iterator[Record]:
    """One prompt a line; blank lines are no rows."""
    for number, line in _lines(file):
        if isinstance(line, bytes):
            yield Record(problem=line.decode(), line=number)
        elif line.strip():
            yield Record({prompt_column: line.strip()}, line=number)


def _read_jsonl(file: IO[bytes], prompt_column: str) -> Iterator[Record]:
    """One JSON object a line; blank lines are no rows."""
    is_first = True
    for number, line in _lines(file):
        if isinstance(line, bytes):
            yield Record(problem=line.decode(), line=number)
            continue
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            raise InputError("is one JSON array, but a line for each row was expected; 'jq -c .[] FILE' writes it so")
        is_first = False
        try:
            values = json.loads(line, object_pairs_hook=_object)
            row = _plain_row(values) if isinstance(values, dict) else None
            half = _half_character(line, values)
        except (ValueError, RecursionError) as error:
            yield Record(problem=f"the line is not JSON ({error})", line=number)
            continue
        if half is not None:
            yield Record(problem=f"the line holds half a character ({half})", line=number)
        elif row is None:
            yield Record(problem=f"the line is {line.strip()[:60]!r}, but a JSON object was expected", line=number)
        else:
            yield Record(row, line=number)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs of a JSON object by name; ValueError for a name that stands twice, of which one value would be lost."""
    values = dict(pairs)
    if len(values) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)!r} twice")
    return values


def _half_character(line: str, values: Any) -> str | None:
    """A surrogate without its partner, as JSON can write it and UTF-8 cannot: what would stop every file that it comes to."""
    if SURROGATE.search(line) is not None:
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return rf"\u{ord(error.object[error.start]):04x}"
    return None


def _read_csv(file: IO[bytes], prompt_column: str) -> Iterator[Record]:
    """A header, then one row a record; a cell may span lines if it is quoted."""
    with _text(file) as text:
        records = CsvRecords(text, prompt_column)
        header = _named_once(records.header)
        for record in records:
            if record.problem is not None:
                yield Record(problem=record.problem, line=record.line)
            else:
                yield Record(dict(zip(header, record.cells, strict=True)), line=record.line)


def _read_parquet(file: IO[bytes], prompt_column: str) -> Iterator[Record]:
    """Row group by row group; one that cannot be decoded fails its rows alone."""
    import pyarrow

    parquet = _parquet(file)
    for group in range(parquet.num_row_groups):
        num_read, num_rows = 0, parquet.metadata.row_group(group).num_rows
        try:
            for batch in parquet.iter_batches(batch_size=1024, row_groups=[group]):
                rows = batch.to_pylist()
                num_read += len(rows)
                yield from (_parquet_record(row, prompt_column) for row in rows)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            problem = f"row group {group} cannot be read ({str(error).splitlines()[0].rstrip('.')})"
            yield from (Record(problem=problem) for _ in range(num_rows - num_read))


def _parquet_record(row: Mapping[str, Any], prompt_column: str) -> Record:
    """The row; bytes in a column that means text to us are text, as many writers store it."""
    texts = {
        name: value for name, value in row.items() if isinstance(value, bytes) and (name == prompt_column or name in SETTINGS)
    }
    try:
        decoded = {name: value.decode() for name, value in texts.items()}
    except UnicodeDecodeError as error:
        name = next(name for name, value in texts.items() if value is error.object or value == error.object)
        return Record(problem=f"the bytes in {name!r} are not UTF-8 (byte {error.start + 1})")
    return Record(_plain_row({**row, **decoded}))


READERS = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str | bytes]]:
    """(number, text) of every line; bytes are a sentence about a line that cannot be read."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
            _refuse_utf16(line)
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield number, f"the line is longer than {MAX_LINE_BYTES:,} bytes".encode()
            continue
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            yield number, f"the line is not UTF-8 (byte {error.start + 1})".encode()


@contextlib.contextmanager
def _text(file: IO[bytes]) -> Iterator[IO[str]]:
    """The file as text; bytes that are no UTF-8 become lone surrogates. It stays the caller's to close."""
    buffered = io.BufferedReader(file)  # type: ignore[type-var]
    _refuse_utf16(buffered.peek(4))
    text = io.TextIOWrapper(buffered, encoding="utf-8-sig", errors="surrogateescape", newline="")
    try:
        yield text
    finally:
        with contextlib.suppress(ValueError):  # closed already
            text.detach()
            buffered.detach()


def _refuse_utf16(head: bytes) -> None:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError("is UTF-16; save it as UTF-8")


def _named_once(header: Sequence[str]) -> Sequence[str]:
    """The header, or InputError: of two columns with one name the rows would keep one."""
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"has two columns {twice!r}; rename one")
    for alias, name in ALIASES.items():
        if alias in header and name in header:
            raise InputError(f"has the columns {alias!r} and {name!r}, which mean the same; leave one out")
    return header


def _parquet(file: IO[bytes]) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"is not a readable parquet file ({str(error).splitlines()[0].rstrip('.')})") from error


def _arrow_kind(kind: Any) -> str:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _arrow_kind(kind.value_type)
    if types.is_null(kind):
        return "text"
    if types.is_boolean(kind):
        return "bool"
    if types.is_integer(kind):
        return "int" if not types.is_uint64(kind) else "json"
    if types.is_floating(kind):
        return "float"
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    is_text = any(is_it(kind) for is_it in (*texts, types.is_binary_view, types.is_fixed_size_binary))
    return "text" if is_text or types.is_temporal(kind) or types.is_decimal(kind) else "json"


def _plain_row(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    """The nearest JSON value: no not-a-number, dates and decimals as text, bytes as base64."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return _plain_row(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
