"""Best of N seeds: N jobs of one prompt form a group, and k results are enough.

Without a metric the first k to finish win and the others are cancelled: the way to a result soonest. With one, all run to
their end and the k best win: the way to the best result. In both, a group in which fewer than k succeed is decided by those
that did. Where the metric is the prior's own score, a try that is far behind k others while it is under way is ended early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.states import TERMINAL, State

__all__ = ["HOPELESS", "GroupOutcome", "Member", "hopeless", "settle"]

HOPELESS = {"prior_score_25": 0.1, "prior_score_50": 0.1}
"""By how much less of the loss the sentence may explain in a try than in a better one, at the same step of their fits.

Of 48 tries of twelve sentences, those that had the highest score in the end were at most 0.081 and 0.078 behind
(`benchmarks.best_of`).
"""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A job of the group, as far as it has come."""

    id: int
    state: State
    ended_at: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupOutcome:
    """winners: best or first one first. cancel: jobs that are needed no more."""

    winners: tuple[int, ...]
    cancel: tuple[int, ...]
    reason: str


def settle(
    members: Sequence[Member], *, num_wanted: int, metric: str | None = None, largest_is_best: bool = True
) -> GroupOutcome | None:
    """The group's outcome, or None while it is open."""
    succeeded = [member for member in members if member.state == State.SUCCEEDED]
    unfinished = [member for member in members if member.state not in TERMINAL]
    if metric is None:
        if unfinished and len(succeeded) < num_wanted:
            return None
        first = sorted(succeeded, key=lambda member: (member.ended_at or 0.0, member.id))[:num_wanted]
        reason = f"the first {len(first)} of {len(members)} to finish" if first else "none of them succeeded"
        return GroupOutcome(tuple(m.id for m in first), tuple(m.id for m in unfinished), reason)
    if unfinished:
        return None
    sign = -1 if largest_is_best else 1
    best = sorted(succeeded, key=lambda member: (sign * _value(member, metric, largest_is_best), member.id))[:num_wanted]
    if not best:
        return GroupOutcome((), (), "none of them succeeded")
    reason = f"{metric} {_value(best[0], metric, largest_is_best):.4g}, the best of {len(members)}"
    return GroupOutcome(tuple(member.id for member in best), (), reason)


def hopeless(members: Sequence[Member], *, num_wanted: int) -> dict[int, str]:
    """The unfinished members that the prior's score will not choose, each with the reason.

    Compared are tries that have come to the same step, where the sentence explains something of k of them; one that failed
    since is no rival.
    """
    found: dict[int, str] = {}
    rivals = [member for member in members if member.state == State.SUCCEEDED or member.state not in TERMINAL]
    for name, margin in HOPELESS.items():
        scores = {member.id: float(member.metrics[name]) for member in rivals if name in member.metrics}
        best = sorted(scores.values(), reverse=True)
        if len(best) <= num_wanted or best[num_wanted - 1] <= 0:
            continue
        for member in rivals:
            score = scores.get(member.id, math.inf)
            if member.state not in TERMINAL and score < best[num_wanted - 1] - margin:
                found.setdefault(member.id, f"{name} {score:.3g}, where a better try had {best[num_wanted - 1]:.3g}")
    return found


def _value(member: Member, metric: str, largest_is_best: bool) -> float:
    """A job without the metric, or with a useless one, ranks last."""
    value = member.metrics.get(metric)
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return -math.inf if largest_is_best else math.inf
