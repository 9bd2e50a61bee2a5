"""How many threads torch uses: decided in one place, so that both runtimes sum in the same order."""

from __future__ import annotations

import os

__all__ = ["available_cores", "use_threads"]


def available_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(num_threads: int) -> None:
    """Set torch's threads; 0 takes every core.

    Ray sets OMP_NUM_THREADS to an actor's num_cpus, which would leave one thread each; this overrules it.
    """
    import torch

    torch.set_num_threads(num_threads or available_cores())
