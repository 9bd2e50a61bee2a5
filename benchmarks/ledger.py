"""The ledger under a million-row image job, beside ten thousand others: bytes on the disk and milliseconds to answer.

    python -m benchmarks.ledger [URL]
    python -m benchmarks.ledger --scale 1000 100000
    python -m benchmarks.ledger --pages 30000

With --scale: milliseconds of processor time to list, search and count among so many jobs, and of a round of the controller,
with their ratios, into benchmarks/results/ledger_scale.json; exit code 1 where one is above 3. A SQLite file in a temporary
folder unless a URL is given (of an empty database; it stays filled).

With --pages: megabytes of a daemon's process after its start, and after each of five readings of so many paused jobs, page by
page over HTTP; exit code 1 where the last three readings add more than 3 %.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe_machine
from benchmarks.queue import SleepingWorkers, orchestrator
from jobs.ledger import Ledger, ShardRecord, Submission
from jobs.states import State
from orchestrator.daemon.controller import Controller
from orchestrator.daemon.http.calls import Calls
from orchestrator.daemon.http.tokens import TokenBook
from orchestrator.daemon.options import DaemonOptions
from orchestrator.host.state_folder import StateFolder
from orchestrator.scheduling import Capacity

RESULTS = Path(__file__).parent / "results" / "ledger_scale.json"
MOST = 3.0
"""Times that a call may cost more among many jobs."""
NUM_ROWS = 1_000_000
SHARD_SIZE = 100
NUM_OTHERS = 10_000
USERS = ("ada", "bob", "cem", "dora", "eva")


def main(arguments: list[str] | None = None) -> int:
    """Fill a ledger, then ask it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--num-rows", type=int, default=NUM_ROWS)
    parser.add_argument("--scale", type=int, nargs=2, metavar=("FEW", "MANY"))
    parser.add_argument("--pages", type=int, metavar="JOBS")
    options = parser.parse_args(arguments)
    if options.pages:
        report = {"machine": describe_machine(), **pages(options.pages)}
        RESULTS.with_name("ledger_pages.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(report, indent=2))
        return int(report["megabytes"][-1] > 1.03 * report["megabytes"][2])
    if options.scale:
        few, many = options.scale
        report = {"machine": describe_machine(), "few": few, "many": many, "milliseconds": scale(few, many)}
        RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(report, indent=2))
        return int(any(row["ratio"] > MOST for costs in report["milliseconds"].values() for row in costs.values()))
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{folder}/ledger.db"
        report = measure(url, num_rows=options.num_rows)
        if url.startswith("sqlite"):
            report["megabytes"] = round(sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6, 2)
    print(json.dumps({"machine": describe_machine(), **report}, indent=2))
    return 0


def measure(url: str, *, num_rows: int, num_others: int = NUM_OTHERS, shard_size: int = SHARD_SIZE) -> dict[str, Any]:
    """Seconds to fill it and, of 50 calls each, the median and the slowest in milliseconds."""
    seconds: dict[str, float] = {}
    with Ledger.own(url) as ledger:
        begin = time.perf_counter()
        for start in range(0, num_others, 1000):
            ledger.jobs.submit([_submission(number, "text-to-3d") for number in range(start, min(start + 1000, num_others))])
        seconds["submit the others"] = time.perf_counter() - begin
        begin = time.perf_counter()
        (submitted,) = ledger.jobs.submit([_submission(num_others, "batch-images")])
        seconds["submit the large one"] = time.perf_counter() - begin
        job, num_shards = submitted.id, -(-num_rows // shard_size)
        lease = ledger.attempts.start(job, "benchmark", seconds=3600)
        begin = time.perf_counter()
        one_by_one = min(1000, num_shards // 2)
        for index in range(one_by_one):
            ledger.shards.record(lease, [_shard(index, shard_size)])
        seconds["note a shard"] = (time.perf_counter() - begin) / one_by_one
        begin = time.perf_counter()
        ledger.shards.record(lease, [_shard(index, shard_size) for index in range(one_by_one, num_shards)])
        seconds["note all others at once"] = time.perf_counter() - begin
        calls: dict[str, Callable[[], object]] = {
            "status of the large job": lambda: (ledger.jobs.get(job), ledger.shards.summary(job)),
            "all states counted": ledger.jobs.counts,
            "newest 50 jobs": lambda: ledger.jobs.recent(limit=50),
            "running jobs": lambda: ledger.jobs.recent(states=[State.RUNNING]),
            "what the scheduler reads": ledger.jobs.waiting,
        }
        times = {name: _milliseconds(call) for name, call in calls.items()}
    return {
        "num_rows": num_rows,
        "num_shards": num_shards,
        "num_other_jobs": num_others,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "milliseconds": times,
    }


def scale(few: int, many: int) -> dict[str, dict[str, dict[str, float]]]:
    """What a list, a search, a count or a round of the controller costs among few and among many jobs, and their ratio.

    Twice: all of them queued; and as after a week, most of them ended, some of them queued, paused or failed.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for num in (few, many):
        for name, prepare in (("queued", None), ("of every state", _age)):
            with tempfile.TemporaryDirectory() as folder:
                state = StateFolder(Path(folder) / "state")
                state.create()
                with Ledger.own(state.default_ledger) as ledger:
                    for start in range(0, num, 1000):
                        ledger.jobs.submit([_submission(n, "text-to-3d") for n in range(start, min(start + 1000, num))])
                if prepare is not None:
                    prepare(Path(folder) / "state" / "ledger.db", num)
                for call, milliseconds in _costs(state, num).items():
                    found.setdefault(name, {}).setdefault(call, []).append(milliseconds)
    return {
        name: {
            call: {"few": round(one, 2), "many": round(other, 2), "ratio": round(other / one, 1)}
            for call, (one, other) in costs.items()
        }
        for name, costs in found.items()
    }


def pages(num: int, *, num_readings: int = 5) -> dict[str, Any]:
    """The memory of a daemon that tells of so many paused jobs, a thousand at a time, and seconds of each reading."""
    with tempfile.TemporaryDirectory() as folder:
        state = StateFolder(Path(folder) / "state")
        state.create()
        with Ledger.own(state.default_ledger) as ledger:
            for start in range(0, num, 1000):
                numbers = range(start, min(start + 1000, num))
                ledger.jobs.submit([dataclasses.replace(_submission(n, "text-to-3d"), is_paused=True) for n in numbers])
        with orchestrator(state.path, ledger=None, num_workers=2, seconds=1.0) as client:
            daemon = psutil.Process(client.endpoint.pid)
            megabytes, seconds = [round(daemon.memory_info().rss / 1e6, 1)], list[float]()
            for _ in range(num_readings):
                begin, before, found = time.perf_counter(), None, 0
                while True:
                    page = client.get("/v1/jobs", state=["paused"], limit=1000, before=before)
                    found, before = found + len(page["jobs"]), page["cursor"]
                    if before is None:
                        break
                assert found == num
                seconds.append(round(time.perf_counter() - begin, 2))
                megabytes.append(round(daemon.memory_info().rss / 1e6, 1))
    return {"jobs": num, "megabytes": megabytes, "seconds": seconds}


def _costs(state: StateFolder, num: int) -> dict[str, float]:
    """Milliseconds of processor time of everything that lists ask, and of a round with every worker busy."""
    capacity = Capacity(num_workers=10, memory_bytes=10**15)
    with Ledger.own(state.default_ledger) as ledger:
        jobs = ledger.jobs
        controller = Controller(ledger, SleepingWorkers(1e9, capacity), capacity, state)
        calls = Calls(
            ledger, controller, state, lambda: None, options=DaemonOptions(state=str(state.path)), book=TokenBook(state)
        )
        controller.tick(is_woken=True)
        asked: dict[str, Callable[[], object]] = {
            "newest 100": lambda: calls.recent(limit=100),
            "100 from the middle": lambda: calls.recent(limit=100, before=num // 2),
            "open jobs": lambda: calls.recent(state=["queued", "running", "paused", "lost"], limit=100),
            "queued": lambda: calls.recent(state=["queued"], limit=100),
            "running": lambda: calls.recent(state=["running"], limit=100),
            "succeeded": lambda: calls.recent(state=["succeeded"], limit=48),
            "succeeded, of a kind": lambda: calls.recent(state=["succeeded"], kind="text-to-3d", limit=50),
            "of a kind that there is not": lambda: calls.recent(kind="images", limit=100),
            "of a user": lambda: calls.recent(user=USERS[0], limit=100),
            "a user's failed": lambda: calls.recent(user=USERS[4], state=["failed"], limit=100),
            "a user's of a kind that there is not": lambda: calls.recent(user=USERS[0], kind="images", limit=100),
            "of a spec": lambda: calls.recent(fingerprint="f" * 64, limit=100),
            "search, found often": lambda: calls.recent(q="red table", limit=100),
            "search, found nowhere": lambda: calls.recent(q="elephant", limit=100),
            "search among succeeded": lambda: calls.recent(q="red table", state=["succeeded"], limit=48),
            "show one": lambda: calls.show(num // 2),
            "status": calls.status,
            "system": calls.system,
            "a user's quota": lambda: jobs.num_live(USERS[0]),
            "events since": lambda: jobs.events(after_id=10**12),
            "what moves": jobs.at_work,
            "a round of the controller": lambda: controller.tick(is_woken=True),
        }
        return {name: _processor_milliseconds(call) for name, call in asked.items()}


def _age(path: Path, num: int) -> None:
    """Give the jobs of a closed ledger a past: of twenty 15 succeeded, one failed, one is paused, three are queued."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "UPDATE jobs SET num_attempts = 1, fence = 1, started_at = created_at - 7e5 + id * 6e5 / ?, "
            "ended_at = created_at - 7e5 + id * 6e5 / ? + 60, seconds_run = 60, "
            "state = CASE WHEN id % 20 < 15 THEN 'succeeded' ELSE 'failed' END WHERE id % 20 < 16",
            (num, num),
        )
        database.execute("UPDATE jobs SET state = 'paused' WHERE id % 20 = 16")
        database.execute(
            "INSERT INTO attempts (job_id, fence, holder, outcome, failure_kind, reason, started_at, ended_at) "
            "SELECT id, 1, 'a worker', state, CASE state WHEN 'failed' THEN 'collapsed' END, '', started_at, ended_at "
            "FROM jobs WHERE id % 20 < 16"
        )


def _processor_milliseconds(call: Callable[[], object], *, num: int = 15) -> float:
    """The median; of this process, so that what else the machine does counts little."""
    times = []
    for _ in range(num):
        begin = time.process_time()
        call()
        times.append((time.process_time() - begin) * 1000)
    return max(0.01, statistics.median(times))


def _submission(number: int, kind: str) -> Submission:
    spec = {"kind": kind, "prompt": f"a red table number {number}", "seed": number, "settings": "x" * 1000}
    return Submission(
        kind=kind,
        spec=spec,
        name=f"a-red-table-number-{number}",
        fingerprint=f"{number:064x}",
        out=f"/runs/a-red-table-number-{number}",
        user=USERS[number % len(USERS)],
        priority=number // len(USERS) % 4,
    )


def _shard(index: int, num_rows: int) -> ShardRecord:
    worker = f"process {4000 + index % 8} on a-machine"
    return ShardRecord(index=index, num_rows=num_rows, num_failed=index % 3, seconds=1.0, worker=worker, num_attempts=1)


def _milliseconds(call: Callable[[], object], *, num: int = 50) -> dict[str, float]:
    times = []
    for _ in range(num):
        begin = time.perf_counter()
        call()
        times.append((time.perf_counter() - begin) * 1000)
    return {"median": round(statistics.median(times), 2), "slowest": round(max(times), 2)}


if __name__ == "__main__":
    sys.exit(main())
