"""Compressed table files: what can be read by its ending, and a damaged one named as such."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from jobs.errors import InputError

__all__ = ["COMPRESSIONS", "clear_damage", "decompressed"]


def _zstd(file: IO[bytes]) -> Any:
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd"))


COMPRESSIONS: dict[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstd,
}
"""Ending of a file's name -> what reads such a file, from start to end."""


@contextlib.contextmanager
def decompressed(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """The content of an open file, decompressed where the ending of its name says so."""
    reader = next((reader for ending, reader in COMPRESSIONS.items() if name.lower().endswith(ending)), None)
    if reader is None:
        yield file
        return
    with reader(file) as plain:
        yield plain


@contextlib.contextmanager
def clear_damage(name: str) -> Iterator[None]:
    """Turn what the decompressors raise in the block into an InputError; the message lacks the file's name.

    What they say of a file that ends early is an EOFError, which would pass for the end of the user's own input.
    """
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"is damaged or cut short ({_words(error)}); compress or copy it again") from error
    except OSError as error:
        # Errors of the disk or the store carry a number or a name.
        if type(error) not in (OSError, gzip.BadGzipFile) or error.errno is not None or not _is_compressed(name):
            raise
        raise InputError(f"is damaged, or not compressed as its name says ({_words(error)}); compress it again") from error


def _is_compressed(name: str) -> bool:
    return name.lower().endswith(tuple(COMPRESSIONS))


def _words(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
