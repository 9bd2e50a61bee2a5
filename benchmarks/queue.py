"""2,000 queued jobs of five users through the real orchestrator: order, shares, how soon a request is applied.

    python -m benchmarks.queue [--jobs 2000] [--ledger URL]

The ledger, the scheduler, the controller and the HTTP API are the product's own, in a process of their own; only the jobs do
nothing: they sleep. Exit code 1 where a promise is broken: a less urgent job started before a waiting one, a user more than
a few jobs from their share, a request not applied within two seconds, a queue that starved.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, one_line
from jobs import codec
from jobs.events import Progress
from jobs.ledger import JobRecord, Ledger
from jobs.specs import TextTo3DSpec
from orchestrator.client.client import Client, NotRunningError
from orchestrator.daemon.daemon import serve
from orchestrator.daemon.options import DaemonOptions
from orchestrator.daemon.reports import Report, Stopped, Succeeded
from orchestrator.host.state_folder import StateFolder
from orchestrator.scheduling import Capacity, PriorView

RESULTS = Path(__file__).parent / "results" / "queue.json"
WEIGHTS = {"ada": 2.0, "bob": 1.0, "cem": 1.0, "dora": 1.0, "eva": 1.0}
PRIORITIES = (0, 1, 2, 3)
MOST_SECONDS_TO_APPLY = 2.0
LONG_SECONDS = 600.0


class SleepingWorker:
    """A job that sleeps in steps of a twentieth of a second.

    Args:
        seconds: until it succeeds. is_deaf: never looks whether it shall stop, as in the middle of a very long step.
    """

    def __init__(self, seconds: float, *, is_deaf: bool) -> None:
        self._begin, self._seconds, self._is_deaf = time.monotonic(), seconds, is_deaf
        self._is_stopping = False

    def poll(self) -> list[Report]:
        """Progress, and its end."""
        elapsed = time.monotonic() - self._begin
        if self._is_stopping:
            return [Stopped("stopped at a step")]
        if elapsed >= self._seconds:
            return [Succeeded()]
        return [Progress(stage="sleep", step=int(elapsed * 20), total=int(self._seconds * 20))]

    def set_weight(self, weight: float) -> None:
        """It asks nothing of a prior."""

    def stop(self, *, at_checkpoint: bool) -> None:
        """At the next poll."""
        self._is_stopping = not self._is_deaf

    def kill(self) -> None:
        """Nothing is left of it."""


class SleepingWorkers:
    """`orchestrator.daemon.reports.Workers`; the prompt says how long a job sleeps, and whether it is deaf."""

    def __init__(self, seconds: float, capacity: Capacity) -> None:
        self._seconds, self.capacity = seconds, capacity

    def __enter__(self) -> SleepingWorkers:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start(self, job: JobRecord) -> SleepingWorker:
        """See `Workers`."""
        prompt = job.spec["prompt"]
        return SleepingWorker(LONG_SECONDS if "endless" in prompt else self._seconds, is_deaf="deaf" in prompt)

    def priors(self) -> list[PriorView]:
        """The one that all jobs ask, always there."""
        return [PriorView(source="toybox", memory_bytes=0, last_used_at=0.0)]

    def evict(self, source: str) -> None:
        """Never."""


@contextlib.contextmanager
def orchestrator(folder: Path, *, ledger: str | None, num_workers: int, seconds: float) -> Iterator[Client]:
    """One in a process of its own; yields its client."""
    options = DaemonOptions(state=str(folder), ledger=ledger, num_workers=num_workers, memory_gb=1e5)
    arguments = json.dumps({"options": dataclasses.asdict(options), "seconds": seconds})
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.queue", "--serve", arguments])
    try:
        yield _when_it_answers(StateFolder(folder), process)
    finally:
        process.terminate()
        process.wait(timeout=60)


def requests(user: str, prompts: Sequence[str], priority: Callable[[int], int]) -> list[dict[str, Any]]:
    """What POST /v1/jobs takes."""
    return [
        {"spec": TextTo3DSpec(prompt=prompt).to_json(), "out": f"/nowhere/{prompt}", "user": user, "priority": priority(number)}
        for number, prompt in enumerate(prompts)
    ]


def submit(client: Client, num_jobs: int, *, num_workers: int) -> float:
    """All jobs of a user at once, user after user, so that first come first served would be unfair; seconds.

    Until the last is there every worker is busy: who comes first has no start.
    """
    endless = requests("zoe", [f"an endless heeding job {number} in the way" for number in range(num_workers)], lambda _: 1000)
    in_the_way = [job["id"] for job in client.post("/v1/jobs", {"jobs": endless})["jobs"]]
    for job in in_the_way:
        _until(client, job, "running")
    begin, share = time.monotonic(), num_jobs // len(WEIGHTS)
    for user, weight in WEIGHTS.items():
        client.put(f"/v1/users/{user}", weight=weight)
        jobs = requests(user, [f"job {number} of {user}" for number in range(share)], lambda n: PRIORITIES[n % len(PRIORITIES)])
        client.post("/v1/jobs", {"jobs": jobs})
    taken = time.monotonic() - begin
    for job in in_the_way:
        client.post(f"/v1/jobs/{job}/cancel")
    return taken


def wait_until_all_ended(client: Client) -> tuple[float, list[float]]:
    """Seconds, and what /v1/status took meanwhile, in milliseconds."""
    begin, taken = time.monotonic(), list[float]()
    while True:
        asked = time.perf_counter()
        jobs = client.get("/v1/status")["jobs"]
        taken.append((time.perf_counter() - asked) * 1000)
        if not any(jobs[state] for state in ("queued", "running", "lost")):
            return time.monotonic() - begin, taken
        time.sleep(0.25)


@dataclasses.dataclass(frozen=True)
class Start:
    """A job that was started: by whom, how urgent, when it was submitted and when it began."""

    user: str
    priority: int
    submitted_at: float
    started_at: float


def starts(url: str) -> list[Start]:
    """Every first attempt in the ledger, in order."""
    with Ledger.read(url) as ledger:
        jobs = ledger.jobs.recent(limit=100_000)
    found = [Start(job.user, job.priority, job.created_at, job.started_at) for job in jobs if job.started_at is not None]
    return sorted(found, key=lambda start: start.started_at)


def inversions(order: Sequence[Start]) -> int:
    """Jobs that were started while a more urgent one waited that had been submitted before."""
    num, urgent = 0, list[Start]()  # more urgent than any start since, from the end of the order
    for start in reversed(order):
        num += any(other.priority > start.priority and other.submitted_at < start.started_at for other in urgent)
        if not urgent or start.priority > urgent[-1].priority:
            urgent.append(start)
    return num


def unfairness(order: Sequence[Start], weights: Mapping[str, float]) -> float:
    """The most jobs that a user was ahead of or behind their share, while all of them had jobs of the highest priority.

    Of that one alone: what a user got less there, because their jobs ran out first, is made good at the next.
    """
    worst, highest = 0.0, max(start.priority for start in order)
    level = [start for start in order if start.priority == highest]
    left, served = Counter(start.user for start in level), Counter[str]()
    total = sum(weights[user] for user in left)
    for start in level:
        if min(left.values()) <= 0:
            break
        left[start.user] -= 1
        served[start.user] += 1
        worst = max(worst, *(abs(served[user] - served.total() * weights[user] / total) for user in left))
    return worst


def control_requests(client: Client, num_jobs: int) -> dict[str, dict[str, float]]:
    """Seconds from the call until the ledger says so, for jobs that run; deaf: in the middle of an endless step."""
    taken: dict[str, list[float]] = defaultdict(list)
    for number in range(num_jobs):
        kind = "deaf" if number % 2 else "heeding"
        (request,) = requests("zoe", [f"an endless {kind} job {number}"], lambda _: 1000)
        job = client.post("/v1/jobs", {"jobs": [request]})["jobs"][0]["id"]
        _until(client, job, "running")
        for action, state in (("pause", "paused"), ("resume", "running"), ("cancel", "cancelled")):
            begin = time.monotonic()
            client.post(f"/v1/jobs/{job}/{action}")
            _until(client, job, state)
            taken[f"{action} ({kind})"].append(time.monotonic() - begin)
    return {
        action: {"median": round(statistics.median(seconds), 3), "slowest": round(max(seconds), 3)}
        for action, seconds in sorted(taken.items())
    }


def measure(num_jobs: int, *, ledger: str | None, num_workers: int, seconds: float, num_requests: int) -> dict[str, Any]:
    """The whole queue once."""
    with tempfile.TemporaryDirectory(prefix="dreamkiln-queue-") as folder:
        with orchestrator(Path(folder), ledger=ledger, num_workers=num_workers, seconds=seconds) as client:
            submitting = submit(client, num_jobs, num_workers=num_workers)
            applied = control_requests(client, num_requests)
            running, status = wait_until_all_ended(client)
        order = [start for start in starts(ledger or StateFolder(Path(folder)).default_ledger) if start.priority < 1000]
    return {
        "jobs": num_jobs,
        "users": WEIGHTS,
        "workers": num_workers,
        "seconds_per_job": seconds,
        "ledger": "postgresql" if ledger else "sqlite",
        "submit_seconds": round(submitting, 2),
        "jobs_per_second": round(len(order) / (order[-1].started_at - order[0].started_at), 1),
        "run_seconds": round(running, 1),
        "never_started": num_jobs - len(order),
        "inversions": inversions(order),
        "most_jobs_from_the_fair_share": round(unfairness(order, WEIGHTS), 2),
        "seconds_to_apply": applied,
        "status_milliseconds": {"median": round(statistics.median(status), 1), "slowest": round(max(status), 1)},
    }


def broken_promises(figures: Mapping[str, Any]) -> list[str]:
    """In words."""
    slow = {
        action: row["slowest"] for action, row in figures["seconds_to_apply"].items() if row["slowest"] > MOST_SECONDS_TO_APPLY
    }
    said = [f"{action} took {seconds:.1f} s" for action, seconds in slow.items()]
    if figures["inversions"]:
        said.append(f"{figures['inversions']} jobs went before more urgent ones")
    if figures["most_jobs_from_the_fair_share"] > figures["workers"]:
        said.append(f"a user was {figures['most_jobs_from_the_fair_share']} jobs from their share")
    if figures["never_started"]:
        said.append(f"{figures['never_started']} jobs never started")
    return said


def main(arguments: list[str] | None = None) -> int:
    """1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a job sleeps")
    parser.add_argument("--requests", type=int, default=20, help="jobs that are paused, resumed and cancelled")
    parser.add_argument("--ledger", help="URL of an empty database; a SQLite file by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        told = json.loads(options.serve)
        serve(
            codec.from_plain(DaemonOptions, told["options"]),
            make_workers=lambda options, clock: SleepingWorkers(told["seconds"], options.capacity()),
        )
        return 0
    machine = describe_machine()
    figures = measure(
        options.jobs,
        ledger=options.ledger,
        num_workers=options.workers,
        seconds=options.seconds,
        num_requests=options.requests,
    )
    print(one_line(machine))
    for name, value in figures.items():
        print(f"{name:<32} {value}")
    broken = broken_promises(figures)
    for sentence in broken:
        print(f"broken: {sentence}")
    document = {"measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine, **figures}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(options.out)
    return int(bool(broken))


def _when_it_answers(state: StateFolder, process: subprocess.Popen[bytes]) -> Client:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(NotRunningError):
            client = Client(state)
            client.get("/health")
            return client
        time.sleep(0.1)
    raise RuntimeError(f"the orchestrator did not start (code {process.poll()})")


def _until(client: Client, job: int, state: str) -> None:
    deadline = time.monotonic() + 60
    while (now := client.get(f"/v1/jobs/{job}")["job"]["state"]) != state:
        if time.monotonic() > deadline:
            raise RuntimeError(f"job {job} is {now}, not {state}")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())
