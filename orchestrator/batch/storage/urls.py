"""Paths and URLs: what fsspec is asked, and what its errors mean to a user."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from jobs.errors import InputError, OutputError

__all__ = ["absolute", "clear_url_errors", "is_url", "join", "open_filesystem"]


def is_url(location: str) -> bool:
    """`s3://bucket/key` and the like; `file:///path` too."""
    return "://" in location


def absolute(location: str) -> str:
    """A full path, or the URL as it is."""
    return location if is_url(location) else os.path.abspath(location)


def join(folder: str, name: str) -> str:
    """The location of `name` in a folder or below a URL; an absolute path or a URL stays what it is."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def open_filesystem(location: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path or URL, and the path within it.

    Raises:
        InputError: a kind of URL that nobody knows, or one whose package is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(location, use_listings_cache=False)
    except ImportError as error:
        extra = "; pip install 'dreamkiln[s3]'" if location.startswith("s3") else ""
        raise InputError(f"{location} cannot be opened: {error}{extra}.") from error
    except ValueError as error:
        words = str(error).rstrip(".")
        raise InputError(f"{location} cannot be opened: {words}; give a path or a URL such as s3://bucket/key.") from error
    return filesystem, path


@contextlib.contextmanager
def clear_url_errors(sentence: str, kind: type[InputError] = InputError) -> Iterator[None]:
    """Turn what a filesystem raises in the block into an error that begins with `sentence`."""
    try:
        yield
    except FileNotFoundError as error:
        raise kind(f"{sentence}: it does not exist, or its bucket or folder does not.") from error
    except PermissionError as error:
        raise kind(f"{sentence}: permission was denied; check the credentials.") from error
    except OSError as error:
        raise _passing(kind(f"{sentence}: {error.strerror or _first_line(error)}.")) from error
    except Exception as error:
        # botocore's and aiohttp's errors (no credentials, no such host) are no OSErrors.
        if type(error).__module__.split(".")[0] not in ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "adlfs"):
            raise
        raise _passing(kind(f"{sentence}: {_first_line(error)}.")) from error


def _passing(error: InputError) -> InputError:
    """The same, marked as worth another try: a store that did not answer may do so later."""
    if isinstance(error, OutputError):
        error.may_pass = True
    return error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
