"""Which of this machine's GPUs each actor gets: chosen here, because Ray fills one GPU with parts before it begins the next."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jobs.errors import InputError

__all__ = ["LARGE_PRIOR_BYTES", "Gpus", "device_in_actor", "gpu_share", "use_gpu"]

LARGE_PRIOR_BYTES = 5 * 10**9
"""From this size on (SDXL in half precision has 7 GB) a prior has a GPU for itself, as long as another one is left for jobs;
where it is known how large the GPU is, from half of its memory on."""

_WHOLE, _HALF, _JOB = 1.0, 0.5, 0.125


@dataclass(eq=False)
class Gpus:
    """The GPUs of one machine and what runs on each.

    Args:
        names: as CUDA_VISIBLE_DEVICES has them: numbers or UUIDs; none where actors compute on the CPU.
        sizes: bytes of each; none where they are not known.
    """

    names: Sequence[str]
    sizes: Sequence[int] = ()
    _held: dict[object, tuple[str, float, int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, num_gpus: float, device: str, environment: Mapping[str, str] = os.environ, *, sizes: Sequence[int] = ()
    ) -> Gpus:
        """Those that Ray counts on this machine, or the one that the device names.

        Args:
            sizes: bytes of all that torch sees here, in its order.

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
        known = tuple(sizes) if len(sizes) == len(names) else ()
        return cls((names[number],), known[number : number + 1]) if chosen else cls(tuple(names), known)

    def for_prior(self, holder: object, *, num_bytes: int, least_bytes: int = 0, apart_from: Sequence[object] = ()) -> str:
        """A GPU for a replica: one that holds none of the others, then the one with the least to do. "" without GPUs.

        Args:
            num_bytes: of the prior at ease. least_bytes: where it is known how large GPUs are, it goes where these are free.

        Raises:
            InputError: no GPU is as large, with both numbers.
        """
        others = [self._held[other][0] for other in apart_from if other in self._held]
        if not self.names or not self.sizes:
            return self._take(holder, gpu_share(num_bytes), others, self.names)
        if least_bytes > (largest := max(self.sizes)):
            raise InputError(
                f"The prior needs {least_bytes / 1e9:.1f} GB of a GPU at least, and the largest GPU here has "
                f"{largest / 1e9:.1f} GB; take a smaller prior, or this one in half precision with '?dtype=float16'."
            )
        roomy = [name for name in self.names if self.free_bytes(name) >= least_bytes] or self.names
        home = min(roomy, key=lambda name: (others.count(name), -self.free_bytes(name), self.names.index(name)))
        counted = max(least_bytes, min(num_bytes, self.free_bytes(home)))
        return self._take(holder, gpu_share(num_bytes, self.sizes[self.names.index(home)]), (), [home], counted)

    def for_job(self, holder: object) -> str:
        """The GPU with the least to do."""
        return self._take(holder, _JOB, (), self.names)

    def held(self, holder: object) -> tuple[int, int] | None:
        """The place of the holder's GPU among the names, and how many of its bytes are counted for it; None without one."""
        if holder not in self._held:
            return None
        name, _, num_bytes = self._held[holder]
        return self.names.index(name), num_bytes

    def free_bytes(self, name: str) -> int:
        """Of a GPU, beside the priors on it."""
        return self.sizes[self.names.index(name)] - sum(num for held, _, num in self._held.values() if held == name)

    def release(self, holder: object) -> None:
        """The actor has ended; may be called twice."""
        self._held.pop(holder, None)

    def load(self, name: str) -> float:
        """How much of a GPU is given away: about 1 for a large prior, a half for a smaller one, an eighth for a job."""
        return sum(share for held, share, _ in self._held.values() if held == name)

    def _take(self, holder: object, share: float, others: Sequence[str], names: Sequence[str], num_bytes: int = 0) -> str:
        if not names:
            return ""
        name = min(names, key=lambda name: (others.count(name), self.load(name), self.names.index(name)))
        self._held[holder] = (name, share, num_bytes)
        return name


def gpu_share(num_bytes: int, gpu_bytes: int = 0) -> float:
    """A whole or half a GPU for a prior of so many bytes, on one of so many; 0: not known."""
    return _WHOLE if num_bytes >= (gpu_bytes / 2 if gpu_bytes else LARGE_PRIOR_BYTES) else _HALF


def use_gpu(name: str) -> None:
    """Have this process, in which nothing has asked CUDA yet, see that GPU alone, as cuda:0; nothing for ""."""
    if name:
        os.environ["CUDA_VISIBLE_DEVICES"] = name


def device_in_actor(device: str) -> str:
    """The device as an actor calls it: of several GPUs it sees its own alone, so "cuda:3" is "cuda" there."""
    return "cuda" if device.startswith("cuda") else device
