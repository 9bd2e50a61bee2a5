"""csv and tsv record by record, so that a stray quote costs the line it stands in and renumbers nothing after it.

A quote that is never closed properly would otherwise swallow every line up to the next quote, or the rest of the file. Here
its own line is the record that fails, and the lines after it are read as records of their own.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from jobs.errors import InputError

__all__ = ["CsvRecord", "CsvRecords"]

MAX_RECORD_CHARACTERS = 1024**2
MAX_RECORD_LINES = 1000
DELIMITERS = (",", ";", "\t")

csv.field_size_limit(MAX_RECORD_CHARACTERS)  # the standard library's own is an eighth of that


@dataclass(frozen=True, slots=True)
class CsvRecord:
    """The cells of a record that begins in line `line`, or the words why it cannot be read."""

    line: int
    cells: list[str]
    problem: str | None = None


class CsvRecords:
    """The records of an open text file below its header, blank lines left out.

    Args:
        text: opened with newline="". wanted: a column that the header should have; the delimiter is the one that makes it a
            column, and a comma where none does.

    Raises:
        InputError: there is no header, or it is no UTF-8 text; the message lacks the file's name.
    """

    def __init__(self, text: IO[str], wanted: str) -> None:
        self._text = text
        self._num_read = 0
        self._waiting: deque[tuple[int, str]] = deque()
        self._suspicious_until = 0
        self.header = self._read_header(wanted)

    def __iter__(self) -> Iterator[CsvRecord]:
        while True:
            taken, record = self._next(self._delimiter)
            if not taken:
                return
            if record.problem is None and not record.cells:
                continue
            yield self._checked(taken, record)

    def _checked(self, taken: list[tuple[int, str]], record: CsvRecord) -> CsvRecord:
        """The record, or the failure of its first line; then the others are put back, to be read by themselves."""
        problem = record.problem
        if problem is None and len(record.cells) != len(self.header):
            problem = f"the row has {len(record.cells)} cells, but the header has {len(self.header)}"
        if problem is None and taken[0][0] <= self._suspicious_until and taken[0][1].count('"') % 2:
            problem = "the line holds a quote without its partner, after a cell that was never closed"
        if problem is None:
            return record
        if len(taken) > 1:
            first, last = taken[0][0], taken[-1][0]
            problem = (
                f"a quote opens in this line and the cell does not end as it should by line {last:,} ({problem}); lines "
                f"{first + 1:,} to {last:,} are read as rows of their own"
            )
            self._suspicious_until = max(self._suspicious_until, last)
            self._waiting.extendleft(reversed(taken[1:]))
        return CsvRecord(record.line, [], problem)

    def _next(self, delimiter: str) -> tuple[list[tuple[int, str]], CsvRecord]:
        """The lines of the next record, none at the end, and what they hold."""
        taken: list[tuple[int, str]] = []
        lines = self._taking(taken)
        try:
            cells = next(csv.reader(lines, delimiter=delimiter, strict=True))
        except StopIteration:
            return taken, CsvRecord(0, [])
        except csv.Error as error:
            # A mark of incomplete input and "field larger than" are the module's own words.
            words = "the quote is not closed" if "unexpected end" in str(error) else str(error)
            return taken, CsvRecord(taken[0][0], [], words if len(taken) > 1 else f"the row cannot be read as csv ({words})")
        line, first = taken[0]
        if len(first) >= MAX_RECORD_CHARACTERS:
            return taken, CsvRecord(line, [], f"the line is longer than {MAX_RECORD_CHARACTERS:,} characters")
        if any(_is_no_utf8(cell) for cell in cells):
            return taken, CsvRecord(line, [], "the row is not UTF-8")
        return taken, CsvRecord(line, cells)

    def _taking(self, taken: list[tuple[int, str]]) -> Iterator[str]:
        """Lines as the csv module asks for them, noted in `taken`, up to the bounds of one record."""
        num_characters = 0
        while len(taken) < MAX_RECORD_LINES and num_characters < MAX_RECORD_CHARACTERS:
            line = self._waiting.popleft() if self._waiting else self._read_line()
            if line is None:
                return
            taken.append(line)
            num_characters += len(line[1])
            yield line[1]

    def _read_line(self) -> tuple[int, str] | None:
        line = self._text.readline(MAX_RECORD_CHARACTERS)
        if not line:
            return None
        self._num_read += 1
        rest = line
        while len(rest) == MAX_RECORD_CHARACTERS and not rest.endswith(("\n", "\r")):
            rest = self._text.readline(MAX_RECORD_CHARACTERS)
        return self._num_read, line

    def _read_header(self, wanted: str) -> list[str]:
        found: list[list[str]] = []
        for delimiter in DELIMITERS:
            taken, record = self._next(delimiter)
            if record.problem is not None:
                raise InputError("begins with a line that is not UTF-8 text; save the table as csv in UTF-8")
            header = [cell.strip() for cell in record.cells]
            if not any(header):
                raise InputError("is empty or begins with an empty line; give it a header line with the names of the columns")
            if any("\0" in cell for cell in header):
                raise InputError("begins with a line that is not UTF-8 text; save the table as csv in UTF-8")
            found.append(header)
            self._delimiter = delimiter
            if wanted in header:
                return header
            self._waiting.extendleft(reversed(taken))
        self._delimiter = DELIMITERS[0]
        self._next(self._delimiter)
        return found[0]


def _is_no_utf8(cell: str) -> bool:
    """Whether it holds bytes that were no UTF-8, which the file's error handler made lone surrogates of."""
    return not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell)
