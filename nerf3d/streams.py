"""Random streams: one generator per purpose and step, so that resuming at step k draws what step k always draws."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def stream_seed(seed: int, *keys: int | str) -> int:
    """A 63-bit integer that depends on every key, stable across processes and versions."""
    digest = hashlib.blake2b(repr((seed, *keys)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def stream(seed: int, *keys: int | str) -> torch.Generator:
    """A CPU generator for (seed, *keys). CPU also for CUDA fits, whose draws then match."""
    return torch.Generator().manual_seed(stream_seed(seed, *keys))


def uniform(shape: tuple[int, ...], generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform in [low, high), on the generator's device."""
    return torch.empty(shape, device=generator.device).uniform_(low, high, generator=generator)
