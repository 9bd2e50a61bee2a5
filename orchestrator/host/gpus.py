"""Which of this machine's GPUs each actor gets: chosen here, because Ray fills one GPU with parts before it begins the next."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jobs.errors import InputError

__all__ = ["LARGE_PRIOR_BYTES", "Gpus", "device_in_actor", "use_gpu"]

LARGE_PRIOR_BYTES = 5 * 10**9
"""From this size on (SDXL in half precision has 7 GB) a prior has a GPU for itself, as long as another one is left for jobs."""

_WHOLE, _HALF, _JOB = 1.0, 0.5, 0.125


@dataclass(eq=False)
class Gpus:
    """The GPUs of one machine and what runs on each.

    Args:
        names: as CUDA_VISIBLE_DEVICES has them: numbers or UUIDs; none where actors compute on the CPU.
    """

    names: Sequence[str]
    _held: dict[object, tuple[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, num_gpus: float, device: str, environment: Mapping[str, str] = os.environ) -> Gpus:
        """Those that Ray counts on this machine, or the one that the device names.

        Raises:
            InputError: a number that is not there.
        """
        if not device.startswith("cuda"):
            return cls(())
        chosen = re.fullmatch(r"cuda:(\d+)", device)
        number = int(chosen[1]) if chosen else 0
        num = int(num_gpus) or number + 1  # Ray may not know this kind of GPU; torch was asked before
        names = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        names = (names or [str(number) for number in range(num)])[:num]
        if number >= len(names):
            last = f"cuda:{len(names) - 1}"
            raise InputError(f"The device is {device!r}, but there are {len(names)} GPUs here; give cuda:0 to {last}.")
        return cls((names[number],) if chosen else tuple(names))

    def for_prior(self, holder: object, *, num_bytes: int, apart_from: Sequence[object] = ()) -> str:
        """A GPU for a replica: one that holds none of the others, then the one with the least to do. "" without GPUs."""
        others = [self._held[other][0] for other in apart_from if other in self._held]
        return self._take(holder, _WHOLE if num_bytes >= LARGE_PRIOR_BYTES else _HALF, others)

    def for_job(self, holder: object) -> str:
        """The GPU with the least to do."""
        return self._take(holder, _JOB, ())

    def release(self, holder: object) -> None:
        """The actor has ended; may be called twice."""
        self._held.pop(holder, None)

    def load(self, name: str) -> float:
        """How much of a GPU is given away: about 1 for a large prior, a half for a smaller one, an eighth for a job."""
        return sum(share for held, share in self._held.values() if held == name)

    def _take(self, holder: object, share: float, others: Sequence[str]) -> str:
        if not self.names:
            return ""
        name = min(self.names, key=lambda name: (others.count(name), self.load(name), self.names.index(name)))
        self._held[holder] = (name, share)
        return name


def use_gpu(name: str) -> None:
    """Have this process, in which nothing has asked CUDA yet, see that GPU alone, as cuda:0; nothing for ""."""
    if name:
        os.environ["CUDA_VISIBLE_DEVICES"] = name


def device_in_actor(device: str) -> str:
    """The device as an actor calls it: of several GPUs it sees its own alone, so "cuda:3" is "cuda" there."""
    return "cuda" if device.startswith("cuda") else device
