"""The queue's benchmark counts what it says it counts, and runs."""

from __future__ import annotations

import json

import pytest

from benchmarks import queue
from benchmarks.queue import Start


def order(*jobs: tuple[str, int], submitted_at: float = 0.0) -> list[Start]:
    """Jobs as (user, priority), started one second after the other."""
    return [Start(user, priority, submitted_at, float(second + 1)) for second, (user, priority) in enumerate(jobs)]


def test_an_inversion_is_a_start_before_a_more_urgent_one_that_waited():
    assert queue.inversions(order(("ada", 2), ("bob", 2), ("ada", 1), ("bob", 0))) == 0
    assert queue.inversions(order(("ada", 1), ("bob", 0), ("ada", 2))) == 2
    late = [*order(("ada", 0)), Start("bob", 5, submitted_at=1.5, started_at=2.0)]
    assert queue.inversions(late) == 0, "it came after the other had started"


def test_unfairness_is_the_distance_from_the_share_in_jobs():
    fair = order(*[("ada", 0), ("bob", 0)] * 5)
    assert queue.unfairness(fair, {"ada": 1.0, "bob": 1.0}) == 0.5
    greedy = order(*[("ada", 0)] * 5, *[("bob", 0)] * 5)
    assert queue.unfairness(greedy, {"ada": 1.0, "bob": 1.0}) == 2.5
    weighted = order(*[("ada", 0), ("ada", 0), ("bob", 0)] * 4)
    assert queue.unfairness(weighted, {"ada": 2.0, "bob": 1.0}) < 1
    assert queue.unfairness(weighted, {"ada": 1.0, "bob": 1.0}) > 1


@pytest.mark.slow
def test_forty_jobs_of_five_users(tmp_path):
    out = tmp_path / "queue.json"
    # Seconds to apply are judged by hand: a machine that runs tests has other work.
    queue.main(["--jobs", "40", "--workers", "4", "--seconds", "0.2", "--requests", "2", "--out", str(out)])
    figures = json.loads(out.read_text())
    assert figures["never_started"] == figures["inversions"] == 0
    assert figures["most_jobs_from_the_fair_share"] <= 4
    assert set(figures["seconds_to_apply"]) == {
        f"{a} ({k})" for a in ("pause", "resume", "cancel") for k in ("heeding", "deaf")
    }
