"""Jobs as text, at the widths of real terminals."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from orchestrator.client.job_display import age, print_job, table

NOW = 1_800_000_000.0


def job(number: int, state: str, **changes: Any) -> dict[str, Any]:
    values = {"id": number, "state": state, "kind": "text-to-3d", "user": "ada", "priority": 0, "created_at": NOW - 95}
    values |= {"stage": "", "step": 0, "total": 0, "seconds_left": None, "metrics": {}, "reason": "", "seconds_run": 117.0}
    return values | {"spec": {"prompt": "a red [bold] mushroom with a white stem"}, "name": "x", "waits": ""} | changes


def lines(jobs: list[dict[str, Any]], width: int) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width).print(table(jobs, now=NOW, width=width))
    return stream.getvalue().splitlines()


JOBS = [
    job(12, "queued", waits="all 2 workers are busy; jobs of lower priority make room for it at their next checkpoint"),
    job(3, "running", stage="fit", step=120, total=400, seconds_left=62.0),
    job(4, "running", stage="draw", step=123_456, total=1_000_000),
    job(5, "running"),
    job(6, "failed", reason="The fit ended empty.", user="alexandra-the-great"),
    job(7, "succeeded", metrics={"num_rows": 6, "num_succeeded": 4, "num_failed": 2}),
]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_job_is_one_line_that_fits(width):
    shown = lines(JOBS, width)
    assert len(shown) == 1 + len(JOBS) and max(map(len, shown)) <= width
    assert all(state in line for line, state in zip(shown[1:], [one["state"] for one in JOBS], strict=True))


def test_what_a_line_says():
    header, waits, fits, draws, starts, fails, drawn = lines(JOBS, 160)
    assert header.split() == ["job", "state", "progress", "user", "age", "what"], "no job has a priority"
    assert "all 2 workers are busy" in waits and "fit 120/400, 1:02 left" in fits and "draw 12.3%" in draws
    assert "starts" in starts and "The fit ended empty." in fails and "alexandra-t…" in fails
    assert "4 of 6 rows, 2 failed" in drawn and "1m 35s" in drawn and "a red [bold] mushroom" in drawn
    assert "prio" in lines([job(1, "queued", priority=7)], 80)[0]


def test_the_priors_score_is_said_of_a_mesh_and_of_a_fit_on_its_way(capsys):
    metrics = {"prior_score": 0.3124, "prior_score_25": 0.2, "prior_score_50": 0.25, "clip_score": 0.29, "has_two_faces": True}
    done = job(1, "succeeded", metrics=metrics, seconds_run=62.0)
    fits = job(2, "running", stage="fit", step=200, total=400, seconds_left=62.0, metrics={"prior_score_50": 0.05})
    _, first, second = lines([done, fits], 120)
    assert "in 1:02, score 0.312" in first and "fit 200/400, 1:02 left, score 0.050 half way" in second
    others = {"name": "a", "reason": "done", "out": "/a", "prior": "toybox", "is_dead_letter": False}
    print_job({"job": {**done, **others}, "shards": None, "attempts": [], "artefacts": [], "events": []})
    said = "score 0.312, 0 says nothing and more is better; on the way 0.200 at 25 %, 0.250 at 50 %; CLIP 0.290; it may"
    assert said in capsys.readouterr().out


def test_a_table_says_how_many_jobs_it_leaves_out():
    stream = io.StringIO()
    Console(file=stream, width=60).print(table(JOBS, now=NOW, width=60, num_more=1570))
    assert stream.getvalue().splitlines()[-1].rstrip() == "… and 1,570 more that have not ended"


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0s"), (59.6, "1m"), (3700, "1h 1m"), (86400 * 9 + 3600 * 18, "9d 18h")])
def test_ages_have_two_units(seconds, text):
    assert age(seconds) == text
