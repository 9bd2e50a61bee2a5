"""Random streams of a fit: one generator per purpose and step, so that resuming at step k draws what step k always draws.

This is not the algorithm of `diffusion.seeding.stream`, which fills the whole state of a generator because a million pictures
lie side by side and 32 bits would give some of them the same noise. A fit opens a few streams a step, 32 bits keep those
apart, and the packages do not import one another. Each has its own name, so that one is not taken for the other; to make
them one would change every mesh.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_GLOBAL_GENERATOR = threading.Lock()


def stream_seed(seed: int, *keys: int | str) -> int:
    """A 63-bit integer that depends on every key, stable across processes and versions.

    torch's CPU generator (Mersenne Twister) keeps the lower 32 bits of it, its CUDA generator (Philox) all of them.
    """
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def fit_stream(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator for (seed, *keys), seeded with 32 bits of their hash. CPU also for CUDA fits, whose draws then match."""
    return torch.Generator().manual_seed(stream_seed(seed, *keys))


@contextmanager
def global_stream(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seeds torch's global generators for code that draws from nothing else, and puts them back afterwards.

    They belong to the whole process: threads that fit side by side enter one after another, or they would draw each other's
    numbers.
    """
    device = torch.device(device)
    with _GLOBAL_GENERATOR, torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # torch.manual_seed would reseed every other CUDA device too, for good.
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        yield


def uniform(shape: tuple[int, ...], generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """A tensor of this shape, uniform in [low, high), on the generator's device."""
    return torch.empty(shape, device=generator.device).uniform_(low, high, generator=generator)


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on that device, without waiting for what a GPU still computes: CUDA copies from pageable memory at once."""
    return tensor.to(device, non_blocking=tensor.device.type == "cpu" and torch.device(device).type == "cuda")
