"""The one error of reading checkpoints."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

JSON_VALUES = (dict, list, str, int, float, type(None))


class PriorError(ValueError):
    """A checkpoint is missing, incomplete, damaged or of another kind; the message names the file and the fix.

    may_pass: the same again may succeed, because a disk or a network did not answer.
    """

    may_pass: bool = False


_LASTING = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}


def not_read(path: object, error: OSError) -> PriorError:
    """The error of a file that the system did not let us read, which may pass unless it is missing or forbidden."""
    refusal = PriorError(f"{path} cannot be read ({error.strerror or error}); check its disk and its permissions")
    refusal.may_pass = error.errno is not None and error.errno not in _LASTING
    return refusal


@contextmanager
def making_sense_of(path: Path) -> Iterator[None]:
    """Turns what goes wrong with the contents of a file or a folder into a sentence that names it.

    An AttributeError or TypeError that no content of a file can cause, because it is about our own code, is left as it is.

    Raises:
        PriorError: a file or a field is missing, or holds what is not supported.
    """
    try:
        yield
    except PriorError:
        raise
    except FileNotFoundError as error:
        raise PriorError(f"the prior lacks {error.filename}; copy the folder again, with all its files") from None
    except KeyError as error:
        raise PriorError(f"{path} lacks the field {error}; copy it again") from None
    except ValueError as error:
        raise PriorError(f"{path}: {error}") from None
    except (AttributeError, TypeError) as error:
        if _is_ours(error):
            raise
        raise PriorError(f"{path} holds a value of another type than expected ({error}); copy it again") from None


def _is_ours(error: AttributeError | TypeError) -> bool:
    """Whether an attribute was missed on something that JSON does not hold, or a call did not fit its function."""
    if isinstance(error, AttributeError):
        return not isinstance(error.obj, JSON_VALUES)
    return any(words in str(error) for words in ("positional argument", "keyword argument", "arguments, got"))
