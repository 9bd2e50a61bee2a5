"""Data parallelism over the cores of a CPU: each of a few threads computes some of the rows, in a forward of its own.

torch by itself lets all cores work on one operation after another and waits for the slowest each time. Networks of small
pictures are long chains of short operations, so that on two cores a third of the time is waiting: rows that go their own
way take 1.2 to 1.5 times fewer seconds (docs/benchmarks.md).
"""

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

MAX_GROUPS = 4
"""Python runs one thread's instructions at a time, so many groups would wait for each other there."""


def data_parallel(function: Callable[..., Tensor], *columns: Tensor, together: int = 1) -> Tensor:
    """function(*columns), computed in groups of rows that run side by side where that is faster.

    The groups follow from the number of rows and of this thread's torch threads alone, so a result can be repeated.

    Args:
        function: rows to rows, each from that row alone. columns: tensors of B rows each.
        together: so many neighbouring rows know of each other, and are never parted.
    """
    threads, units = torch.get_num_threads(), len(columns[0]) // together
    groups = 2 ** (min(units, threads, MAX_GROUPS).bit_length() - 1)
    if groups == 1 or any(column.device.type != "cpu" for column in columns):
        return function(*columns)
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def run(group: tuple[Tensor, ...]) -> Tensor:
        # Both are a thread's own.
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return function(*group)

    sizes = [together * len(part) for part in torch.arange(units).tensor_split(groups)]
    parts = zip(*(column.split(sizes) for column in columns), strict=True)
    return torch.cat(list(_pool(groups, threads // groups, threads).map(run, parts)))


@functools.cache
def _pool(groups: int, threads_each: int, threads: int) -> ThreadPoolExecutor:
    """As many threads, with so many torch threads each; they wait for work until the process ends."""
    started = threading.Barrier(groups + 1)

    def start() -> None:
        # Looking comes first: a thread takes over everybody's setting at its first look, and would lose its own.
        torch.get_num_threads()
        torch.set_num_threads(threads_each)
        started.wait()

    pool = ThreadPoolExecutor(groups, thread_name_prefix="rows", initializer=start)
    for _ in range(groups):
        pool.submit(lambda: None)
    started.wait()
    # The last setting is what threads that are started from now on begin with.
    torch.set_num_threads(threads)
    return pool
