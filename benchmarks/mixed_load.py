"""One image job beside eight text-to-3D jobs, three ways: row-steps per second and everybody's share.

(a) nine processes, each with a prior of its own; (b) one prior, a static batch per job, forwarded in turn; and the engine,
which packs rows of all nine into one forward. Every 3D job asks its next query as soon as the last is answered, so the prior
is never idle. The three take turns, round by round, and are compared within a round; on a CPU each has so much processor time.

A row-step is one row through the network once; a guided sample takes two. Encoding and decoding count as time, not as rows.
Beside the rate stands the rate per second of processor time, which on a CPU that others use too is the one to compare. Runs
alike on CUDA (--device cuda).
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.bare_prior import BarePrior, images_request, query_request, synchronise
from benchmarks.machine import describe_machine, one_line
from benchmarks.saving import save_run
from diffusion.engine import EngineConfig, FairShare
from diffusion.prior import Prior
from jobs.prior_client import DistillationQuery, GenerateRequest
from orchestrator.host.threads import available_cores, use_threads
from orchestrator.prior.local import LocalPrior, Pending

RESULTS = Path(__file__).parent / "results" / "mixed_load.json"
NINE, STATIC, ENGINE = "(a) a process and a prior each", "(b) static batch per job", "engine"


@dataclass
class Work:
    """What was done.

    Args:
        rows: job -> network rows. seconds, cpu_seconds: wall-clock and processor time. waits: seconds that each query took.
        fair: job -> rows that were its max-min fair part of each forward, given what everybody asked for just then.
    """

    rows: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    fair: dict[str, float] = field(default_factory=dict)

    def __iadd__(self, other: Work) -> Work:
        self.rows.update(other.rows)
        self.seconds += other.seconds
        self.cpu_seconds += other.cpu_seconds
        self.waits += other.waits
        for job, rows in other.fair.items():
            self.fair[job] = self.fair.get(job, 0.0) + rows
        return self

    @property
    def rate(self) -> float:
        """Row-steps per second."""
        return self.rows.total() / self.seconds

    @property
    def cpu_rate(self) -> float:
        """Row-steps per second of processor time."""
        return self.rows.total() / self.cpu_seconds


class Load:
    """The nine jobs: what each asks next."""

    def __init__(self, size: int, *, streams: int, chunk: int, views: int, num_steps: int) -> None:
        self.names = ("images", *(f"mesh {n}" for n in range(streams)))
        self._size, self._chunk, self._views, self._num_steps = size, chunk, views, num_steps
        self._turns: Counter[str] = Counter()

    def next(self, job: str) -> GenerateRequest | DistillationQuery:
        """The job's next request."""
        turn = self._turns[job]
        self._turns[job] += 1
        if job == "images":
            return images_request(range(turn * self._chunk, (turn + 1) * self._chunk), num_steps=self._num_steps)
        return query_request(self._size, self.names.index(job), turn, views=self._views)


class Stopwatch:
    """Runs out after so much processor time of this process or, for a GPU, so many seconds."""

    def __init__(self, seconds: float, *, device: str) -> None:
        self._clock = time.process_time if device == "cpu" else time.perf_counter
        self._end = self._clock() + seconds
        self._begin = time.perf_counter(), time.process_time()

    @property
    def is_running(self) -> bool:
        """Whether there is time left."""
        return self._clock() < self._end

    def work(self, rows: Counter[str]) -> Work:
        """What was done since it was started."""
        return Work(rows, time.perf_counter() - self._begin[0], time.process_time() - self._begin[1])


class ThroughTheEngine:
    """Each 3D job asks again as soon as it is answered; the image job keeps four requests under way."""

    def __init__(self, prior: Prior, load: Load, *, row_cap: int) -> None:
        self._local = LocalPrior(prior, config=EngineConfig(row_cap=row_cap, max_rows=max(64, row_cap)))
        self._prior, self._load = prior, load
        self._shares = FairShare()
        self._under_way: dict[str, list[Pending]] = {name: [] for name in load.names}

    def work(self, seconds: float) -> Work:
        """Go on for so long."""
        rows: Counter[str] = Counter()
        fair: dict[str, float] = {}
        waits: list[float] = []
        watch = Stopwatch(seconds, device=self._prior.device.type)
        while watch.is_running:
            for job, pending in self._under_way.items():
                pending[:] = [each for each in pending if not each.finished]
                while len(pending) < (4 if job == "images" else 1):
                    request = self._load.next(job)
                    if isinstance(request, GenerateRequest):
                        pending.append(self._local.begin_generate(request, job=job))
                    else:
                        pending.append(self._local.begin_distill(request, job=job))
            report = self._local.engine.step()
            rows.update(report.rows)
            for job, part in self._shares.allot(self._demand(), sum(report.rows.values())).items():
                fair[job] = fair.get(job, 0.0) + part
            waits += [t.finished_at - t.submitted_at for t in report.finished if t.kind == "query" and t.finished_at]
        synchronise(self._prior)
        work = watch.work(rows)
        work.waits, work.fair = waits, fair
        return work

    def _demand(self) -> dict[str, int]:
        """Rows that each job had to offer to the step that has just been taken."""
        return {
            job: 2 * sum(len(ticket.prompts) for each in pending for ticket in each.tickets)
            for job, pending in self._under_way.items()
        }


class StaticBatches:
    """One prior; every job's batch is forwarded by itself, one forward a job in turn."""

    def __init__(self, prior: Prior, load: Load) -> None:
        self._bare, self._prior, self._load = BarePrior(prior), prior, load
        self._drawing: Any = None
        self._reply: Any = None

    def work(self, seconds: float) -> Work:
        """Go on for so long."""
        rows: Counter[str] = Counter()
        watch = Stopwatch(seconds, device=self._prior.device.type)
        while watch.is_running:
            for job in self._load.names:
                before = self._bare.rows
                if job == "images":
                    self._draw_on()
                else:
                    request = self._load.next(job)
                    assert isinstance(request, DistillationQuery)
                    self._bare.distill(request)
                rows[job] += self._bare.rows - before
        synchronise(self._prior)
        return watch.work(rows)

    @torch.no_grad()
    def _draw_on(self) -> None:
        if self._drawing is None:
            request = self._load.next("images")
            assert isinstance(request, GenerateRequest)
            self._drawing, self._reply = self._bare.drawing(request), None
        try:
            self._reply = self._bare.answer(self._drawing.send(self._reply))
        except StopIteration:
            self._drawing = None


class NineProcesses:
    """Each job in a process with its own prior; they share the device as the system lets them. Used as a context manager."""

    def __init__(self, source: str, device: str, load: Load, *, num_threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        self._seconds_each = 1 / len(load.names) if device == "cpu" else 1.0
        for job in load.names:
            ours, theirs = context.Pipe()
            arguments = (job, source, device, load, num_threads, theirs)
            self._processes.append(context.Process(target=_alone, args=arguments, daemon=True))
            self._pipes.append(ours)

    def __enter__(self) -> NineProcesses:
        for process in self._processes:
            process.start()
        for pipe in self._pipes:
            pipe.recv()
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.send(0.0)
        for process in self._processes:
            process.join()

    def work(self, seconds: float) -> Work:
        """All of them, for so long together."""
        for pipe in self._pipes:
            pipe.send(seconds * self._seconds_each)
        each = [pipe.recv() for pipe in self._pipes]
        rows: Counter[str] = Counter()
        for work in each:
            rows.update(work.rows)
        return Work(rows, max(work.seconds for work in each), sum(work.cpu_seconds for work in each))


def _alone(job: str, source: str, device: str, load: Load, num_threads: int, pipe: Any) -> None:
    use_threads(num_threads)
    prior = Prior.load(source, device=device)
    bare = BarePrior(prior)
    pipe.send("ready")
    while seconds := pipe.recv():
        before = bare.rows
        watch = Stopwatch(seconds, device=device)
        while watch.is_running:
            request = load.next(job)
            if isinstance(request, DistillationQuery):
                bare.distill(request)
                continue
            # Step by step, so that a long drawing does not run past the end.
            generator, reply = bare.drawing(request), None
            while watch.is_running:
                try:
                    with torch.no_grad():
                        reply = bare.answer(generator.send(reply))
                except StopIteration:
                    break
        synchronise(prior)
        pipe.send(watch.work(Counter({job: bare.rows - before})))


def measure(
    source: str,
    *,
    device: str,
    load: Callable[[int], Load],
    seconds: float,
    rounds: int,
    threads: tuple[int, int],
    row_cap: int,
) -> dict[str, Any]:
    """The figures of one run.

    Args:
        load: image size -> a new `Load`. threads: of torch in one process, and in each of the nine. row_cap: of the
            engine's forwards, 0 for the knee of the batch curve.
    """
    use_threads(threads[0])
    prior = Prior.load(source, device=device)
    profile = LocalPrior(prior).measure()
    row_cap = row_cap or profile.knee()
    jobs = load(prior.image_size).names
    static = StaticBatches(prior, load(prior.image_size))
    engine = ThroughTheEngine(prior, load(prior.image_size), row_cap=row_cap)
    done: dict[str, list[Work]] = {NINE: [], STATIC: [], ENGINE: []}
    with NineProcesses(source, device, load(prior.image_size), num_threads=threads[1]) as nine:
        for _ in range(rounds):
            done[NINE].append(nine.work(seconds))
            done[STATIC].append(static.work(seconds))
            done[ENGINE].append(engine.work(seconds))
    return {
        "rows_per_second": dict(profile.rows_per_second),
        "row_cap": row_cap,
        "ways": {
            name: _figures(works, done[ENGINE], jobs) | {"priors": copies}
            for (name, works), copies in zip(done.items(), (len(jobs), 1, 1), strict=True)
        },
    }


def _figures(works: list[Work], engine: list[Work], jobs: tuple[str, ...]) -> dict[str, Any]:
    total = Work()
    for work in works:
        total += work
    return {
        "row_steps_per_second": total.rate,
        "engine_is": statistics.median(mine.rate / work.rate for mine, work in zip(engine, works, strict=True)),
        "row_steps_per_cpu_second": total.cpu_rate,
        "engine_is_per_cpu_second": statistics.median(
            mine.cpu_rate / work.cpu_rate for mine, work in zip(engine, works, strict=True)
        ),
        "least_share_of_fair": min(total.rows[job] / total.fair[job] for job in jobs) if total.fair else None,
        "query_seconds": statistics.median(total.waits) if total.waits else None,
    }


def show(machine: dict[str, Any], figures: dict[str, Any]) -> None:
    """The table on stdout."""
    print(one_line(machine))
    curve = ", ".join(f"{size}: {rate:.1f}" for size, rate in figures["rows_per_second"].items())
    print(f"rows/s by batch size: {curve}; the engine's forwards have at most {figures['row_cap']} rows")
    header = f"{'row-steps/s':>12}{'engine is':>10}{'per CPU s':>11}{'engine is':>10}{'least share':>13}{'priors':>8}"
    print(f"\n{'mixed load':<32}{header}")
    for name, way in figures["ways"].items():
        rate, ratio = way["row_steps_per_second"], way["engine_is"]
        per_cpu, cpu_ratio = way["row_steps_per_cpu_second"], way["engine_is_per_cpu_second"]
        least = "" if way["least_share_of_fair"] is None else f"{way['least_share_of_fair']:.0%}"
        print(f"{name:<32}{rate:>12.1f}{ratio:>9.2f}x{per_cpu:>11.1f}{cpu_ratio:>9.2f}x{least:>13}{way['priors']:>8}")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="toybox", help="with ?dtype=bfloat16 in half precision")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each way in a round; processor time on a CPU")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--num-images", type=int, default=8, help="images of a request of the image job")
    parser.add_argument("--num-steps", type=int, default=10)
    parser.add_argument("--streams", type=int, default=8, help="text-to-3D jobs")
    parser.add_argument("--views", type=int, default=4, help="of each query")
    parser.add_argument("--num-threads", type=int, default=0, help="of torch in one process; 0 for all cores")
    parser.add_argument("--process-threads", type=int, default=1, help="of torch in each of the nine processes")
    parser.add_argument("--row-cap", type=int, default=0, help="of the engine's forwards; 0 for the knee of the curve")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    machine = describe_machine()

    def load(size: int) -> Load:
        return Load(size, streams=options.streams, chunk=options.num_images, views=options.views, num_steps=options.num_steps)

    figures = measure(
        options.prior,
        device=options.device,
        load=load,
        seconds=options.seconds,
        rounds=options.rounds,
        threads=(options.num_threads, options.process_threads),
        row_cap=options.row_cap,
    )
    show(machine, figures)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    save_run(options.out, machine, {**settings, "num_threads": options.num_threads or available_cores()}, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
