"""What a Ray process said before it died, in one line and without a terminal's escape codes."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

__all__ = ["last_words"]

ESCAPE_CODES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
PID = re.compile(r"\bpid[:=] ?(\d+)")
MAX_CHARACTERS = 300


def last_words(error: BaseException) -> str:
    """The error that ended an actor's process; "" where it left none, as after a kill.

    Ray's own message holds the traceback of a class that could not be made, and says of other deaths no more than that a
    connection was lost; then the process's own log is read, where it is on this machine.
    """
    text = ESCAPE_CODES.sub("", str(error))
    if "creation task" in text or "Traceback" in text:
        return _last_line(text)
    pid = PID.search(text)
    return _last_line(_stderr_of(int(pid.group(1)))) if pid else ""


def _stderr_of(pid: int) -> str:
    """What a worker of this machine's Ray wrote to its standard error; "" where that cannot be found."""
    with contextlib.suppress(Exception):
        from ray._private import worker

        node: Any = worker._global_node
        logs = Path(node.get_logs_dir_path())
        for path in logs.glob(f"worker-*-{pid}.err"):
            return ESCAPE_CODES.sub("", path.read_text(errors="replace"))
    return ""


def _last_line(text: str) -> str:
    """The last line that says something: not a name of Ray's, and not a frame of a traceback."""
    lines = (line.strip() for line in text.splitlines() if not line.startswith((" ", "\t", ":")))
    said = [line for line in lines if line and not line.startswith(("Traceback", "*** SIG", "[20", "Fatal Python"))]
    line = said[-1] if said else ""
    return line if len(line) <= MAX_CHARACTERS else f"{line[:MAX_CHARACTERS]}…"
