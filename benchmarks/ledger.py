"""The ledger under a million-row image job, beside ten thousand others: bytes on the disk and milliseconds to answer.

    python -m benchmarks.ledger [URL]
    python -m benchmarks.ledger --scale 1000 100000

With --scale: milliseconds of processor time to list, search and count among so many jobs, and their ratio. A SQLite file in a
temporary folder unless a URL is given (of an empty database; it stays filled).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from jobs.ledger import Ledger, ShardRecord, Submission
from jobs.states import State

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
    options = parser.parse_args(arguments)
    if options.scale:
        print(json.dumps({"machine": describe_machine(), "milliseconds": scale(*options.scale)}, indent=2))
        return 0
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


def scale(few: int, many: int) -> dict[str, dict[str, float]]:
    """What a list, a search or a count costs among few and among many queued jobs: the medians, and the second by the first."""
    found: dict[str, list[float]] = {}
    for num in (few, many):
        with tempfile.TemporaryDirectory() as folder, Ledger.own(f"sqlite:///{folder}/ledger.db") as ledger:
            for start in range(0, num, 1000):
                ledger.jobs.submit([_submission(number, "text-to-3d") for number in range(start, min(start + 1000, num))])
            jobs = ledger.jobs
            calls: dict[str, Callable[[], object]] = {
                "newest 100": lambda jobs=jobs: jobs.recent(limit=100),
                "100 from the middle": lambda jobs=jobs, num=num: jobs.recent(limit=100, before_id=num // 2),
                "of a user": lambda jobs=jobs: jobs.recent(user=USERS[0], limit=100),
                "of a kind that there is not": lambda jobs=jobs: jobs.recent(kind="images", limit=100),
                "running": lambda jobs=jobs: jobs.recent(states=[State.RUNNING], limit=100),
                "of a spec": lambda jobs=jobs: jobs.recent(fingerprint="f" * 64, limit=100),
                "search, found often": lambda jobs=jobs: jobs.page(words="red table", limit=100),
                "search, found nowhere": lambda jobs=jobs: jobs.page(words="elephant", limit=100),
                "states counted": jobs.counts,
                "a user's quota": lambda jobs=jobs: jobs.num_live(USERS[0]),
                "events since": lambda jobs=jobs: jobs.events(after_id=10**12),
            }
            for name, call in calls.items():
                found.setdefault(name, []).append(_processor_milliseconds(call))
    return {
        name: {"few": round(one, 2), "many": round(other, 2), "ratio": round(other / one, 1)}
        for name, (one, other) in found.items()
    }


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
