"""Something to read within a second, while a command imports what it needs. Light: it comes before everything else."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

__all__ = ["first_words", "say_no_first_words"]

FIRST_WORDS_SECONDS = 0.3
_timer: threading.Timer | None = None


@contextlib.contextmanager
def first_words(text: str) -> Iterator[None]:
    """In the block, say `text` on stderr soon, unless the block has ended or a display was made by then."""
    global _timer
    _timer = threading.Timer(FIRST_WORDS_SECONDS, lambda: print(text, file=sys.stderr, flush=True))
    _timer.daemon = True
    _timer.start()
    try:
        yield
    finally:
        say_no_first_words()


def say_no_first_words() -> None:
    """Others speak from here on."""
    global _timer
    if _timer is not None:
        _timer.cancel()
        _timer = None
