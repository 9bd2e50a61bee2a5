"""The orchestrator's process, from its start to its end.

    python -m orchestrator.daemon.daemon '{"state": "…", …}'

`dreamkiln up` starts it so; `dreamkiln up --foreground` calls `serve` in its own process.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from jobs import codec
from jobs.errors import DreamKilnError, InputError
from jobs.ledger import Ledger, LedgerError, OwnershipError
from orchestrator.daemon.controller import Controller, Timing
from orchestrator.daemon.reports import Workers
from orchestrator.daemon.state_folder import Endpoint, StateFolder
from orchestrator.scheduling import Capacity

__all__ = ["DaemonOptions", "main", "serve"]

log = logging.getLogger("dreamkiln")
ROUND_SECONDS = 0.2
CLOSING_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class DaemonOptions:
    """How an orchestrator runs.

    Args:
        state: its folder. ledger: URL of its database; a SQLite file in the folder by default.
        address: of a running Ray cluster; by default it starts a Ray of its own.
        num_workers: jobs at once; 0: one for every two cores, at least 2. memory_gb: for workers and priors; 0: 80 % of what
            this machine has.
        host, port: of its HTTP API; port 0 takes a free one.
        device, num_threads: of the priors, as in the runtime's settings.
    """

    state: str
    ledger: str | None = None
    address: str | None = None
    num_workers: int = 0
    memory_gb: float = 0.0
    host: str = "127.0.0.1"
    port: int = 0
    device: str = "auto"
    num_threads: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.num_workers <= 10_000:
            raise InputError(f"--num-workers is {self.num_workers}; give 1 to 10,000, or 0 to count the cores.")
        if not 0 <= self.memory_gb <= 1e6:
            raise InputError(f"--memory is {self.memory_gb:g}; give gigabytes, or 0 to take 80 % of this machine's.")
        if not 0 <= self.port < 65536:
            raise InputError(f"--port is {self.port}; give 1 to 65535, or 0 for a free one.")

    def capacity(self) -> Capacity:
        """With what was left open filled in."""
        from orchestrator.runtimes.threads import available_cores

        here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return Capacity(
            num_workers=self.num_workers or max(2, available_cores() // 2),
            memory_bytes=int(self.memory_gb * 1e9) or int(0.8 * here),
        )


MakeWorkers = Callable[[DaemonOptions, Capacity, Callable[[], float]], AbstractContextManager[Workers]]


def ray_workers(options: DaemonOptions, capacity: Capacity, clock: Callable[[], float]) -> AbstractContextManager[Workers]:
    """Workers on Ray, not yet started."""
    from orchestrator.daemon.ray_workers import RayWorkers

    return RayWorkers(
        num_workers=capacity.num_workers,
        clock=clock,
        address=options.address,
        device=options.device,
        num_threads=options.num_threads,
    )


def serve(options: DaemonOptions, *, make_workers: MakeWorkers = ray_workers, timing: Timing | None = None) -> None:
    """Run until SIGTERM, SIGINT or POST /v1/shutdown; then let workers stop at a step, and end.

    Raises:
        OwnershipError: another orchestrator owns the ledger.
        InputError: the ledger or the folder cannot be used.
    """
    from orchestrator.daemon.http_api import ApiServer, make_app

    folder = StateFolder(Path(options.state))
    folder.create()
    url = options.ledger or folder.default_ledger
    capacity = options.capacity()
    name = f"process {os.getpid()} on {socket.gethostname()}"
    with Ledger.own(url, name=name) as ledger, make_workers(options, capacity, ledger.now) as workers:
        controller = Controller(ledger, workers, capacity, folder, timing=timing)
        stop = _StopSignal(controller)
        server = ApiServer(make_app(ledger, controller, folder, stop.set), host=options.host, port=options.port)
        server.start()
        folder.announce(Endpoint(url=server.url, pid=os.getpid(), ledger=ledger.where))
        log.info("listening on %s, ledger %s, %d workers", server.url, ledger.where, capacity.num_workers)
        try:
            _run(controller, stop)
        finally:
            folder.withdraw()
            server.stop()
            controller.kill_all()
        log.info("ended")


def _run(controller: Controller, stop: _StopSignal) -> None:
    """Rounds until told to stop, then a few more for the workers to obey."""
    deadline: float | None = None
    while deadline is None or (controller.num_running and time.monotonic() < deadline):
        is_woken = controller.wake.wait(ROUND_SECONDS)
        controller.wake.clear()
        if stop.is_set and deadline is None:
            log.info("stopping; %d jobs are asked to stop at their next step", controller.num_running)
            deadline = time.monotonic() + CLOSING_SECONDS
            controller.close()
        try:
            controller.tick(is_woken=is_woken)
        except OwnershipError:
            log.exception("the ledger is lost")
            raise
        except LedgerError as error:
            log.warning("%s Trying again.", error)
            time.sleep(1.0)


class _StopSignal:
    """Set by SIGTERM, SIGINT or a request; wakes the loop."""

    def __init__(self, controller: Controller) -> None:
        self.is_set = False
        self._controller = controller
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def set(self) -> None:
        self.is_set = True
        self._controller.wake.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.set()


def main() -> int:
    """The background process: its words go to its log, its last error to stderr as one JSON line."""
    options = codec.from_plain(DaemonOptions, json.loads(sys.argv[1]))
    folder = StateFolder(Path(options.state))
    try:
        folder.create()
        logging.basicConfig(
            filename=folder.daemon_log, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
        )
        logging.captureWarnings(True)
        serve(options)
    except DreamKilnError as error:
        log.error("%s", error)
        print(json.dumps({"error": str(error), "exit_code": error.exit_code}), file=sys.stderr, flush=True)
        return error.exit_code
    except Exception:
        log.exception("ended by an error")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
