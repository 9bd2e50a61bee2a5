"""What follows a failed attempt: when to try again, or the dead letters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from jobs.states import FailureKind

__all__ = ["RULES", "RetryDecision", "Rule", "after_failure"]

JITTER = 0.2


@dataclass(frozen=True)
class Rule:
    """How one kind of failure is retried.

    Args:
        first_seconds: the delay after the first failure, doubled with each further one up to `longest_seconds`.
        counts: towards the cap on failures; what does not count is retried for ever.
        why: one clause for the user.
    """

    first_seconds: float
    longest_seconds: float
    counts: bool
    why: str


RULES: dict[FailureKind, Rule | None] = {
    # The same input fails in the same way, and the same seed collapses in the same way.
    FailureKind.BAD_INPUT: None,
    FailureKind.COLLAPSED: None,
    FailureKind.PRIOR_DIED: Rule(2, 300, True, "another copy of the prior may answer"),
    FailureKind.OUT_OF_MEMORY: Rule(30, 900, True, "other jobs may have left by then"),
    FailureKind.DISK_FULL: Rule(60, 60, False, "waiting for space on the disk"),
    FailureKind.WORKER_LOST: Rule(1, 60, True, "it goes on from its checkpoint"),
    FailureKind.PLACE_IN_USE: Rule(2, 60, False, "waiting for the process that writes there to end"),
    FailureKind.UNEXPECTED: Rule(5, 300, True, "it may have been an accident"),
}


@dataclass(frozen=True)
class RetryDecision:
    """retry_at: seconds since 1970, None: never. counts: towards the cap. reason: for the user."""

    retry_at: float | None
    counts: bool
    reason: str


def after_failure(
    kind: FailureKind, *, job_id: int, num_failures: int, max_failures: int, now: float, has_advanced: bool = False
) -> RetryDecision:
    """Decide after a failure.

    Args:
        num_failures: that counted before this one.
        has_advanced: the attempt left a later checkpoint than it found. Such an attempt does not count: a long job may
            survive any number of restarts, while one that brings its worker down at once is given up soon.
    """
    rule = RULES[kind]
    if rule is None:
        return RetryDecision(None, True, f"{kind}: the same job would fail again")
    counts = rule.counts and not has_advanced
    if counts and num_failures + 1 >= max_failures:
        return RetryDecision(None, True, f"{kind}, after {num_failures + 1} failed attempts; 'jobs retry' tries again")
    delay = min(rule.longest_seconds, rule.first_seconds * 2 ** min(num_failures, 30))
    delay *= 1 + JITTER * _spread(job_id, num_failures)
    return RetryDecision(now + delay, counts, f"{kind}, tried again in {delay:.0f} s: {rule.why}")


def _spread(job_id: int, num_failures: int) -> float:
    """A number in [0, 1) that differs from job to job, so that a thousand do not come back at one instant."""
    digest = hashlib.sha256(f"{job_id}/{num_failures}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
