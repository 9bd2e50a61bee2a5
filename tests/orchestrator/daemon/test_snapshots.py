"""Answers that are made once for many, and never an old one after a change."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.daemon.http import snapshots
from orchestrator.daemon.http.snapshots import Snapshots

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Site:
    """An application that counts how often it is asked; each answer says which one it is."""

    def __init__(self) -> None:
        self.num, self.changes, self.moves, self.status = 0, 0, 0, 200
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.asks = Snapshots(self, revision=lambda: (self.changes, self.moves))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.num += 1
        body = b"%d" % self.num
        await self.may_answer.wait()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": body[:1], "more_body": True})
        await send({"type": "http.response.body", "body": body[1:]})

    async def get(self, path: str = "/v1/jobs", query: bytes = b"", method: str = "GET") -> tuple[int, bytes]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await self.asks({"method": method, "path": path, "query_string": query}, None, send)
        return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:])


async def test_one_answer_for_all_who_ask_the_same_at_once():
    site = Site()
    site.may_answer.clear()
    asked = [asyncio.create_task(site.get()) for _ in range(50)]
    await asyncio.sleep(0.01)
    site.may_answer.set()
    assert set(await asyncio.gather(*asked)) == {(200, b"1")}
    assert await site.get(query=b"q=x") == (200, b"2") and await site.get("/v1/jobs/7") == (200, b"3")
    assert await site.get("/v1/jobs/7/log") == (200, b"4") and await site.get("/v1/jobs/7/log") == (200, b"5")
    assert await site.get(method="POST") == (200, b"6")


async def test_a_change_is_seen_by_the_next_question_and_progress_too_unless_many_ask(monkeypatch):
    site = Site()
    assert await site.get() == await site.get() == (200, b"1")
    site.moves += 1
    assert await site.get() == (200, b"2")
    for _ in range(snapshots.NUM_BUSY):
        await site.get("/v1/status")
    num = site.num
    site.moves += 1
    assert await site.get() == (200, b"2") and site.num == num
    site.changes += 1
    assert await site.get() == (200, b"%d" % (num + 1))
    monkeypatch.setattr(snapshots, "SECONDS", 0.0)
    assert await site.get() == (200, b"%d" % (num + 2))


async def test_a_change_while_an_answer_is_made_is_not_hidden_by_it():
    site = Site()
    site.may_answer.clear()
    first = asyncio.create_task(site.get())
    await asyncio.sleep(0.01)
    site.changes += 1
    second = asyncio.create_task(site.get())
    await asyncio.sleep(0.01)
    site.may_answer.set()
    assert await first == (200, b"1") and await second == (200, b"2")


@pytest.mark.parametrize("is_error", [False, True])
async def test_what_went_wrong_is_nobodys_answer_but_the_askers(is_error: bool):
    site = Site()
    site.may_answer.clear()
    asked = [asyncio.create_task(site.get()) for _ in range(3)]
    await asyncio.sleep(0.01)
    if is_error:
        asked[0].cancel()  # it has hung up
        with pytest.raises(asyncio.CancelledError):
            await asked[0]
    else:
        site.status = 503
    site.may_answer.set()
    found = await asyncio.gather(*asked, return_exceptions=True)
    answers = [one for one in found if not isinstance(one, BaseException)]
    assert len(answers) == (2 if is_error else 3) and all(answer[0] == site.status for answer in answers)
    assert (b"1" in [answer[1] for answer in answers]) != is_error
