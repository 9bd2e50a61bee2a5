"""Which kind of failure an exception is. To be asked where it was raised: its causes do not travel between processes."""

from __future__ import annotations

import errno

from jobs.errors import CollapsedError, DreamKilnError, InputError, OutputError, PriorFailed
from jobs.states import FailureKind

__all__ = ["failure_kind", "sentence"]

_OUT_OF_MEMORY = {"MemoryError", "OutOfMemoryError"}  # Python's, torch's and Ray's
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def failure_kind(error: BaseException) -> FailureKind:
    """The kind, from the exception and what caused it."""
    chain = list(_chain(error))
    if any(isinstance(link, OSError) and link.errno in _NO_SPACE for link in chain):
        return FailureKind.DISK_FULL
    if any(isinstance(link, OutputError) and link.is_disk_full for link in chain):
        return FailureKind.DISK_FULL
    if any(_OUT_OF_MEMORY & {cls.__name__ for cls in type(link).__mro__} for link in chain):
        return FailureKind.OUT_OF_MEMORY
    match error:
        case OutputError(is_in_use=True):
            return FailureKind.PLACE_IN_USE
        case InputError(may_pass=True):
            return FailureKind.UNEXPECTED
        case InputError():
            return FailureKind.BAD_INPUT
        case CollapsedError():
            return FailureKind.COLLAPSED
        case PriorFailed():
            return FailureKind.PRIOR_DIED
        case _:
            return FailureKind.UNEXPECTED


def sentence(error: BaseException) -> str:
    """One line for the user."""
    text = " ".join(str(error).split())
    if isinstance(error, DreamKilnError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _chain(error: BaseException | None):
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
