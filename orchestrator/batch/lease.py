"""A hold on a place that has no locks: an object that says who writes there, and is renewed as long as that is true.

Clocks of two machines are never compared. A waiting process watches the object: if it does not change for longer than
its holder would need to renew it, the holder is gone. Should a holder come back from a longer sleep, both write the same
bytes, because what a shard holds follows from the job alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from jobs.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Protocol

    class _Place(Protocol):
        location: str

        def put(self, files: Mapping[str, bytes]) -> None: ...
        def open(self, name: str) -> IO[bytes]: ...
        def remove(self, names: Iterable[str]) -> None: ...


__all__ = ["LEASE", "Lease"]

LEASE = "_lease.json"


class Lease:
    """A context manager.

    Args:
        every_seconds: between two renewals. patience: renewals that may be missed.
    """

    def __init__(
        self,
        store: _Place,
        *,
        every_seconds: float = 10.0,
        patience: float = 3.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._every = every_seconds
        self._patience = patience
        self._sleep = sleep
        self._me = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}
        self._ended = threading.Event()
        self._count = 0

    def __enter__(self) -> None:
        self._wait_for_holder()
        self._renew()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OutputError):
            if (self._read() or {}).get("token") == self._me["token"]:
                self._store.remove([LEASE])

    def _wait_for_holder(self) -> None:
        """Return once nobody holds the place. Raises OutputError where the holder shows life."""
        found = self._read()
        if found is None or _is_dead(found):
            return
        steps = max(1, round(self._patience * 4))
        for _ in range(steps):
            self._sleep(self._every / 4)
            now = self._read()
            if now is None:
                return
            if now != found:
                raise OutputError(
                    f"{self._store.location} is in use by another dreamkiln process (pid {now.get('pid')} on "
                    f"{now.get('host')}); wait for it, or choose another --out."
                )

    def _keep(self) -> None:
        while not self._ended.wait(self._every):
            with contextlib.suppress(OutputError):
                self._renew()

    def _renew(self) -> None:
        self._count += 1
        self._store.put({LEASE: json.dumps({**self._me, "renewed": self._count}).encode()})

    def _read(self) -> dict[str, Any] | None:
        try:
            with self._store.open(LEASE) as file:
                found = json.loads(file.read())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """The holder was a process of this machine that is no more."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
