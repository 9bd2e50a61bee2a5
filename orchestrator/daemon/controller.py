"""The orchestrator's loop body: the ledger on one side, workers on the other, policies in between.

`tick` is one round and never blocks, so that tests advance it by hand with workers of their own.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from jobs.events import Message, Progress
from jobs.ledger import JobRecord, Ledger, StaleLease
from jobs.specs import BEST_METRIC
from jobs.states import DesiredState, FailureKind, IllegalTransition, State
from orchestrator.daemon.job_log import JobLog
from orchestrator.daemon.outcomes import retry_decision
from orchestrator.daemon.prior_sizes import PriorSizes
from orchestrator.daemon.queue_view import view_of
from orchestrator.daemon.reports import Failed, Report, ShardsCommitted, Stopped, Succeeded, Workers
from orchestrator.daemon.retention import Retention
from orchestrator.daemon.running import Running, Timing
from orchestrator.host.state_folder import StateFolder
from orchestrator.scheduling import NUM_LOOKAHEAD, Capacity, Policy, PriorView, schedule
from orchestrator.scheduling.groups import Member, hopeless, settle

__all__ = ["Controller"]


class Controller:
    """Owns nothing but what runs now; everything else is in the ledger.

    Args:
        ledger: owned by this process; its clock is ours.
        workers: where jobs run. capacity: how many, in how much memory.
        prior_replicas: copies of each prior that the workers load.
        keep_seconds: ended jobs are forgotten after so long; 0: never.
        max_running: tells by user how many jobs of theirs may be at work at once, now.
    """

    def __init__(
        self,
        ledger: Ledger,
        workers: Workers,
        capacity: Capacity,
        folder: StateFolder,
        *,
        policy: Policy | None = None,
        timing: Timing | None = None,
        prior_replicas: int = 1,
        keep_seconds: float = 0.0,
        max_running: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self.capacity = capacity
        self.wake = threading.Event()
        """Set by whoever changed the ledger, so that the next round comes at once."""
        self.has_request = threading.Event()
        """Set before `wake` by whoever asks something of a job: a round that is under way breaks off for it."""
        self.priors: Sequence[PriorView] = ()
        """Those that were resident at the last round of scheduling."""
        self.longest_wait_seconds = 0.0
        """Of the job that has been ready to start longest, as of the last round of scheduling."""
        self._ledger, self._workers, self._folder = ledger, workers, folder
        self._max_running = max_running
        self._policy, self._timing = policy or Policy(), timing or Timing()
        self._prior_sizes = PriorSizes(ledger, replicas=prior_replicas, are_on_gpus=bool(capacity.gpus))
        self._running: dict[int, Running] = {}
        self._last_starts: dict[tuple[str, int], float] = {}
        self._retention, self._keep_seconds = Retention(ledger, folder), keep_seconds
        self._heartbeat_at = self._schedule_at = self._prune_at = 0.0
        self._waiting: dict[int, str] = {}
        self._is_closing = False

    def why_waiting(self, job: JobRecord) -> str:
        """Why a queued job does not start, as of the last round of scheduling; empty where others are before it."""
        if job.state == State.QUEUED and job.not_before > self._ledger.now():
            return f"waits for its retry: {job.reason}"
        return self._waiting.get(job.id, "")

    def tick(self, *, is_woken: bool = False) -> None:
        """One round: control requests, signs of life, ends, losses, groups, starts.

        On a slow disk ten ends and ten starts take a second, so a round breaks off where a request comes or is to be enforced:
        who is not polled is polled first in the next one, and who is not started is planned for again.

        Raises:
            LedgerError: the database does not answer; the next round may succeed.
            OwnershipError: another orchestrator has taken the ledger over; this one must end.
        """
        now = self._ledger.now()
        if now >= self._heartbeat_at:
            self._ledger.heartbeat()
            self._heartbeat_at = now + self._timing.heartbeat
        is_due = is_woken or self.has_request.is_set() or now >= self._schedule_at
        self.has_request.clear()
        if is_due:
            self._apply_control_requests()
        for running in self._in_turn():
            self._poll(running)
            if self._must_yield:
                break
        self._renew()
        self._enforce_stops()
        if is_due and not self.has_request.is_set():
            self._schedule_at = now + self._timing.schedule
            self._reap_expired_leases()
            self._settle_groups()
            if not self._is_closing:
                self._schedule()
            self._share_priors()
            self._forget_old(now)

    @property
    def _must_yield(self) -> bool:
        """Somebody asks something, or a worker that was told to stop has had its time."""
        now = self._ledger.now()
        return self.has_request.is_set() or any(r.kill_at is not None and now >= r.kill_at for r in self._running.values())

    def _in_turn(self) -> list[Running]:
        """Those that were told to stop, then the others, those first that have not been polled for longest."""
        return sorted(self._running.values(), key=lambda running: (running.told == DesiredState.RUN, running.polled_at))

    def close(self) -> None:
        """Start nothing more, and ask everything that runs to stop; `num_running` says when it has."""
        self._is_closing = True
        for running in self._running.values():
            self._tell(running, DesiredState.YIELD, at_checkpoint=False)

    @property
    def num_running(self) -> int:
        """Jobs at work."""
        return len(self._running)

    def kill_all(self) -> None:
        """End what still runs; the ledger finds it lost and starts it again."""
        for running in self._running.values():
            running.worker.kill()
        self._running.clear()

    # What workers say

    def _poll(self, running: Running) -> None:
        running.polled_at = self._ledger.now()
        reports = running.worker.poll()
        if reports is None:
            return
        running.pending.extend(reports)  # what the ledger cannot take now is offered again in the next round
        while running.pending:
            if self._take(running, running.pending[0]):
                return
            running.pending.popleft()
        running.answered_at = running.polled_at

    def _take(self, running: Running, report: Report) -> bool:
        """True when the job is no longer ours."""
        try:
            match report:
                case Progress():
                    running.progress = report
                    running.log.progress(report)
                    return False
                case Message(text=text, level=level):
                    running.log.message(report)
                    if level != "log":
                        self._ledger.attempts.say(running.lease, text, level)
                    return False
                case ShardsCommitted(shards=shards):
                    self._ledger.shards.record(running.lease, shards)
                    return False
                case Succeeded(metrics=metrics, artefacts=artefacts):
                    self._ledger.attempts.succeed(running.lease, metrics=metrics, artefacts=artefacts)
                    running.log.write("succeeded")
                case Stopped(reason=reason):
                    state = self._ledger.attempts.release(running.lease, reason)
                    running.log.write(f"{state}: {reason}")
                case Failed():
                    self._fail(running, report)
        except StaleLease as error:
            running.log.write(f"warning: {error}")
        self._forget(running)
        return True

    def _fail(self, running: Running, failed: Failed) -> None:
        job = self._ledger.jobs.get(running.job.id)
        if running.told != DesiredState.RUN and failed.kind == FailureKind.WORKER_LOST:
            self._ledger.attempts.release(running.lease, failed.reason)
            return
        decision = retry_decision(self._ledger, job, failed.kind, since=running.started_at)
        reason = failed.reason if decision.retry_at is None else f"{failed.reason} ({decision.reason})"
        running.log.write(f"failed: {decision.reason}\n{failed.reason}\n{failed.details}")
        self._ledger.attempts.fail(running.lease, failed.kind, reason, retry_at=decision.retry_at, counts=decision.counts)

    def _renew(self) -> None:
        """Where it is time for one of them, the leases of all that have answered lately, in one transaction."""
        now = self._ledger.now()
        alive = [one for one in self._running.values() if one.renewed_at < one.answered_at >= now - self._timing.renew]
        if not any(now - one.renewed_at >= self._timing.renew for one in alive):
            return
        due = {running.lease: running for running in alive}
        progress = {lease: running.progress for lease, running in due.items()}
        found = self._ledger.attempts.renew_all(progress, seconds=self._timing.lease)
        for lease, answer in found.items():
            running = due[lease]
            if isinstance(answer, StaleLease):
                running.log.write(f"warning: {answer}")
                running.worker.kill()
                self._forget(running)
                continue
            running.lease, desired_state = answer
            running.progress, running.renewed_at = None, now
            self._apply(running, desired_state)

    # What users ask

    def _apply_control_requests(self) -> None:
        desired = self._ledger.jobs.desired_states() if self._running else {}
        for running in list(self._running.values()):
            self._apply(running, desired.get(running.job.id, running.told))

    def _apply(self, running: Running, desired_state: DesiredState) -> None:
        if self._is_closing or desired_state == running.told or desired_state == DesiredState.RUN:
            return  # a stop that is under way is not taken back: `release` queues the job again
        self._tell(running, desired_state, at_checkpoint=desired_state == DesiredState.YIELD)

    def _tell(self, running: Running, desired_state: DesiredState, *, at_checkpoint: bool) -> None:
        running.told = desired_state
        running.worker.stop(at_checkpoint=at_checkpoint)
        running.kill_at = None if at_checkpoint else self._ledger.now() + self._timing.stop

    def _enforce_stops(self) -> None:
        now = self._ledger.now()
        for running in list(self._running.values()):
            if running.kill_at is not None and now >= running.kill_at:
                running.worker.kill()
                self._take(running, Stopped("Stopped in the middle of a step; it goes on from its last checkpoint."))

    # What was lost

    def _reap_expired_leases(self) -> None:
        for job_id in self._ledger.attempts.expire():
            running = self._running.pop(job_id, None)
            if running is not None:
                running.log.write("warning: the worker gave no sign of life and was given up")
                running.worker.kill()
        for lost in self._ledger.jobs.recent(states=[State.LOST], limit=10_000):
            attempt = self._ledger.attempts.of(lost.id)[-1]
            decision = retry_decision(self._ledger, lost, FailureKind.WORKER_LOST, since=attempt.started_at)
            self._ledger.attempts.settle_lost(
                lost.id, reason=f"{attempt.reason} ({decision.reason})", retry_at=decision.retry_at, counts=decision.counts
            )

    # Groups

    def _settle_groups(self) -> None:
        for group in self._ledger.groups.undecided():
            jobs = self._ledger.jobs.recent(group_id=group.id, limit=10_000)
            members = [Member(id=job.id, state=job.state, ended_at=job.ended_at, metrics=job.metrics) for job in jobs]
            if group.metric == BEST_METRIC:
                asked = {job.id for job in jobs if job.desired_state == DesiredState.CANCEL}
                for job_id, reason in hopeless(members, num_wanted=group.num_wanted).items():
                    if job_id not in asked:
                        self._ledger.jobs.cancel(job_id, f"hopeless: {reason}")
            outcome = settle(members, num_wanted=group.num_wanted, metric=group.metric, largest_is_best=group.largest_is_best)
            if not members or outcome is None:
                continue
            for job_id in outcome.cancel:
                self._ledger.jobs.cancel(job_id, f"not needed: {outcome.reason}")
            self._ledger.groups.decide(group.id, outcome.winners, outcome.reason)
            self.wake.set()

    # Who runs next

    def _schedule(self) -> None:
        now, priors, at_work = self._ledger.now(), self._workers.priors(), self._running.values()
        self.priors = priors
        if not self._ledger.jobs.counts()[State.QUEUED]:
            self.longest_wait_seconds, self._waiting = 0.0, {}
            return
        # Of each user, priority and prior no round starts or looks past more.
        queued = self._ledger.jobs.waiting(self.capacity.num_workers + NUM_LOOKAHEAD)
        self.longest_wait_seconds = max([0.0, *(now - job.not_before for job in queued)])
        needed = {job.prior for job in queued} | {prior.source for prior in priors} | {running.job.prior for running in at_work}
        needed.discard("")  # jobs without a prior
        view = view_of(
            self._ledger,
            queued,
            at_work,
            capacity=self.capacity,
            priors=priors,
            prior_bytes=self._prior_sizes.of(needed),
            gpu_needs=self._prior_sizes.on_gpu(needed),
            usage_window=self._timing.usage_window,
            last_starts=self._last_starts,
            max_running=self._max_running() if queued else {},
        )
        plan = schedule(view, self._policy)
        self._waiting = plan.wait
        if plan.refuse:
            self.wake.set()
        for job_id, reason in plan.refuse.items():
            with contextlib.suppress(IllegalTransition):  # cancelled or paused a moment ago
                lease = self._ledger.attempts.start(job_id, "the scheduler", seconds=self._timing.lease)
                self._ledger.attempts.fail(lease, FailureKind.BAD_INPUT, reason, retry_at=None)
        for source in plan.evict:
            self._workers.evict(source)
        for job_id, reason in plan.start.items():
            self._start(job_id, reason)
            if self._must_yield or self._ledger.now() - now > self._timing.round:
                self.wake.set()
                return
        for job_id, reason in plan.make_room.items():
            with contextlib.suppress(IllegalTransition):  # given up a moment ago, as its user asked it to stop
                self._ledger.attempts.set_desired_state(job_id, DesiredState.YIELD, f"makes room: {reason}")
                self._apply(self._running[job_id], DesiredState.YIELD)

    def _start(self, job_id: int, reason: str) -> None:
        job = self._ledger.jobs.get(job_id)  # first: once the job is leased, nothing may fail before its worker begins
        try:
            lease = self._ledger.attempts.start(job_id, f"worker of job {job_id}", seconds=self._timing.first_lease)
        except IllegalTransition:
            return  # cancelled or paused a moment ago
        log = JobLog(self._folder, job_id, self._ledger.now)
        log.write(f"attempt {job.num_attempts + 1} of {job.name} in {job.out} ({reason})")
        now = self._ledger.now()
        self._last_starts[job.user, job.priority] = now
        self._running[job_id] = Running(job, lease, self._workers.start(job), log, started_at=now)

    def _share_priors(self) -> None:
        """Each job's share of its prior is its user's weight, divided among the user's jobs at work."""
        if not self._running:
            return
        now, weights = self._ledger.now(), self._ledger.jobs.weights()
        num_jobs = Counter(running.job.user for running in self._running.values())
        for running in self._running.values():
            user = running.job.user
            weight = weights.get(user, 1.0) / num_jobs[user]
            if weight != running.weight or now - running.weighed_at >= self._timing.weigh:
                running.worker.set_weight(weight)
                running.weight, running.weighed_at = weight, now

    def _forget_old(self, now: float) -> None:
        """Some jobs a round, so that no round is long."""
        if self._keep_seconds and now >= self._prune_at:
            pruned = self._retention.prune(seconds=self._keep_seconds, limit=self._timing.prune_jobs)
            self._prune_at = now + (0.0 if len(pruned.jobs) == self._timing.prune_jobs else self._timing.prune)

    def _forget(self, running: Running) -> None:
        self._running.pop(running.job.id, None)
        running.worker.kill()
        self.wake.set()
