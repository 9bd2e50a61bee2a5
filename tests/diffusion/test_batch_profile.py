"""The start-up profile, with a clock that a network of known cost moves on."""

import pytest
import torch

from diffusion.engine import BatchProfile, profile_batches


class Device:
    """A forward of n rows takes `fixed + n * row` seconds and memory for at most `memory` rows."""

    error: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def __init__(self, *, fixed: float, row: float, memory: int = 10**6) -> None:
        self.fixed, self.row, self.memory, self.now = fixed, row, memory, 0.0

    def __call__(self, x_t, t, tokens):
        if len(x_t) > self.memory:
            raise self.error
        self.now += self.fixed + self.row * len(x_t)
        return x_t

    def profile(self, **options) -> BatchProfile:
        return profile_batches(self, latent_shape=(1, 2, 2), tokens=torch.zeros(1, 3, 4), clock=lambda: self.now, **options)


def test_the_knee_is_where_larger_batches_stop_paying() -> None:
    # n / (0.01 + 0.001 n) rows a second: 952 at 200 rows would be 95 % of 1000; of the sizes tried the best is 128.
    profile = Device(fixed=0.01, row=0.001).profile(longest_forward=10, seconds=10)
    assert profile.rows_per_second[128] == pytest.approx(128 / 0.138)
    assert profile.knee() == 128
    assert profile.knee(share=0.8) == 32
    assert Device(fixed=0.0, row=0.01).profile().knee() == 1


def test_it_stops_before_forwards_get_long() -> None:
    assert max(Device(fixed=0.0, row=0.1).profile(longest_forward=0.5, seconds=100).rows_per_second) == 8
    assert max(Device(fixed=1.0, row=0.1).profile(longest_forward=100, seconds=3).rows_per_second) == 1


def test_it_stops_where_memory_ends() -> None:
    assert max(Device(fixed=0.01, row=0.0, memory=20).profile().rows_per_second) == 16
    with pytest.raises(torch.OutOfMemoryError, match="not even one row"):
        Device(fixed=0.0, row=0.0, memory=0).profile()


def test_a_cpu_without_memory_is_known_by_its_sentence_and_other_errors_are_not_hidden() -> None:
    device = Device(fixed=0.01, row=0.0, memory=3)
    device.error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
    assert max(device.profile().rows_per_second) == 2
    device.error = RuntimeError("a mistake in the network")
    with pytest.raises(RuntimeError, match="a mistake in the network"):
        device.profile()


def test_memory_may_end_before_the_forward() -> None:
    # The inputs of 2**50 rows have no room anywhere.
    assert max(Device(fixed=0.01, row=0.0).profile(sizes=(1, 2, 2**50)).rows_per_second) == 2
