"""Files appear whole or not at all, and a disk that says no gives one clear sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from jobs.errors import OutputError

TEMPORARY_PREFIX = ".writing-"

_LASTING = {
    errno.ENOSPC: ("the disk is full", "free some space or choose another --out"),
    errno.EDQUOT: ("the disk quota is used up", "free some space or choose another --out"),
    errno.EACCES: ("you may not write there", "change its permissions or choose another --out"),
    errno.EPERM: ("you may not write there", "change its permissions or choose another --out"),
    errno.EROFS: ("the file system is read-only", "choose another --out"),
    errno.ENOENT: ("the folder does not exist", "create it or choose another --out"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", "choose another --out"),
    errno.EEXIST: ("a file of that name is in the way", "choose another --out"),
    errno.EISDIR: ("a folder of that name is in the way", "remove it or choose another --out"),
    errno.ENAMETOOLONG: ("the name is too long", "choose a shorter --out"),
}


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, that becomes `path` when the block ends well.

    The bytes are flushed to the disk before the rename, so after a crash `path` holds the old or the new content, never
    a part. After an exception nothing is left. What a killed process leaves starts with TEMPORARY_PREFIX and may be
    deleted.

    Raises OutputError when the place cannot be written: full disk, no permission, missing folder.
    """
    path = Path(path)
    # The target's own name is cut short so that the temporary name stays under the usual limit of 255 bytes.
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(6)}{path.suffix[:16]}")
    try:
        with clear_output_errors(path):
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            yield temporary
            temporary.chmod(mode)  # safetensors leaves files that only their owner may read
            _flush(temporary)
            os.replace(temporary, path)
            _flush(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def clear_output_errors(path: str | os.PathLike[str], *, option: str = "--out") -> Iterator[None]:
    """Turn an OSError of the block into an OutputError that names `path`, the reason and the fix.

    option: of the command line, that says where to write.
    """
    try:
        yield
    except OSError as error:
        reason, fix = _LASTING.get(error.errno or 0, (error.strerror or str(error), "choose another --out"))
        message = f"{os.fspath(path)} could not be written: {reason}; {fix.replace('--out', option)}."
        raise output_error(message, error) from error


def output_error(message: str, cause: Exception) -> OutputError:
    """An OutputError that knows whether its cause may pass.

    A shared disk that does not answer (EIO, ESTALE) comes back, while a missing right or a damaged file stays.
    """
    error = OutputError(message)
    if isinstance(cause, OSError):
        error.is_disk_full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        error.may_pass = cause.errno not in _LASTING
    return error


def remove_half_written(folder: Path) -> None:
    """Delete what killed processes left half-written directly in a folder; only for who holds it."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write a whole file atomically; see `atomic_path` for what is raised. Returns the path."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a whole UTF-8 file atomically, with newlines as they are given; see `atomic_path`. Returns the path."""
    return write_bytes(path, text.encode("utf-8"))


def _flush(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        if path.is_dir():
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # some file systems flush no folders
            raise
    finally:
        os.close(handle)
