"""Server-sent events: what happens to jobs, once for all who listen.

One task asks the ledger twice a second while anybody listens, so the ledger does not notice how many do, and what it finds is
encoded and put together once for all. Every change of state and every sentence has the ledger's own number, by which a client
that was cut off goes on; progress has none, because the next one says it all.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jobs.errors import DreamKilnError
from jobs.ledger import EventRecord, Ledger
from jobs.states import TERMINAL

__all__ = ["EventHub"]

log = logging.getLogger("dreamkiln")
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_OF_SILENCE = 15.0
PAGE = 500
MAX_WAITING = 500
"""Of batches for one listener who does not take them; then the connection ends, and resumes where it was."""
RETRY = b"retry: 2000\n\n"
SILENCE = b": nothing new\n\n"
ENDS = tuple(f"{state}:" for state in TERMINAL)


@dataclass(frozen=True)
class _Batch:
    """What one look has found: of each message its number (0: progress), its job and its text."""

    messages: Sequence[tuple[int, int | None, bytes]]

    @cached_property
    def whole(self) -> bytes:
        """All of it, put together once for all who want all of it."""
        return b"".join(text for _, _, text in self.messages)

    def after(self, number: int, job: int | None) -> _Batch:
        """What is new to one who has the messages up to a number, of one job or of all."""
        wanted = [one for one in self.messages if (not one[0] or one[0] > number) and (job is None or one[1] == job)]
        return self if len(wanted) == len(self.messages) else _Batch(wanted)


class EventHub:
    """Streams for any number of listeners. Its methods belong to the server's event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._listeners: set[asyncio.Queue[_Batch | None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._last_id = 0
        self._progress: dict[int, dict[str, Any]] = {}

    async def stream(self, job_id: int | None, after_id: int | None, seconds: float | None = None) -> AsyncIterator[bytes]:
        """Messages of one job, which end with it, or of all.

        Args:
            after_id: the last one that the client has; None: a job's from its first, of all those to come.
            seconds: after which it ends all the same; None: it does not.
        """
        until = float("inf") if seconds is None else time.monotonic() + seconds
        queue: asyncio.Queue[_Batch | None] = asyncio.Queue(MAX_WAITING)
        self._listeners.add(queue)
        try:
            yield RETRY
            if after_id is None:
                after_id = 0 if job_id is not None else await asyncio.to_thread(self._ledger.jobs.last_event)
            await self._begin()
            while events := await asyncio.to_thread(self._ledger.jobs.events, job_id, after_id=after_id, limit=PAGE):
                for event in events:
                    after_id = event.id
                    yield _message(event)
                    await asyncio.sleep(0)  # who has hung up is noticed between two of them
                if job_id is not None and await asyncio.to_thread(self._has_ended, job_id, after_id):
                    yield _end(job_id)
                    return
            while True:
                left = until - time.monotonic()
                try:
                    found = await asyncio.wait_for(queue.get(), max(0.0, min(left, SECONDS_OF_SILENCE)))
                except TimeoutError:
                    if left <= SECONDS_OF_SILENCE:
                        return
                    yield SILENCE
                    continue
                if found is None:
                    return
                found = found.after(after_id, job_id)
                if found.messages:
                    yield found.whole
                if job_id is not None and any(number and _is_end(text) for number, _, text in found.messages):
                    yield _end(job_id)
                    return
        finally:
            self._listeners.discard(queue)

    async def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._last_id = await asyncio.to_thread(self._ledger.jobs.last_event)
            self._progress = {}
            if self._task is None or self._task.done():
                self._task = asyncio.get_running_loop().create_task(self._look())

    def _has_ended(self, job_id: int, after_id: int) -> bool:
        newer = self._ledger.jobs.events(job_id, after_id=after_id, limit=1)
        return not newer and self._ledger.jobs.get(job_id).is_terminal

    async def _look(self) -> None:
        """While anybody listens."""
        while self._listeners:
            try:
                events, moving = await asyncio.to_thread(self._read)
            except DreamKilnError as error:  # the database restarts
                log.warning("%s Listeners wait.", error)
                events, moving = [], []
            self._last_id = max([self._last_id, *(event.id for event in events)])
            before, self._progress = self._progress, {row["id"]: row for row in moving}
            messages = [(event.id, event.job_id, _message(event)) for event in events]
            moved = [row for row in moving if before.get(row["id"]) != row]
            messages += [(0, row["id"], _encoded("progress", row)) for row in moved]
            if messages:
                self._tell(_Batch(messages))
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)

    def _read(self) -> tuple[list[EventRecord], list[dict[str, Any]]]:
        return self._ledger.jobs.events(after_id=self._last_id, limit=PAGE), self._ledger.jobs.at_work()

    def _tell(self, batch: _Batch) -> None:
        for queue in list(self._listeners):
            try:
                queue.put_nowait(batch)
            except asyncio.QueueFull:
                self._listeners.discard(queue)
                while not queue.empty():
                    queue.get_nowait()
                queue.put_nowait(None)


def _message(event: EventRecord) -> bytes:
    data = {"job": event.job_id, "at": event.at, "text": event.text}
    return f"id: {event.id}\n".encode() + _encoded(event.kind, data)


def _encoded(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def _end(job_id: int) -> bytes:
    return _encoded("end", {"job": job_id})


def _is_end(text: bytes) -> bool:
    _, _, data = text.partition(b"\ndata: ")
    return b"\nevent: state\n" in b"\n" + text and json.loads(data)["text"].startswith(ENDS)
