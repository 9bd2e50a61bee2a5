"""Where the command begins: Ctrl-C while something is being imported ends it at once and in silence.

An interrupt in the middle of an import surfaces as whatever the imported library makes of it, and nothing that could need
saving is under way then.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

__all__ = ["main"]

INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a parent may have made us ignore it
    if is_ours:
        signal.signal(signal.SIGINT, _interrupt)
    from orchestrator.cli.main import main as command

    code = command()
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is left is Python's own end
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End as Python does, but for taking every module apart: with torch that takes seconds, after the last word was said."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
