"""Jobs in the ledger, on both databases: leases, fences, retries, keys, and what users ask for."""

from __future__ import annotations

import itertools
import threading

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from jobs.errors import InputError
from jobs.events import Progress
from jobs.ledger import Ledger, NewGroup, OwnershipError, ShardRecord, StaleLease, Submission, job_table
from jobs.ledger.rows import find_job, move_job
from jobs.ledger.tables import Job
from jobs.specs import ImagesSpec
from jobs.states import DesiredState, FailureKind, IllegalTransition, State
from tests.jobs.ledger.conftest import Clock, submission


def submit(ledger: Ledger, number: int = 0, **others) -> int:
    (submitted,) = ledger.jobs.submit([submission(number, **others)])
    return submitted.id


def texts(ledger: Ledger, job: int) -> list[str]:
    return [event.text for event in ledger.jobs.events(job)]


def test_a_job_from_submission_to_success(ledger: Ledger, clock: Clock):
    spec = ImagesSpec(prompt="a red table", num_images=3)
    (submitted,) = ledger.jobs.submit([Submission.of(spec, out="/runs/a", user="ada", priority=7)])
    assert submitted.is_new
    job = ledger.jobs.get(submitted.id)
    assert (job.state, job.user, job.priority, job.spec) == (State.QUEUED, "ada", 7, spec.to_json())
    assert job.fingerprint == spec.fingerprint() and job.created_at == clock.now

    clock.advance(5)
    lease = ledger.attempts.start(job.id, "worker-1", seconds=30)
    clock.advance(10)
    progress = Progress(stage="draw", step=2, total=3, metrics={"loss": 0.5}, seconds_left=4.0)
    lease, desired_state = ledger.attempts.renew(lease, seconds=30, progress=progress)
    assert desired_state == DesiredState.RUN and lease.expires_at == clock.now + 30
    ledger.attempts.say(lease, "a word is unknown", "warning")
    job = ledger.jobs.get(job.id)
    assert (job.state, job.stage, job.step, job.total, job.seconds_left) == (State.RUNNING, "draw", 2, 3, 4.0)
    assert job.metrics == {"loss": 0.5} and job.lease_holder == "worker-1"

    clock.advance(1)
    ledger.attempts.succeed(lease, metrics={"faces": 12}, artefacts={"grid.png": (100, "a" * 64)})
    job = ledger.jobs.get(job.id)
    assert (job.state, job.metrics, job.seconds_run) == (State.SUCCEEDED, {"faces": 12}, 11.0)
    assert job.lease_holder is None and job.ended_at == clock.now
    (artefact,) = ledger.attempts.artefacts(job.id)
    assert (artefact.name, artefact.num_bytes, artefact.sha256) == ("grid.png", 100, "a" * 64)
    (attempt,) = ledger.attempts.of(job.id)
    assert (attempt.outcome, attempt.holder, attempt.ended_at) == (State.SUCCEEDED, "worker-1", clock.now)
    assert texts(ledger, job.id) == [
        "queued: submitted",
        "running: attempt 1 by worker-1",
        "a word is unknown",
        "succeeded: done",
    ]


def test_a_lost_worker_cannot_speak_again(ledger: Ledger, clock: Clock):
    job = submit(ledger)
    stale = ledger.attempts.start(job, "worker-1", seconds=30)
    clock.advance(31)
    assert ledger.attempts.expire() == [job]
    assert ledger.jobs.get(job).state == State.LOST and ledger.attempts.expire() == []
    ledger.attempts.settle_lost(job, reason="worker-1 fell silent", retry_at=clock.now)
    fresh = ledger.attempts.start(job, "worker-2", seconds=30)
    assert fresh.fence > stale.fence
    for write in (
        lambda: ledger.attempts.renew(stale, seconds=30),
        lambda: ledger.attempts.say(stale, "hello"),
        lambda: ledger.attempts.succeed(stale),
        lambda: ledger.attempts.fail(stale, FailureKind.UNEXPECTED, "x", retry_at=None),
        lambda: ledger.attempts.release(stale, "x"),
    ):
        with pytest.raises(StaleLease, match=r"worker-1 on job \d+ \(token 1\) is over: it is held by worker-2 with token 2"):
            write()
    ledger.attempts.succeed(fresh)
    with pytest.raises(StaleLease, match="is succeeded now"):
        ledger.attempts.succeed(fresh)
    assert [attempt.outcome for attempt in ledger.attempts.of(job)] == [State.LOST, State.SUCCEEDED]


def test_a_late_renewal_is_accepted_while_nobody_else_has_the_job(ledger: Ledger, clock: Clock):
    lease = ledger.attempts.start(submit(ledger), "worker-1", seconds=30)
    clock.advance(100)
    ledger.attempts.renew(lease, seconds=30)
    assert ledger.attempts.expire() == []


def test_failures_are_capped_and_end_in_the_dead_letters(ledger: Ledger, clock: Clock):
    job = submit(ledger, max_failures=2)
    lease = ledger.attempts.start(job, "w", seconds=30)
    ledger.attempts.fail(lease, FailureKind.DISK_FULL, "no space", retry_at=clock.now + 60, counts=False)
    record = ledger.jobs.get(job)
    assert (record.state, record.num_failures, record.not_before) == (State.QUEUED, 0, clock.now + 60)
    lease = ledger.attempts.start(job, "w", seconds=30)
    ledger.attempts.fail(lease, FailureKind.OUT_OF_MEMORY, "too large", retry_at=None)
    record = ledger.jobs.get(job)
    assert (record.state, record.is_dead_letter, record.failure_kind) == (State.FAILED, True, FailureKind.OUT_OF_MEMORY)
    assert [attempt.outcome for attempt in ledger.attempts.of(job)] == [State.FAILED, State.FAILED]
    with pytest.raises(IllegalTransition, match="failed and cannot become running"):
        ledger.attempts.start(job, "w", seconds=30)

    assert ledger.jobs.retry(job) == State.QUEUED
    record = ledger.jobs.get(job)
    assert (record.num_failures, record.is_dead_letter, record.failure_kind, record.num_attempts) == (0, False, None, 2)


def test_idempotency_keys(ledger: Ledger):
    first = submit(ledger, 1, idempotency_key="k")
    (again,) = ledger.jobs.submit([submission(1, idempotency_key="k")])
    assert (again.id, again.is_new) == (first, False)
    assert submit(ledger, 1, idempotency_key="k", user="bob", out="/runs/bob") != first
    with pytest.raises(InputError, match=rf"key 'k' belongs to job {first} with another spec"):
        ledger.jobs.submit([submission(3), submission(2, idempotency_key="k")])
    assert len(ledger.jobs.recent()) == 2, "an error submits nothing"
    table = [submission(4, idempotency_key="t"), submission(4, idempotency_key="t"), submission(5)]
    one, two, three = ledger.jobs.submit(table)
    assert one.id == two.id != three.id and [one.is_new, two.is_new, three.is_new] == [True, False, True]
    with pytest.raises(InputError, match="another line of this table"):
        ledger.jobs.submit([submission(6, idempotency_key="u"), submission(7, idempotency_key="u")])


def test_a_second_key_of_a_job_that_has_not_ended_is_kept(ledger: Ledger):
    job = submit(ledger, 1)
    pair = [submission(2, idempotency_key="a"), submission(2, idempotency_key="b")]
    first, second = ledger.jobs.submit(pair)
    assert first.id == second.id and [first.is_new, second.is_new] == [True, False]
    for key in ("k", "l", "k"):
        assert submit(ledger, 1, idempotency_key=key) == job
    assert submit(ledger, 1, idempotency_key="k", user="bob") == job  # he asked for what ran already
    for number in (job, first.id):
        ledger.jobs.cancel(number)
    assert [submit(ledger, 1, idempotency_key=key) for key in ("k", "l")] == [job, job]
    assert submit(ledger, 1, idempotency_key="k", user="bob") == job
    assert [submit(ledger, 2, idempotency_key=key) for key in ("a", "b")] == [first.id, first.id]
    with pytest.raises(InputError, match=f"key 'l' belongs to job {job} with another spec"):
        submit(ledger, 3, idempotency_key="l")
    assert submit(ledger, 1) != job


@pytest.mark.parametrize("key", ["k", None])
def test_one_job_from_many_threads_is_one_job(ledger: Ledger, key: str | None):
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(submit(ledger, 1, idempotency_key=key))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_a_job_that_is_submitted_again_before_it_has_ended_is_the_same_one(ledger: Ledger, clock: Clock):
    first = submit(ledger, is_paused=True)
    again = [submission(), submission(1), submission(1)]
    assert [(answer.id - first, answer.is_new) for answer in ledger.jobs.submit(again)] == [(0, False), (1, True), (1, False)]
    assert len(texts(ledger, first)) == 1, "nothing happened to it"
    ledger.jobs.resume(first)
    assert submit(ledger) == first
    lease = ledger.attempts.start(first, "w", seconds=30)
    assert submit(ledger, user="ada", priority=3) == first
    clock.advance(31)
    ledger.attempts.expire()
    assert submit(ledger) == first
    ledger.attempts.settle_lost(first, reason="w fell silent", retry_at=clock.now)
    lease = ledger.attempts.start(first, "w", seconds=30)
    ledger.jobs.cancel(first)
    with pytest.raises(InputError, match=f"Job {first}, which is the same .* is being cancelled; submit this one when"):
        submit(ledger)
    ledger.attempts.release(lease, "stopped")
    assert submit(ledger) not in (first, first + 1)


def test_two_jobs_do_not_write_into_one_folder(ledger: Ledger):
    first = submit(ledger, is_paused=True)
    free, taken = submission(7), submission(8, out="/runs/table-0")
    end_it = rf"another folder \(--out\), or end that one with 'dreamkiln jobs cancel {first}'"
    with pytest.raises(InputError, match=f"Job {first}, which is paused and has another spec, .* /runs/table-0; .*{end_it}"):
        ledger.jobs.submit([free, taken])
    with pytest.raises(InputError, match=f"Job {first}, which is paused and has other settings"):
        submit(ledger, settings={"export": {"formats": ["stl"]}})
    with pytest.raises(InputError, match=r"Two jobs of this request, table-8 and table-9 .* /runs/here; give each"):
        ledger.jobs.submit([submission(8, out="/runs/here"), submission(9, out="/runs/here")])
    assert [job.id for job in ledger.jobs.recent()] == [first], "an error submits nothing"

    ledger.jobs.cancel(first)
    (second,) = ledger.jobs.submit([taken])
    with pytest.raises(IllegalTransition, match=f"Job {first} cannot be retried now: job {second.id} writes into"):
        ledger.jobs.retry(first)
    ledger.jobs.cancel(second.id)
    assert ledger.jobs.retry(first) == State.QUEUED


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"priority": 5000}, "priority is 5000"),
        ({"max_failures": 0}, "max_failures is 0"),
        ({"memory_bytes": -1}, "memory_bytes is -1"),
        ({"user": ""}, "user is ''"),
        ({"idempotency_key": "a\nb"}, "idempotency key"),
        ({"out": "/runs/\udcff"}, r"run folder is '/runs/\\udcff', which holds the character U\+DCFF at position 6"),
        ({"out": "/runs/a\0b"}, r"run folder is '/runs/a\\x00b', which holds the character U\+0000 at position 7"),
        ({"prior": "/priors/\ud800"}, r"prior is .* holds the character U\+D800 at position 8"),
    ],
)
def test_submissions_that_are_refused(values, sentence):
    with pytest.raises(InputError, match=sentence):
        submission(**values)


def test_cancel_pause_and_resume_of_waiting_and_running_jobs(ledger: Ledger):
    waiting, running = submit(ledger, 1), submit(ledger, 2)
    assert ledger.jobs.pause(waiting) == ledger.jobs.pause(waiting) == State.PAUSED
    with pytest.raises(IllegalTransition, match="paused and cannot become running"):
        ledger.attempts.start(waiting, "w", seconds=30)
    assert ledger.jobs.resume(waiting) == State.QUEUED
    assert ledger.jobs.cancel(waiting) == State.CANCELLED
    with pytest.raises(IllegalTransition, match="only a paused job can be resumed"):
        ledger.jobs.resume(waiting)

    lease = ledger.attempts.start(running, "w", seconds=30)
    assert ledger.jobs.pause(running) == State.RUNNING
    assert ledger.attempts.renew(lease, seconds=30)[1] == DesiredState.PAUSE
    assert ledger.jobs.resume(running) == State.RUNNING
    assert ledger.attempts.renew(lease, seconds=30)[1] == DesiredState.RUN
    ledger.jobs.pause(running)
    assert ledger.attempts.release(lease, "stopped") == State.PAUSED
    ledger.jobs.resume(running)
    lease = ledger.attempts.start(running, "w", seconds=30)
    ledger.jobs.pause(running)
    ledger.jobs.cancel(running)
    ledger.jobs.pause(running)
    ledger.attempts.set_desired_state(running, DesiredState.YIELD, "make room")
    assert ledger.attempts.renew(lease, seconds=30)[1] == DesiredState.CANCEL, "a cancelled job stays cancelled"
    assert ledger.attempts.release(lease, "stopped") == State.CANCELLED
    assert ledger.jobs.retry(running) == State.QUEUED
    with pytest.raises(IllegalTransition, match="it needs no retry"):
        ledger.jobs.retry(running)


def test_a_desired_state_outlives_the_worker_that_was_told(ledger: Ledger, clock: Clock):
    cancelled, paused, yielding = (submit(ledger, number) for number in range(3))
    leases = [ledger.attempts.start(job, "w", seconds=30) for job in (cancelled, paused, yielding)]
    ledger.jobs.cancel(cancelled)
    ledger.jobs.pause(paused)
    ledger.attempts.set_desired_state(yielding, DesiredState.YIELD, "make room")
    clock.advance(31)
    assert ledger.attempts.expire() == [yielding]
    states = [ledger.jobs.get(job).state for job in (cancelled, paused, yielding)]
    assert states == [State.CANCELLED, State.PAUSED, State.LOST]
    with pytest.raises(StaleLease):
        ledger.attempts.succeed(leases[0])


@pytest.mark.parametrize("is_retried", [True, False])
@pytest.mark.parametrize(("action", "state"), [("cancel", State.CANCELLED), ("pause", State.PAUSED)])
def test_what_was_wished_of_a_lost_job_stands(ledger: Ledger, clock: Clock, action: str, state: State, is_retried: bool):
    job = submit(ledger)
    ledger.attempts.start(job, "w", seconds=30)
    clock.advance(31)
    assert ledger.attempts.expire() == [job]
    getattr(ledger.jobs, action)(job)
    ledger.attempts.settle_lost(job, reason="w fell silent", retry_at=clock.now if is_retried else None)
    record = ledger.jobs.get(job)
    assert (record.state, record.num_failures, record.is_dead_letter) == (state, 0, False)


def test_yielding_goes_back_to_the_queue_without_a_failure(ledger: Ledger):
    job = submit(ledger)
    lease = ledger.attempts.start(job, "w", seconds=30)
    ledger.attempts.set_desired_state(job, DesiredState.YIELD, "makes room for job 9")
    assert ledger.attempts.release(lease, "made room") == State.QUEUED
    record = ledger.jobs.get(job)
    assert (record.num_failures, record.desired_state, record.not_before) == (0, DesiredState.RUN, record.created_at)
    assert [attempt.outcome for attempt in ledger.attempts.of(job)] == [State.QUEUED]
    assert "makes room for job 9" in texts(ledger, job)
    with pytest.raises(IllegalTransition, match="not running"):
        ledger.attempts.set_desired_state(job, DesiredState.YIELD, "again")


def test_a_search_looks_at_so_many_jobs_a_page_and_says_where_to_go_on(ledger: Ledger, monkeypatch):
    monkeypatch.setattr(job_table, "NUM_SEARCHED", 10)
    names = ["elephant" if number == 3 else f"table-{number}" for number in range(35)]
    made = ledger.jobs.submit([submission(number, name=name) for number, name in enumerate(names)])
    ids = [submitted.id for submitted in made]
    found, sizes, before = [], [], None
    while True:
        jobs, before = ledger.jobs.page(words="elephant", before_id=before)
        found += [job.id for job in jobs]
        sizes.append(len(jobs))
        if before is None:
            break
    assert found == [ids[3]] and sizes == [0, 0, 0, 1]
    assert ledger.jobs.page(words="nothing", before_id=10**15)[1] == ids[25]
    jobs, before = ledger.jobs.page(words="table", limit=4)  # as in a list, where there is enough
    assert ([job.id for job in jobs], before) == (ids[:30:-1], ids[31])
    assert ledger.jobs.page(limit=100) == (ledger.jobs.recent(limit=100), None)


def test_what_is_kept_of_the_counts_is_what_would_be_counted(ledger: Ledger):
    """Through every kind of change, by several threads at once, and after errors."""

    def counted() -> dict[str, int]:
        with Session(ledger._database.engine) as session:
            found = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
        return {state: found.get(state, 0) for state in State}

    assert ledger.jobs.counts() == counted()
    ids = [submitted.id for submitted in ledger.jobs.submit([submission(number) for number in range(40)])]

    def work(mine: list[int]) -> None:
        for number, job in enumerate(mine):
            if number % 4 == 0:
                ledger.jobs.cancel(job)
            elif number % 4 == 1:
                lease = ledger.attempts.start(job, "w", seconds=10)
                ledger.attempts.fail(lease, FailureKind.UNEXPECTED, "boom", retry_at=None if number % 8 == 1 else 5.0)
            elif number % 4 == 2:
                ledger.attempts.succeed(ledger.attempts.start(job, "w", seconds=10))
            with pytest.raises(IllegalTransition):
                ledger.jobs.resume(job)
            ledger.jobs.counts()

    threads = [threading.Thread(target=work, args=(ids[part::4],)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.jobs.counts() == counted() and ledger.jobs.counts()[State.SUCCEEDED] == 8
    with pytest.raises(RuntimeError), ledger._database.write() as session:
        move_job(session, find_job(session, ids[12]), State.PAUSED, "never", 0.0)
        raise RuntimeError
    assert ledger.jobs.counts() == counted()
    ended = ledger.jobs.ended_before(10**12)
    assert ledger.jobs.forget(ended, before=10**12) == len(ended) > 0
    ledger.jobs.submit([submission(100, is_paused=True)])
    assert ledger.jobs.counts() == counted() and ledger.jobs.counts()[State.PAUSED] == 1


def test_lists_counts_and_pages(ledger: Ledger):
    jobs = [submission(number, user="ada" if number % 2 else "bob") for number in range(10)]
    ids = [submitted.id for submitted in ledger.jobs.submit(jobs)]
    ledger.jobs.cancel(ids[0])
    assert ledger.jobs.counts() | {State.QUEUED: 9, State.CANCELLED: 1} == ledger.jobs.counts()
    assert set(ledger.jobs.counts()) == set(State)
    page = ledger.jobs.recent(limit=4)
    assert [job.id for job in page] == ids[:5:-1]
    assert [job.id for job in ledger.jobs.recent(limit=100, before_id=page[-1].id)] == ids[5::-1]
    assert {job.user for job in ledger.jobs.recent(user="ada")} == {"ada"}
    assert [job.id for job in ledger.jobs.recent(states=[State.CANCELLED])] == ids[:1]
    waiting = ledger.jobs.waiting()
    assert [job.id for job in waiting] == ids[1:] and waiting[0].memory_bytes == jobs[1].memory_bytes
    ledger.attempts.start(ids[3], "w", seconds=10)
    ledger.jobs.pause(ids[3])
    assert ids[3] not in [job.id for job in ledger.jobs.waiting()] and ledger.jobs.desired_states() == {
        ids[3]: DesiredState.PAUSE
    }


def test_leases_are_renewed_together_and_the_stale_one_alone_is_refused(ledger: Ledger, clock: Clock):
    leases = [ledger.attempts.start(submit(ledger, number), "w", seconds=30) for number in range(3)]
    ledger.jobs.cancel(leases[0].job_id)
    ledger.attempts.succeed(leases[1])
    before, (changes, moves) = clock(), ledger.revision()
    clock.advance(10)
    moved = Progress(stage="fit", step=3, total=9, metrics={"loss": 0.5})
    found = ledger.attempts.renew_all({leases[0]: None, leases[1]: None, leases[2]: moved}, seconds=30)
    assert isinstance(found[leases[1]], StaleLease) and "is over" in str(found[leases[1]])
    assert [found[lease][1] for lease in (leases[0], leases[2])] == [DesiredState.CANCEL, DesiredState.RUN]  # type: ignore[index]
    job = ledger.jobs.get(leases[2].job_id)
    assert (job.step, job.metrics, job.lease_expires_at) == (3, {"loss": 0.5}, before + 40)
    now = ledger.revision()
    assert now[0] == changes and now[1] != moves
    ledger.jobs.pause(leases[2].job_id)
    assert ledger.revision()[0] != changes and ledger.revision()[1] == now[1]


def test_a_list_by_anything_is_what_reading_all_of_it_would_find(ledger: Ledger):
    users, kinds = ("ada", "bob", None), ("images", "text-to-3d", None)
    jobs = [submission(number, user=users[number % 2], kind=kinds[number // 2 % 2]) for number in range(60)]
    ids = [submitted.id for submitted in ledger.jobs.submit(jobs)]
    for number, job in enumerate(ids):
        if number % 3 == 0:
            ledger.jobs.pause(job)
        elif number % 5 == 0:
            ledger.attempts.succeed(ledger.attempts.start(job, "w", seconds=10))
    everything = ledger.jobs.recent(limit=1000)
    assert [job.id for job in everything] == ids[::-1]
    states = ((), (State.QUEUED,), (State.SUCCEEDED, State.PAUSED), (State.LOST,))
    for user, kind, some, before in itertools.product(users, kinds, states, (None, ids[31])):
        expected = [
            job
            for job in everything
            if user in (job.user, None) and kind in (job.kind, None) and (not some or job.state in some)
            if before is None or job.id < before
        ]
        filters = {"user": user, "kind": kind, "states": some}
        assert ledger.jobs.recent(**filters, before_id=before, limit=7) == expected[:7], filters
        assert ledger.jobs.page(**filters, before_id=before, words="table", limit=100)[0] == expected, filters


def test_a_round_reads_the_heads_of_the_queues_alone(ledger: Ledger, monkeypatch, clock: Clock):
    keys = [(user, priority, prior) for user in ("ada", "bob", "eva") for priority in (-1, 0, 7) for prior in ("a", "toybox")]
    jobs = [submission(n, user=k[0], priority=k[1], prior=k[2]) for n, k in enumerate(keys * 4)]
    ids = [submitted.id for submitted in ledger.jobs.submit(jobs)]
    lease = ledger.attempts.start(ids[0], "w", seconds=10)
    ledger.attempts.fail(lease, FailureKind.UNEXPECTED, "boom", retry_at=clock() + 50)  # goes to its queue's end
    assert [job.id for job in ledger.jobs.waiting(2)] == [*ids[1 : 2 * len(keys)], ids[2 * len(keys)]]
    assert [job.id for job in ledger.jobs.waiting()] == ids and ledger.jobs.num_live("ada") == 24
    monkeypatch.setattr("jobs.ledger.job_table.MAX_QUEUES", len(keys) - 1)
    assert [job.id for job in ledger.jobs.waiting(2)] == ids


def test_usage_counts_the_seconds_inside_the_window(ledger: Ledger, clock: Clock):
    begin = clock.now
    lease = ledger.attempts.start(submit(ledger, 1, user="ada"), "w", seconds=1000)
    clock.advance(100)
    ledger.attempts.succeed(lease)
    ledger.attempts.start(submit(ledger, 2, user="bob"), "w", seconds=1000)
    clock.advance(50)
    assert ledger.jobs.usage(begin) == {"ada": 100.0, "bob": 50.0}
    assert ledger.jobs.usage(begin + 60) == {"ada": 40.0, "bob": 50.0}
    assert ledger.jobs.usage(begin + 120) == {"bob": 30.0}
    assert ledger.jobs.mean_run(begin) == 100.0 and ledger.jobs.mean_run(begin + 100) is None
    ledger.jobs.set_weight("bob", 2.5)
    assert ledger.jobs.weights() == {"ada": 1.0, "bob": 2.5}
    with pytest.raises(InputError, match="weight of bob is 0"):
        ledger.jobs.set_weight("bob", 0)


def test_days_in_which_nobody_noticed_a_loss_are_not_billed(ledger: Ledger, clock: Clock):
    begin = clock.now
    lease = ledger.attempts.start(submit(ledger, user="ada"), "w", seconds=30)
    clock.advance(20)
    ledger.attempts.renew(lease, seconds=30)
    clock.advance(63 * 3600)
    assert ledger.attempts.expire() == [lease.job_id]
    assert ledger.jobs.usage(begin) == {"ada": 50.0} and ledger.jobs.mean_run(begin) == 50.0
    (attempt,) = ledger.attempts.of(lease.job_id)
    job = ledger.jobs.get(lease.job_id)
    assert attempt.ended_at == begin + 50 and (job.seconds_run, job.updated_at) == (50.0, clock.now)


def test_an_attempt_of_an_earlier_owner_lasted_until_the_next_one_came_at_most(url: str, clock: Clock):
    with Ledger.own(url, clock=clock) as ledger:
        lease = ledger.attempts.start(submit(ledger), "w", seconds=180)
    clock.advance(10)
    with Ledger.own(url, clock=clock) as ledger:
        assert ledger.attempts.expire() == [lease.job_id] and ledger.jobs.get(lease.job_id).seconds_run == 10.0


def test_whatever_a_failing_library_says_can_be_written_down(ledger: Ledger, clock: Clock):
    said, kept = "cannot read \udcff\0.png 🍄", r"cannot read \udcff\x00.png 🍄"
    job = submit(ledger)
    lease = ledger.attempts.start(job, "w", seconds=30)
    ledger.attempts.say(lease, said, "warning")
    ledger.attempts.fail(lease, FailureKind.UNEXPECTED, said, retry_at=clock.now)
    assert ledger.jobs.get(job).reason == f"to be retried: {kept}" and texts(ledger, job)[-2:] == [
        kept,
        f"queued: to be retried: {kept}",
    ]
    lease = ledger.attempts.start(job, "w", seconds=30)
    ledger.attempts.fail(lease, FailureKind.UNEXPECTED, said, retry_at=None)
    assert ledger.jobs.get(job).reason == ledger.attempts.of(job)[-1].reason == kept


def test_groups(ledger: Ledger):
    best = NewGroup(name="a red table, best of 3", num_wanted=1, metric="r_precision")
    submitted = ledger.jobs.submit([submission(n) for n in range(3)], group=best)
    ids, (group,) = [answer.id for answer in submitted], {answer.group_id for answer in submitted}
    assert [found.id for found in ledger.groups.undecided()] == [group]
    assert {job.id for job in ledger.jobs.recent(group_id=group)} == set(ids)
    ledger.groups.decide(group, [ids[1]], "r_precision 0.9")
    ledger.groups.decide(group, [ids[0]], "too late")
    assert [ledger.jobs.get(job).is_winner for job in ids] == [False, True, False]
    assert not ledger.groups.undecided() and ledger.groups.get(group).decided_at == ledger.now()
    assert "won in a red table, best of 3: r_precision 0.9" in texts(ledger, ids[1])
    with pytest.raises(InputError, match="no group 99"):
        ledger.groups.get(99)
    with pytest.raises(InputError, match="0 winners are wanted of group 'none'; give 1 to 1,000,000"):
        NewGroup(name="none", num_wanted=0)
    with pytest.raises(InputError, match=r"name is .* holds the character U\+D800"):
        NewGroup(name="best of \ud800")


def test_a_group_that_is_submitted_again_is_the_same_one(ledger: Ledger):
    best, table = NewGroup(name="best of 3"), [submission(n, idempotency_key=f"k seed {n}") for n in range(3)]
    first = ledger.jobs.submit(table, group=best)
    again = ledger.jobs.submit(table, group=best)
    assert [(answer.id, answer.group_id) for answer in again] == [(answer.id, answer.group_id) for answer in first]
    (group,) = ledger.groups.undecided()
    assert {answer.group_id for answer in first} == {group.id} and not any(answer.is_new for answer in again)
    ledger.jobs.submit([submission(7)])
    for jobs, other in [
        ([*table, submission(3)], best),
        (table, NewGroup(name="best of 3", metric="volume")),
        ([*table, submission(7)], best),
        ([submission(7)], best),
    ]:
        with pytest.raises(InputError, match="of group 'best of 3' were submitted before, outside such a group"):
            ledger.jobs.submit(jobs, group=other)
    with pytest.raises(InputError, match="belongs to another line"):
        ledger.jobs.submit([submission(8, idempotency_key="u"), submission(9, idempotency_key="u")], group=best)
    assert ledger.groups.undecided() == [group] and len(ledger.jobs.recent()) == 4, "what is refused leaves nothing"


def test_a_job_that_does_not_exist(ledger: Ledger):
    for number in (7, 0, -1, 10**30):
        with pytest.raises(InputError, match=f"no job {number}; none has been submitted yet"):
            ledger.jobs.get(number)
    last = submit(ledger)
    with pytest.raises(InputError, match=f"the last one is {last}"):
        ledger.jobs.cancel(last + 1)


def test_a_reader_reads_and_does_not_write(url: str, ledger: Ledger, clock: Clock):
    job = submit(ledger)
    with Ledger.read(url, clock=clock) as reader:
        assert reader.jobs.get(job).state == State.QUEUED
        with pytest.raises(OwnershipError, match="opened for reading"):
            reader.jobs.cancel(job)


def test_a_table_of_jobs_in_one_transaction(ledger: Ledger):
    table = [submission(number) for number in range(600)]
    ids = [submitted.id for submitted in ledger.jobs.submit(table)]
    assert len(set(ids)) == 600 and [job.id for job in ledger.jobs.waiting()] == ids
    assert [(again.id, again.is_new) for again in ledger.jobs.submit(table)] == [(job, False) for job in ids]


def test_ended_jobs_are_forgotten_with_all_that_is_theirs(ledger: Ledger, clock: Clock):
    def end(number: int) -> None:
        lease = ledger.attempts.start(number, "w", seconds=30)
        ledger.shards.record(lease, [ShardRecord(index=0, num_rows=5, num_failed=0, seconds=1.0)])
        ledger.attempts.succeed(lease, artefacts={"mesh.glb": (10, "0" * 64)})

    old, live = submit(ledger, 1, idempotency_key="k"), submit(ledger, 2)
    assert submit(ledger, 1, idempotency_key="further") == old
    decided = [answer.id for answer in ledger.jobs.submit([submission(3), submission(4)], group=NewGroup(name="done"))]
    open_ones = [answer.id for answer in ledger.jobs.submit([submission(5), submission(6)], group=NewGroup(name="open"))]
    for number in (old, *decided, *open_ones):
        end(number)
    groups = {group.name: group.id for group in ledger.groups.undecided()}
    ledger.groups.decide(groups["done"], decided[:1], "it was first")
    clock.advance(100)
    newest = submit(ledger, 7)
    ledger.jobs.cancel(newest)
    clock.advance(10)
    assert ledger.jobs.ended_before(clock() - 200) == []
    assert ledger.jobs.ended_before(clock() - 50) == [old, *decided]
    assert ledger.jobs.ended_before(clock() - 50, limit=1) == [old] and ledger.jobs.ended_before(clock(), user="ada") == []
    assert ledger.jobs.forget(range(1, 100), before=clock()) == 3
    assert [job.id for job in ledger.jobs.recent()] == [newest, *reversed(open_ones), live]
    with pytest.raises(InputError, match=f"There is no job {old}"):
        ledger.jobs.get(old)
    assert ledger.attempts.of(old) == [] and ledger.jobs.events(old) == [] and ledger.attempts.artefacts(old) == []
    with pytest.raises(InputError, match="no group"):
        ledger.groups.get(groups["done"])
    assert [group.name for group in ledger.groups.undecided()] == ["open"]
    assert submit(ledger, 1, idempotency_key="k") > newest  # a key is forgotten with its job, a number is never given again
