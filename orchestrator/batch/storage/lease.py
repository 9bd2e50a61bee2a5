"""A hold on a place that has no locks: an object that says who writes there, and is renewed as long as that is true.

Clocks of two machines are never compared. A waiting process watches the object: if it does not change for longer than
its holder would need to renew it, the holder is gone. Nothing makes reading and writing it one step, so whoever has
written it reads it again a moment later, before each renewal and before each commit: of two that took it at once, or of a
holder that slept and the one that took over, the last to write goes on and the other one stops. What the two have drawn until
then has the same bytes, because what a shard holds follows from the job alone.
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


__all__ = ["LEASE", "Lease", "require_lease"]

LEASE = "_lease.json"


class Lease:
    """A context manager, which gives the holder's token.

    Args:
        every_seconds: between two renewals. patience: renewals that may be missed.
        settle_seconds: after taking the place, before looking whether another one did so at the same time.
    """

    def __init__(
        self,
        store: _Place,
        *,
        every_seconds: float = 10.0,
        patience: float = 3.0,
        settle_seconds: float = 0.3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._every = every_seconds
        self._patience = patience
        self._settle = settle_seconds
        self._sleep = sleep
        self._token = secrets.token_hex(8)
        self._ended = threading.Event()
        self._count = 0

    def __enter__(self) -> str:
        self._wait_for_holder()
        self._renew()
        self._ended.wait(self._settle)
        require_lease(self._store, self._token)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self._token

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OutputError):
            if (_read(self._store) or {}).get("token") == self._token:
                self._store.remove([LEASE])

    def _wait_for_holder(self) -> None:
        """Return once nobody holds the place.

        Raises:
            OutputError: the holder showed life, and did not end while a dead one would have been waited for.
        """
        found = _read(self._store)
        if found is None or _is_dead(found):
            return
        steps = max(1, round(self._patience * 4))
        is_alive = False
        for _ in range(steps):
            self._sleep(self._every / 4)
            now = _read(self._store)
            if now is None or _is_dead(now):
                return
            is_alive = is_alive or now != found
            found = now
        if is_alive:
            raise _in_use(self._store, found)

    def _keep(self) -> None:
        """Renew until the end, or until another one has taken over."""
        while not self._ended.wait(self._every):
            with contextlib.suppress(OutputError):
                if (_read(self._store) or {}).get("token", self._token) != self._token:
                    return
                self._renew()

    def _renew(self) -> None:
        self._count += 1
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "token": self._token, "renewed": self._count}
        self._store.put({LEASE: json.dumps(holder).encode()})


def require_lease(store: _Place, token: str) -> None:
    """Raises OutputError where another one holds the place by now."""
    found = _read(store)
    if found is not None and found.get("token") != token:
        raise _in_use(store, found)


def _read(store: _Place) -> dict[str, Any] | None:
    try:
        with store.open(LEASE) as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _in_use(store: _Place, holder: dict[str, Any]) -> OutputError:
    refusal = OutputError(
        f"{store.location} is in use by another dreamkiln process (pid {holder.get('pid')} on {holder.get('host')}); wait for "
        "it, or choose another --out."
    )
    refusal.is_in_use = True
    return refusal


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
