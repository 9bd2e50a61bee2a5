"""A prior read to its last byte before a job for it is queued, in a process of its own, whose memory goes with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from pathlib import Path

from jobs.errors import InputError
from orchestrator.prior.source import check_prior, refusal

__all__ = ["PriorCheck"]

_State = tuple[tuple[str, int, int], ...]

PATIENCE_SECONDS = 280.0
"""A check that takes longer, as of a disk that is busy, is left to the job."""


class PriorCheck:
    """Refuses priors that could not be loaded. One is read in full when it is first named, and when its files have changed.

    Safe to be called from several threads: whoever names a prior that is being read waits for the answer.
    """

    def __init__(self) -> None:
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._known: dict[str, tuple[_State, str]] = {}

    def __call__(self, source: str) -> None:
        """Check a prior: its name, its files' headers and, but for the toybox, every tensor's name, shape and numbers.

        What is not on this machine, as a name on the hub that was never loaded, and what does not fit into the free memory, is
        left to the job.

        Raises:
            InputError: it is missing, damaged, or of another kind; `may_pass` where its disk did not answer.
        """
        check_prior(source)
        with self._locks[source]:
            if (state := _state(source)) is None or source == "toybox":
                return
            before, fault = self._known.get(source, (None, ""))
            if before != state:
                fault = _read_elsewhere(source) if _fits(source) else ""
                self._known[source] = state, fault
            if fault:
                raise InputError(fault)


def _state(source: str) -> _State | None:
    """Name, size and time of each of the prior's files; None where they are not here. Raises InputError."""
    from diffusion.checkpoints.errors import PriorError, not_read
    from diffusion.checkpoints.source import HubName, Source, resolve
    from diffusion.checkpoints.weights import Weights

    try:
        resolved = [resolve(place) for place in Source.parse(source).locations]
        if any(isinstance(place, HubName) for place in resolved):
            return None
        files = [file for place in resolved if isinstance(place, Path) for file in _files(place)]
        state = tuple((str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files)
        if source == "toybox":  # it came with this program: whether its files are whole is enough
            Weights([file for file in files if file.suffix == ".safetensors"])
    except PriorError as error:
        raise refusal(error) from error
    except OSError as error:
        raise refusal(not_read(error.filename or source, error)) from error
    return state


def _files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]


def _fits(source: str) -> bool:
    """Whether there is memory for the weights, beside what runs."""
    import psutil

    from diffusion.checkpoints.errors import PriorError
    from diffusion.checkpoints.footprint import footprint

    try:
        return footprint(source).weights * 2 < psutil.virtual_memory().available
    except PriorError:  # a pickle, or a file that the reading itself will name
        return True


def _read_elsewhere(source: str) -> str:
    """What the other process found wrong; "" for nothing. Raises InputError where its disk did not answer."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "orchestrator.prior.opening", source],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, OSError, ValueError, IndexError):  # killed for its memory, perhaps
        return ""
    if found["may_pass"]:
        error = InputError(found["error"])
        error.may_pass = True
        raise error
    return str(found["error"])


def main() -> None:
    """Read the prior that is named on the command line; what is wrong with it goes to stdout as a line of JSON."""
    from orchestrator.prior.local import load_prior

    found = {"error": "", "may_pass": False}
    try:
        load_prior(sys.argv[1])
    except InputError as error:
        found = {"error": str(error), "may_pass": error.may_pass}
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
