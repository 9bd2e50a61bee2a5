"""The policies, advanced by hand: no Ray, no sleeping, no clock but the test's."""

from __future__ import annotations

import dataclasses
import heapq
import random
import sys
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.scheduling import Capacity, GpuNeed, Plan, Policy, PriorView, QueuedJob, RunningJob, View, schedule

GB = 10**9
NOW = 100_000.0
ROOMY = Capacity(num_workers=100, memory_bytes=1000 * GB)


def queued(id: int, **others) -> QueuedJob:
    values = {"user": "ada", "priority": 0, "prior": "toybox", "memory_bytes": GB, "ready_at": NOW - 10}
    return QueuedJob(id=id, **values | others)


def running(id: int, **others) -> RunningJob:
    values = {"user": "ada", "priority": 0, "prior": "toybox", "memory_bytes": GB, "started_at": NOW - 1000}
    return RunningJob(id=id, **values | others)


def plan(*jobs: QueuedJob, workers: int = 2, memory: float = 100, **others) -> Plan:
    capacity = Capacity(num_workers=workers, memory_bytes=int(memory * GB))
    return schedule(View(now=NOW, capacity=capacity, queued=jobs, **others))


def test_priority_goes_before_share_and_share_before_age():
    order = plan(queued(1), queued(2, priority=5), queued(3), queued(4, user="bob"), workers=4).start
    assert list(order) == [2, 4, 1, 3]
    assert order[2] == "priority 5; next in line; its prior 'toybox' is loaded"
    assert order[4] == "priority 0; of 2 users, bob has had and runs least (0 s)"


def test_a_user_who_used_less_goes_first_and_weights_count():
    jobs = [queued(1), queued(2, user="bob")]
    assert list(plan(*jobs, workers=1, usage={"ada": 100.0, "bob": 101.0}).start) == [1]
    assert list(plan(*jobs, workers=1, usage={"ada": 101.0, "bob": 100.0}).start) == [2]
    assert list(plan(*jobs, workers=1, usage={"ada": 101.0, "bob": 200.0}, weights={"bob": 2.0}).start) == [2]


def test_a_user_with_as_many_at_work_as_may_be_stands_in_nobodys_way():
    jobs = [queued(id, priority=5) for id in range(1, 200)] + [queued(300, user="bob")]
    decided = plan(*jobs, workers=9, running=[running(400)], max_running={"ada": 2})
    assert list(decided.start) == [1, 300]
    assert decided.wait[2] == "ada has 2 at work, as many as may be at once" and not decided.make_room
    assert set(plan(*jobs, workers=3).start) == {1, 2, 3}


def test_what_was_just_started_counts_although_it_has_used_nothing():
    fresh = [running(9, user="ada", started_at=NOW)]
    assert list(plan(queued(1), queued(2, user="bob"), workers=2, running=fresh).start) == [2]


def test_a_job_waits_for_its_retry():
    later = plan(queued(1, ready_at=NOW + 1))
    assert not later.start and not later.wait
    assert list(plan(queued(1, ready_at=NOW)).start) == [1]


def test_who_was_passed_over_for_an_hour_goes_first():
    jobs = [queued(1, priority=100), queued(2, user="bob", priority=-100, ready_at=NOW - 3600)]
    decided = plan(*jobs, workers=1)
    assert decided.start == {2: "no job of bob with priority -100 was started for 60 minutes; its prior 'toybox' is loaded"}
    assert decided.wait == {1: "all 1 workers are busy"}
    assert list(plan(*jobs, workers=1, last_starts={("bob", -100): NOW - 60}).start) == [1], "served lately: back in line"


def test_memory_is_shared_by_workers_and_priors():
    jobs = [queued(id, memory_bytes=3 * GB) for id in (1, 2, 3)]
    decided = plan(*jobs, workers=8, memory=8, prior_bytes={"toybox": GB})
    assert list(decided.start) == [1, 2] and decided.wait == {3: "2.0 GB of memory are missing"}


def test_a_job_without_a_prior_takes_no_room_for_one_and_waits_for_none():
    """Two gigabytes hold two workers, and no prior of one beside them."""
    assert set(plan(queued(1, prior=""), queued(2, prior=""), workers=2, memory=2).start) == {1, 2}
    assert set(plan(queued(1), queued(2, prior=""), workers=2, memory=2).start) == {2}  # nothing has to be loaded for it
    assert not plan(queued(1, prior=""), memory=1, priors=[]).refuse


def test_a_job_that_can_never_fit_is_refused_with_a_sentence():
    decided = plan(queued(1, memory_bytes=9 * GB), queued(2), memory=9.5)
    assert list(decided.refuse) == [1] and list(decided.start) == [2]
    assert "9.0 GB" in decided.refuse[1] and "there are 9.5 GB in all" in decided.refuse[1]


def test_idle_priors_are_evicted_least_recently_used_first():
    priors = [
        PriorView(source=name, memory_bytes=3 * GB, last_used_at=NOW - age) for name, age in (("a", 5), ("b", 50), ("c", 9))
    ]
    jobs = queued(1, prior="d", ready_at=NOW - 1000)
    decided = plan(jobs, memory=10, priors=priors, prior_bytes={"d": 2 * GB})
    assert list(decided.start) == [1] and list(decided.evict) == ["b"]
    busy = [running(9, prior="b", memory_bytes=0)]
    assert list(plan(jobs, memory=10, priors=priors, prior_bytes={"d": 2 * GB}, running=busy).evict) == ["c"]
    assert plan(jobs, memory=100, priors=priors).evict == {}


def on_gpus(*jobs: QueuedJob, gpus: tuple[int, ...], needs: dict[str, tuple[int, int, int]], **others) -> Plan:
    """Plan on GPUs of so many GB; needs: prior -> GB at least, at ease, and replicas."""
    capacity = Capacity(num_workers=9, memory_bytes=1000 * GB, gpus=tuple(size * GB for size in gpus))
    of_each = {name: GpuNeed(least=least * GB, at_ease=ease * GB, replicas=num) for name, (least, ease, num) in needs.items()}
    return schedule(View(now=NOW, capacity=capacity, queued=jobs, gpu_needs=of_each, **others))


def test_a_prior_that_no_gpu_holds_is_refused_with_both_numbers():
    decided = on_gpus(queued(1, prior="xl"), queued(2), gpus=(8, 12), needs={"xl": (14, 20, 1), "toybox": (1, 2, 1)})
    assert list(decided.refuse) == [1] and list(decided.start) == [2]
    assert "Its prior needs 14.0 GB of a GPU at least, but the largest of 2 has 12.0 GB" in decided.refuse[1]
    assert "14.0 GB" not in str(on_gpus(queued(1, prior="xl"), gpus=(), needs={"xl": (14, 20, 1)}).refuse), "not known"


def test_priors_fill_gpus_and_wait_for_one_or_evict_an_idle_one():
    needs = dict.fromkeys("abc", (8, 11, 1))
    jobs = [queued(id, prior=name, ready_at=NOW - 1000) for id, name in enumerate("abc", 1)]
    decided = on_gpus(*jobs, gpus=(16, 16), needs=needs)
    assert list(decided.start) == [1, 2], "one on each"
    assert decided.wait[3].startswith("its prior needs 8.0 GB of a GPU, and 5.0 GB of one are free")
    old = {"memory_bytes": 0, "last_used_at": NOW - 9}
    here = [PriorView(source=name, gpus=((gpu, 11 * GB),), **old) for gpu, name in enumerate("ab")]
    idle = on_gpus(jobs[2], gpus=(16, 16), needs=needs, priors=here, running=[running(7, prior="a")])
    assert list(idle.start) == [3] and list(idle.evict) == ["b"]
    both = on_gpus(jobs[2], gpus=(16, 16), needs=needs, priors=here, running=[running(7, prior="a"), running(8, prior="b")])
    assert list(both.wait) == [3] and not both.evict
    assert list(on_gpus(jobs[0], gpus=(16, 16), needs=needs, priors=here).start) == [1], "it is resident"


def test_replicas_need_room_each():
    needs = {"a": (8, 11, 2)}
    job = queued(1, prior="a", ready_at=NOW - 1000)
    (reason,) = on_gpus(job, gpus=(15,), needs=needs).refuse.values()
    assert "needs 8.0 GB of a GPU at least for each of 2 replicas, but the largest of 1 has 15.0 GB" in reason
    assert on_gpus(job, gpus=(15, 15), needs=needs).start and on_gpus(job, gpus=(24,), needs=needs).start


def test_jobs_of_a_resident_prior_go_first_for_a_while():
    resident = [PriorView(source="toybox", memory_bytes=GB, last_used_at=NOW)]
    jobs = [queued(1, prior="other", ready_at=NOW - 60), queued(2, ready_at=NOW - 10)]
    first = plan(*jobs, workers=1, priors=resident)
    assert list(first.start) == [2] and "whose prior is loaded go first" in first.wait[1]
    jobs[0] = queued(1, prior="other", ready_at=NOW - 120)
    assert list(plan(*jobs, workers=1, priors=resident).start) == [1]
    urgent = queued(1, prior="other", priority=1, ready_at=NOW)
    assert list(plan(urgent, jobs[1], workers=1, priors=resident).start) == [1], "only among equals"


def test_small_jobs_overtake_a_large_one_for_a_while_only():
    here = [PriorView(source="toybox", memory_bytes=GB, last_used_at=NOW)]
    busy = [running(9, memory_bytes=4 * GB)]
    small = queued(2, user="bob")
    early = plan(queued(1, memory_bytes=5 * GB), small, workers=3, memory=8, running=busy, priors=here)
    assert list(early.start) == [2]
    late = plan(queued(1, memory_bytes=5 * GB, ready_at=NOW - 600), small, workers=3, memory=8, running=busy, priors=here)
    assert not late.start and "room is kept for it" in late.wait[1]


def test_the_least_urgent_and_last_started_makes_room():
    busy = [running(7, priority=1), running(8, started_at=NOW - 500), running(9, started_at=NOW - 900)]
    decided = plan(queued(1, priority=5), workers=3, running=busy)
    assert decided.make_room == {8: "job 1 of priority 5 needs its place"} and not decided.start
    assert "make room for it at their next checkpoint" in decided.wait[1]
    yielding = [busy[0], dataclasses.replace(busy[1], is_yielding=True), busy[2]]
    again = plan(queued(1, priority=5), workers=3, running=yielding)
    assert not again.make_room and not again.start, "one place was asked for already"
    two = plan(queued(1, priority=5), queued(2, priority=5), workers=3, running=yielding)
    assert list(two.make_room) == [9]
    assert not plan(queued(1, priority=1), workers=1, running=busy[:1]).make_room, "not for an equal"
    assert not plan(queued(1, priority=5), workers=1, running=[running(9, started_at=NOW - 30)]).make_room, "not at once"


def test_no_one_makes_room_in_vain():
    busy = [running(8, memory_bytes=2 * GB), running(9, memory_bytes=5 * GB, priority=9)]
    assert not plan(queued(1, priority=5, memory_bytes=6 * GB), workers=4, memory=10, running=busy).make_room


def test_freed_memory_is_kept_for_the_one_it_was_freed_for():
    busy = [running(8, memory_bytes=4 * GB, is_yielding=True)]
    jobs = [queued(1, priority=5, memory_bytes=5 * GB), queued(2, memory_bytes=2 * GB)]
    assert not plan(*jobs, workers=4, memory=8, running=busy).start


class Simulation:
    """Workers that take a set time for every job; schedules whenever one is free."""

    def __init__(
        self, jobs: list[QueuedJob], *, workers: int, seconds: float, policy: Policy, weights=None, is_measured: bool = False
    ) -> None:
        self.waiting = {job.id: job for job in jobs}
        self.capacity = Capacity(num_workers=workers, memory_bytes=1000 * GB)
        self.seconds, self.policy, self.weights = seconds, policy, weights or {}
        self.mean_run = seconds if is_measured else None
        self.now = NOW
        self.busy: list[tuple[float, int, RunningJob]] = []
        self.usage: dict[str, float] = defaultdict(float)
        self.last_starts: dict[tuple[str, int], float] = {}
        self.order: list[tuple[float, QueuedJob]] = []

    def run(self) -> list[tuple[float, QueuedJob]]:
        while self.waiting or self.busy:
            view = View(
                now=self.now,
                capacity=self.capacity,
                queued=list(self.waiting.values()),
                running=[job for _, _, job in self.busy],
                usage=self.usage,
                weights=self.weights,
                last_starts=self.last_starts,
                mean_run=self.mean_run,
            )
            for id in schedule(view, self.policy).start:
                job = self.waiting.pop(id)
                self.order.append((self.now, job))
                self.last_starts[job.user, job.priority] = self.now
                values = {name: getattr(job, name) for name in ("id", "user", "priority", "prior", "memory_bytes")}
                heapq.heappush(self.busy, (self.now + self.seconds, id, RunningJob(**values, started_at=self.now)))
            self.now, _, done = heapq.heappop(self.busy)
            self.usage[done.user] += self.now - done.started_at
            while self.busy and self.busy[0][0] <= self.now:
                _, _, done = heapq.heappop(self.busy)
                self.usage[done.user] += self.now - done.started_at
        return self.order


USERS = ("ada", "bob", "cem", "dora", "eva")


def two_thousand(priority) -> list[QueuedJob]:
    """Users submit all their jobs one after the other, so that first come first served would be unfair to the last."""
    return [queued(n, user=USERS[n // 400], priority=priority(n), ready_at=NOW - 2000 + n) for n in range(2000)]


PATIENT = Policy(patience=1e9, expected_run=100)


def test_two_thousand_jobs_of_five_users_obey_priority_and_share():
    order = Simulation(two_thousand(lambda n: n % 4), workers=10, seconds=100, policy=PATIENT).run()
    assert len(order) == 2000
    priorities = [job.priority for _, job in order]
    assert priorities == sorted(priorities, reverse=True)
    served: Counter[str] = Counter()
    for _, job in order:
        served[job.user] += 1
        assert max(served.values()) - min(served[user] for user in USERS) <= 1
    for user, priority in {(job.user, job.priority) for _, job in order}:
        ids = [job.id for _, job in order if (job.user, job.priority) == (user, priority)]
        assert ids == sorted(ids), "within a user first come first served"


def test_weights_divide_the_machine():
    weights = {"ada": 3.0, "bob": 2.0}
    order = Simulation(two_thousand(lambda n: 0), workers=8, seconds=100, policy=PATIENT, weights=weights).run()
    first = Counter(job.user for _, job in order[:800])
    for user in USERS:
        assert abs(first[user] - 800 * weights.get(user, 1.0) / 8) <= 2


def test_shares_hold_for_jobs_far_shorter_than_expected_once_their_length_is_known():
    weights = {"ada": 2.0}
    simulation = {"workers": 10, "seconds": 0.5, "policy": Policy(patience=1e9), "weights": weights}

    def furthest(order: list[tuple[float, QueuedJob]]) -> float:
        served: Counter[str] = Counter()
        furthest = 0.0
        for _, job in order[:900]:
            served[job.user] += 1
            furthest = max(furthest, *(abs(served[user] - served.total() * weights.get(user, 1.0) / 6) for user in USERS))
        return furthest

    assert furthest(Simulation(two_thousand(lambda n: 0), **simulation, is_measured=True).run()) <= 2
    assert furthest(Simulation(two_thousand(lambda n: 0), **simulation).run()) > 10, "what the measurement is good for"


def test_nothing_starves_under_a_stream_of_urgent_jobs():
    jobs = two_thousand(lambda n: -5 if n % 400 == 399 else 50)
    policy = Policy(patience=3600, expected_run=100)
    order = Simulation(jobs, workers=4, seconds=100, policy=policy).run()
    start = {job.id: when for when, job in order}
    humble = [job for job in jobs if job.priority == -5]
    # Each of the five queues of that priority is served within the patience and a round of the workers.
    assert max(start[job.id] - NOW for job in humble) <= 3600 + 2 * 100
    assert order[-1][0] - NOW > 40_000


def test_a_prior_that_was_to_go_for_one_job_stays_where_the_next_one_of_the_round_needs_it():
    idle = [
        PriorView(source="a", memory_bytes=GB, last_used_at=NOW - 9),
        PriorView(source="c", memory_bytes=10 * GB, last_used_at=NOW),
    ]
    jobs = [queued(1, priority=5, prior="b", memory_bytes=8 * GB, ready_at=NOW - 999), queued(2, prior="a")]
    decided = plan(*jobs, memory=14, priors=idle)
    assert list(decided.start) == [1, 2] and list(decided.evict) == ["c"]
    assert "loaded" in decided.start[1] and "loaded" not in decided.start[2]


job_strategy = st.builds(
    queued,
    st.integers(1, 10**6),
    user=st.sampled_from(USERS),
    priority=st.integers(-2, 2),
    prior=st.sampled_from(["toybox", "a", "b"]),
    memory_bytes=st.integers(0, 12).map(lambda gigabytes: gigabytes * GB),
    ready_at=st.sampled_from([NOW - 5000, NOW - 700, NOW - 200, NOW - 1, NOW + 1]),
)
running_strategy = st.builds(
    running,
    st.integers(10**6 + 1, 2 * 10**6),
    user=st.sampled_from(USERS),
    priority=st.integers(-2, 2),
    prior=st.sampled_from(["toybox", "a"]),
    memory_bytes=st.integers(0, 3).map(lambda gigabytes: gigabytes * GB),
    started_at=st.sampled_from([NOW - 5000, NOW - 200, NOW - 1]),
    is_yielding=st.booleans(),
)
views = st.builds(
    View,
    now=st.just(NOW),
    capacity=st.builds(Capacity, num_workers=st.integers(4, 8), memory_bytes=st.integers(15, 30).map(lambda g: g * GB)),
    queued=st.lists(job_strategy, max_size=12, unique_by=lambda job: job.id),
    running=st.lists(running_strategy, max_size=4, unique_by=lambda job: job.id),
    priors=st.sets(st.sampled_from(["toybox", "a", "c"])).map(
        lambda names: [PriorView(source=name, memory_bytes=GB, last_used_at=NOW) for name in sorted(names)]
    ),
    usage=st.dictionaries(st.sampled_from(USERS), st.floats(0, 1e4)),
    weights=st.dictionaries(st.sampled_from(USERS), st.floats(0.1, 10)),
)


@given(view=views, seed=st.integers(0, 10))
@settings(max_examples=150, deadline=None)
def test_every_plan_is_sound(view: View, seed: int):
    decided = schedule(view)
    jobs = {job.id: job for job in view.queued}
    active = {job.id: job for job in view.running}
    started = [jobs[id] for id in decided.start]
    assert not set(decided.start) & set(decided.wait) and not set(decided.start) & set(decided.refuse)
    assert all(job.ready_at <= NOW for job in started)

    # What runs afterwards fits, with its priors.
    everyone = [*active.values(), *started]
    sources = {job.prior for job in everyone} | {prior.source for prior in view.priors} - set(decided.evict)
    assert len(everyone) <= view.capacity.num_workers
    assert sum(job.memory_bytes for job in everyone) + len(sources) * GB <= view.capacity.memory_bytes or not started
    assert not set(decided.evict) & {job.prior for job in everyone}

    # Only jobs that are less urgent than one that waits are asked, and nobody is asked twice.
    for id in decided.make_room:
        assert not active[id].is_yielding and NOW - active[id].started_at >= Policy().least_run
        assert any(jobs[waiting].priority > active[id].priority for waiting in decided.wait)

    # An empty machine never idles beside a job that could run.
    if not view.running and any(job.ready_at <= NOW and job.id not in decided.refuse for job in view.queued):
        assert decided.start

    # The order in which the rows are read changes nothing.
    shuffled = list(view.queued)
    random.Random(seed).shuffle(shuffled)
    assert schedule(dataclasses.replace(view, queued=shuffled)) == decided


@given(view=views, jobs=st.lists(job_strategy, min_size=12, max_size=60, unique_by=lambda job: job.id))
@settings(max_examples=150, deadline=None)
def test_the_heads_of_the_queues_say_as_much_as_the_whole_queue(view: View, jobs: list[QueuedJob]):
    """What `JobTable.waiting` reads for a round: of each user, priority and prior what may start or be looked past."""
    queues = defaultdict(list)
    for job in sorted(jobs, key=lambda job: (job.ready_at, job.id)):
        queues[job.user, job.priority, job.prior].append(dataclasses.replace(job, memory_bytes=job.memory_bytes // 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[schedule.__module__], "NUM_LOOKAHEAD", 2)
        num = view.capacity.num_workers + 2
        whole = schedule(dataclasses.replace(view, queued=[job for queue in queues.values() for job in queue]))
        heads = schedule(dataclasses.replace(view, queued=[job for queue in queues.values() for job in queue[:num]]))
    assert (heads.start, heads.wait, heads.make_room, heads.evict) == (whole.start, whole.wait, whole.make_room, whole.evict)


@pytest.mark.parametrize("num", [2000])
def test_a_round_over_a_long_queue_is_quick(num: int):
    """Counted, not timed: a full machine looks at a bounded number of jobs."""
    view = View(now=NOW, capacity=Capacity(num_workers=1, memory_bytes=10 * GB), queued=two_thousand(lambda n: 0))
    assert len(schedule(dataclasses.replace(view, running=[running(99_999)])).wait) == 64
