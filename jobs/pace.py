"""How long the rest will take, from how long the last steps took."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Pace"]


class Pace:
    """An exponential mean of seconds per step that forgets a slow first step within a dozen others.

    Args:
        memory: share of the old mean that one more step keeps.
        clock: seconds, monotonic; tests give their own.
    """

    def __init__(self, *, memory: float = 0.9, clock: Callable[[], float] = time.monotonic) -> None:
        self._memory = memory
        self._clock = clock
        self._last = clock()
        self._weight = 0.0
        self._seconds = 0.0

    def lap(self, num_steps: int = 1, *, left: int) -> float:
        """Note that `num_steps` more are done; seconds for the `left` ones."""
        now = self._clock()
        per_step, self._last = (now - self._last) / num_steps, now
        keep = self._memory**num_steps
        self._seconds = keep * self._seconds + (1 - keep) * per_step
        self._weight = keep * self._weight + (1 - keep)
        return left * self._seconds / self._weight
