"""Who draws the shards: this process, one after another, or actors of a running Ray, several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.errors import JobFailed
from jobs.prior_client import PriorClient
from orchestrator.batch.job_folder import MANIFEST
from orchestrator.batch.shard import Committed, ShardJob, ShardTask, ShardWriter
from orchestrator.batch.storage.stores import Store
from orchestrator.batch.storage.urls import is_url
from orchestrator.host.shared_disk import require_sentinel
from orchestrator.host.threads import use_threads
from orchestrator.metrics.meters import meter_shard
from orchestrator.prior.deaths import last_words

__all__ = ["actor_options", "run_here", "run_in_actors"]

MAX_ATTEMPTS = 3

Report = int | Committed
"""Rows done since the last report, or a shard that is committed."""
Tasks = Iterator[ShardTask | Committed]
"""Shards to draw, and those that need not be, which are reported as they are."""


def run_here(job: ShardJob, prior: PriorClient, tasks: Tasks, store: Store) -> Iterator[Report]:
    """Every task in this process."""
    writer = ShardWriter(job, prior, store)
    for task in tasks:
        if isinstance(task, Committed):
            yield task
        else:
            yield from writer.run(task)


class ShardActor:
    """Draws and commits shards in a process of its own; errors are the last item, as values."""

    def __init__(self, job: ShardJob, prior: PriorClient) -> None:
        use_threads(1)
        self._writer = ShardWriter(job, prior)
        self._sentinel = "" if is_url(job.location) else str(Path(job.location) / MANIFEST)

    def run(self, task: ShardTask) -> Iterator[Any]:
        """See `ShardWriter.run`."""
        from orchestrator.prior.wire import Raised

        try:
            require_sentinel(self._sentinel)
            for item in self._writer.run(task):
                if isinstance(item, Committed):
                    meter_shard(item.marker)
                yield item
        except Exception as error:
            yield Raised(error)


def actor_options(memory_bytes: int = 0) -> dict[str, Any]:
    """What an actor asks of Ray. memory_bytes: 0 on one machine, where everything has a place.

    The actors wait for the prior most of the time, and must find a place on a cluster whose cores are all taken by priors and
    jobs, their own among them: they ask for none. A dead one is replaced here, not by Ray: while Ray restarts an actor, every
    call to it fails.
    """
    return {"num_cpus": 0, **({"memory": memory_bytes} if memory_bytes else {})}


def run_in_actors(
    job: ShardJob, prior: PriorClient, tasks: Tasks, *, num_workers: int, options: Mapping[str, Any]
) -> Iterator[Report]:
    """Every task in one of `num_workers` actors; the rows of no more tasks than that are held.

    Where not all of them find a place at once, those that have one draw, and make room at the end.

    Args:
        options: see `actor_options`.

    An actor that dies is replaced, and its shard drawn again.

    Raises:
        JobFailed: an actor died three times over one shard. What `ShardWriter.run` raises, too.
    """
    import ray

    kind = ray.remote(ShardActor).options(**options)

    def make() -> Any:
        return kind.remote(job, prior)

    idle = [make() for _ in range(num_workers)]
    running: dict[Any, _Running] = {}
    while True:
        while idle:
            task = next(tasks, None)
            if task is None:
                idle.clear()  # ends them: a task may wait for an actor that has no place yet
                break
            if isinstance(task, Committed):
                yield task
                continue
            _start(running, idle.pop(), task, attempt=1)
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1, fetch_local=False)
        for stream in ready:
            yield from _advance(running, stream, idle, make)


class _Running:
    """A task that an actor works on. reported: rows that it has counted so far, to be taken back if it dies."""

    def __init__(self, actor: Any, task: ShardTask, attempt: int) -> None:
        self.actor = actor
        self.task = task
        self.attempt = attempt
        self.reported = 0


def _start(running: dict[Any, _Running], actor: Any, task: ShardTask, *, attempt: int) -> None:
    running[actor.run.options(num_returns="streaming").remote(task)] = _Running(actor, task, attempt)


def _advance(running: dict[Any, _Running], stream: Any, idle: list[Any], make: Callable[[], Any]) -> Iterator[Report]:
    """Take what a stream has ready."""
    import ray
    from ray.exceptions import RayError

    from orchestrator.prior.wire import Raised

    state = running[stream]
    try:
        item = ray.get(next(stream))
    except StopIteration:
        del running[stream]
        idle.append(state.actor)
        return
    except RayError as error:
        del running[stream]
        if state.attempt >= MAX_ATTEMPTS:
            words = last_words(error)
            advice = "" if words else " memory may be short: try a smaller --shard-size."
            raise JobFailed(
                f"The process that draws shards died {MAX_ATTEMPTS} times over shard {state.task.shard} "
                f"({words or type(error).__name__});{advice} the same command continues."
            ) from error
        yield -state.reported
        _start(running, make(), state.task, attempt=state.attempt + 1)
        return
    if isinstance(item, Raised):
        item.reraise()
    if isinstance(item, int):
        state.reported += item
        yield item
    else:
        yield replace(item, num_attempts=state.attempt)
