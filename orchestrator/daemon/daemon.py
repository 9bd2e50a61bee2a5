"""The orchestrator's process, from its start to its end.

    echo '{"state": "…", …}' | python -m orchestrator.daemon.daemon

`dreamkiln up` starts it so, because everybody may read a command line, and the ledger's URL may hold a password;
`dreamkiln up --foreground` calls `serve` in its own process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import Any

from jobs import codec
from jobs.errors import DreamKilnError
from jobs.ledger import Ledger, LedgerError, OwnershipError
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.options import DaemonOptions
from orchestrator.daemon.orphans import end_orphans, mark_descendants
from orchestrator.daemon.reports import Workers
from orchestrator.daemon.running import Timing
from orchestrator.host.state_folder import Endpoint, StateFolder
from orchestrator.metrics.meters import QueueMeter

__all__ = ["DaemonOptions", "main", "serve"]

log = logging.getLogger("dreamkiln")
ROUND_SECONDS = 0.2
CLOSING_SECONDS = 5.0
METRICS_SECONDS = 5.0
MAX_LOG_BYTES = 10_000_000


MakeWorkers = Callable[[DaemonOptions, Callable[[], float]], AbstractContextManager[Workers]]


def ray_workers(options: DaemonOptions, clock: Callable[[], float]) -> AbstractContextManager[Workers]:
    """Workers on Ray, not yet started."""
    from orchestrator.daemon.ray_workers import RayWorkers

    return RayWorkers(options, clock=clock)


def serve(options: DaemonOptions, *, make_workers: MakeWorkers = ray_workers, timing: Timing | None = None) -> None:
    """Run until SIGTERM, SIGINT or POST /v1/shutdown; then let workers stop at a step, and end.

    Raises:
        OwnershipError: another orchestrator owns the ledger.
        OutputError: another one has this folder.
        InputError: the ledger or the folder cannot be used.
    """
    from orchestrator.daemon.http.routes import make_app
    from orchestrator.daemon.http.server import ApiServer
    from orchestrator.daemon.http.tokens import TokenBook

    folder = StateFolder(Path(options.state))
    folder.create()
    url = options.ledger or folder.default_ledger
    name = f"process {os.getpid()} on {socket.gethostname()}"
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger.own(url, name=name))
        stack.enter_context(folder.held())
        if num_orphans := end_orphans(folder):
            log.info("ended %d processes that an earlier orchestrator had left", num_orphans)
        mark_descendants(folder)
        workers = stack.enter_context(make_workers(options, ledger.now))
        controller = Controller(
            ledger,
            workers,
            workers.capacity,
            folder,
            timing=timing,
            prior_replicas=options.prior_replicas,
            keep_seconds=options.keep_days * 24 * 3600,
            max_running=TokenBook(folder).max_running,
        )
        stop = _StopSignal(controller)
        app = make_app(ledger, controller, folder, stop.set, options=options)
        server = ApiServer(app, host=options.host, port=options.port)
        server.start()
        folder.announce(Endpoint(url=server.url, pid=os.getpid(), ledger=ledger.where))
        log.info("listening on %s, ledger %s, %d workers", server.url, ledger.where, workers.capacity.num_workers)
        try:
            _run(controller, stop, _Metrics(ledger, controller))
        finally:
            folder.withdraw()
            server.stop()
            controller.kill_all()
        log.info("ended")


class _Metrics:
    """What Prometheus is told of the queue, now and then."""

    def __init__(self, ledger: Ledger, controller: Controller) -> None:
        self._ledger, self._controller = ledger, controller
        self._meter, self._next_at = QueueMeter(), 0.0

    def update(self) -> None:
        """Raises LedgerError."""
        if (now := time.monotonic()) >= self._next_at:
            self._next_at = now + METRICS_SECONDS
            self._meter.update(self._ledger.jobs.counts(), longest_wait_seconds=self._controller.longest_wait_seconds)


def _run(controller: Controller, stop: _StopSignal, metrics: _Metrics) -> None:
    """Rounds until told to stop, then a few more for the workers to stop."""
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
            metrics.update()
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


class _PrivateLog(RotatingFileHandler):
    """The daemon's log, readable by its owner alone also when it begins anew."""

    def _open(self) -> Any:
        StateFolder.touch_private(Path(self.baseFilename))
        return super()._open()


def main() -> int:
    """The background process: options come over stdin, words go to its log, its last error to stderr as a JSON line."""
    options = codec.from_plain(DaemonOptions, json.load(sys.stdin))
    folder = StateFolder(Path(options.state))
    try:
        folder.create()
        handlers = [_PrivateLog(folder.daemon_log, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")]
        logging.basicConfig(handlers=handlers, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
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
