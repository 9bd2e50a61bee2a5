"""Paths and URLs: what fsspec is asked, and what its errors mean to a user."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from jobs.errors import InputError, OutputError

__all__ = ["absolute", "clear_url_errors", "is_url", "join", "open_filesystem"]


ANSWER_SECONDS = 25.0


def is_url(location: str) -> bool:
    """`s3://bucket/key` and the like; `file:///path` too."""
    return "://" in location


def absolute(location: str) -> str:
    """A full path, or the URL as it is."""
    return location if is_url(location) else os.path.abspath(os.path.expanduser(location))


def join(folder: str, name: str) -> str:
    """The location of `name` in a folder or below a URL; an absolute path or a URL stays what it is."""
    if is_url(name) or os.path.isabs(name):
        return name
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def open_filesystem(location: str) -> tuple[Any, str]:
    """The fsspec filesystem of a path or URL, and the path within it.

    Raises:
        InputError: a kind of URL that nobody knows, or one whose package is not installed.
        OutputError: a server that gave no answer within 25 s, or none at all; another try may help.
    """
    import fsspec
    from fsspec.core import url_to_fs
    from fsspec.implementations.local import LocalFileSystem

    if not is_url(location):
        return fsspec.filesystem("file"), absolute(location)  # fsspec would read a chain of URLs from a "::" in a path
    try:
        with clear_url_errors(f"{location} cannot be opened", OutputError):
            filesystem, path = url_to_fs(location, use_listings_cache=False)
    except ImportError as error:
        extra = "; pip install 'dreamkiln[s3]'" if location.startswith("s3") else ""
        raise InputError(f"{location} cannot be opened: {error}{extra}.") from error
    except ValueError as error:
        words = str(error).rstrip(".")
        raise InputError(f"{location} cannot be opened: {words}; give a path or a URL such as s3://bucket/key.") from error
    if not isinstance(filesystem, LocalFileSystem):
        _require_answer(filesystem, path, location)
    return filesystem, path


_answered: set[tuple[int, str]] = set()


def _require_answer(filesystem: Any, path: str, location: str) -> None:
    """Ask the server of a bucket once in a process whether it is there: the packages' own patience is many minutes."""
    bucket = path.lstrip("/").split("/")[0]
    if (id(filesystem), bucket) in _answered:
        return
    answers: list[bool] = []

    def ask() -> None:
        with contextlib.suppress(Exception):  # any answer will do: whoever asks next gets it too
            filesystem.exists(path)
        answers.append(True)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER_SECONDS)
    if not answers:
        error = OutputError(
            f"{location} cannot be opened: its server gave no answer within {ANSWER_SECONDS:g} s; check the address (for S3 "
            "AWS_ENDPOINT_URL) and the network."
        )
        raise _passing(error)
    _answered.add((id(filesystem), bucket))


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
    error.may_pass = True
    return error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
