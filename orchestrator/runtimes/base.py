"""What a runtime is: something that holds a prior and runs one recipe, giving back its events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from diffusion.checkpoints.source import STRICT_ROWS, Source
from jobs.errors import InputError
from jobs.events import Checkpoint, Event, Finished
from jobs.images import EditSource
from jobs.prior_client import PriorClient, PriorInfo
from jobs.specs import ImagesSpec, JobSpec, TextTo3DSpec

__all__ = [
    "Asked",
    "Attempt",
    "Runtime",
    "bytes_of_gpus",
    "bytes_on_gpu",
    "leaves_to_device",
    "resolve_device",
    "run_recipe",
    "with_settled_prior",
]


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job: what to make and what an earlier attempt left.

    Args:
        checkpoint: of a 3D job. done: indices of the images that exist. source: what an editing job starts from.
        checkpoint_every: fit steps between two resume points. preview_every, score_every: see `jobs.images.images` and
            `jobs.text_to_3d.text_to_3d`.
    """

    spec: JobSpec
    checkpoint: Checkpoint | None = None
    done: frozenset[int] = frozenset()
    source: EditSource | None = None
    checkpoint_every: int = 25
    preview_every: int = 0
    score_every: int = 0


class Runtime(Protocol):
    """Used as a context manager; leaving it ends everything that it started."""

    def __enter__(self) -> Runtime: ...

    def __exit__(self, *_: object) -> None: ...

    def prior_info(self) -> PriorInfo:
        """Waits for the prior to be loaded. Raises InputError for one that cannot be."""
        ...

    def prior(self) -> PriorClient:
        """The prior as another process of this runtime may hold it: picklable where there are other processes."""
        ...

    def run(self, attempt: Attempt) -> Iterator[Event]:
        """The recipe's events, the last one `Finished`. Raises what the recipe raises."""
        ...

    def ask_for_checkpoint(self) -> None:
        """Have the job that runs give a checkpoint after its next step; may be called from any thread."""
        ...


class Asked:
    """A request that one thread makes and another one takes, once."""

    def __init__(self) -> None:
        self._is_set = threading.Event()

    def ask(self) -> None:
        """DesiredState for it."""
        self._is_set.set()

    def take(self) -> bool:
        """Whether it was made; from here on it is not."""
        is_set = self._is_set.is_set()
        self._is_set.clear()
        return is_set


def run_recipe(
    attempt: Attempt, prior: PriorClient, *, device: str, wants_checkpoint: Callable[[], bool] = lambda: False
) -> Iterator[Event]:
    """Run the recipe of the attempt's spec; its result becomes the last event, without what cannot leave a process."""
    match attempt.spec:
        case TextTo3DSpec() as spec:
            from jobs.text_to_3d import text_to_3d

            result = yield from text_to_3d(
                spec,
                prior,
                device=device,
                checkpoint=attempt.checkpoint,
                checkpoint_every=attempt.checkpoint_every,
                preview_every=attempt.preview_every,
                score_every=attempt.score_every,
                wants_checkpoint=wants_checkpoint,
            )
            yield Finished(result=replace(result, field=None), seconds=result.seconds, metrics=result.metrics())
        case ImagesSpec() as spec:
            from jobs.images import images

            drawn = yield from images(
                spec, prior, source=attempt.source, done=attempt.done, preview_every=attempt.preview_every
            )
            yield Finished(result=drawn, seconds=drawn.seconds)


def bytes_of_gpus() -> tuple[int, ...]:
    """Memory of each GPU that torch sees here, in its order; none without one."""
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count()))


def bytes_on_gpu(source: str) -> tuple[int, int]:
    """What a prior takes of a GPU at ease and at least, from its files; zeros where they cannot be seen yet."""
    from diffusion.checkpoints.errors import PriorError
    from diffusion.checkpoints.footprint import footprint

    try:
        found = footprint(source)
    except PriorError:
        return 0, 0
    return found.on_gpu + found.adapters, found.least_on_gpu()


Spec = TypeVar("Spec")


def leaves_to_device(spec: Any) -> bool:
    """Whether `with_settled_prior` may have something to decide; to ask for devices imports torch."""
    prior = getattr(spec, "prior", "")
    is_open = getattr(spec, "strict", False) and not prior.startswith("toybox") and "strict_rows=" not in prior
    return is_open or "dtype=auto" in prior


def with_settled_prior(spec: Spec, device: str, *, is_elsewhere: bool = False) -> Spec:
    """The spec with what its prior leaves to the device decided and written out, once and for all replicas.

    That is dtype=auto, and of a strict job fewer rows a forward where the smallest GPU that it may get has no memory for the
    usual ones.

    Raises:
        InputError: its precision is to be that of a cluster's devices, which are not seen from here.
    """
    if not leaves_to_device(spec):
        return spec
    source, is_strict = getattr(spec, "prior", ""), getattr(spec, "strict", False)
    if Source.parse(source).dtype == "auto":
        if is_elsewhere:
            raise InputError(
                f"The prior {source!r} leaves its precision to the device, but a cluster's devices are not seen from here; "
                "name it: dtype=bfloat16 where its GPUs have compute capability 8.0 or later, else dtype=float16 or "
                "dtype=float32."
            )
        settled = Source.parse(source).settled(device.partition(":")[0], strict=is_strict)
        location, mark, query = source.rpartition("?")
        options = [f"dtype={settled.dtype}" if option == "dtype=auto" else option for option in query.split("&")]
        source = f"{location}{mark}{'&'.join(options)}"
    if is_strict and not is_elsewhere and device.startswith("cuda"):
        source = _with_strict_rows(source, device)
    return spec if source == getattr(spec, "prior", "") else replace(spec, prior=source)  # type: ignore[type-var]


def _with_strict_rows(source: str, device: str) -> str:
    """The source with as many rows of a strict forward as the device holds, if those are fewer than usual."""
    from diffusion.checkpoints.errors import PriorError
    from diffusion.checkpoints.footprint import footprint

    sizes, (_, _, number) = bytes_of_gpus(), device.partition(":")
    with suppress(PriorError):  # its loading will say why
        rows = footprint(source).rows_within(sizes[int(number)] if number else min(sizes)) if sizes else STRICT_ROWS
        if 2 <= rows < STRICT_ROWS and "strict_rows=" not in source:
            return f"{source}{'?' if Source.parse(source).location == source else '&'}strict_rows={rows}"
    return source


def resolve_device(device: str, *, is_elsewhere: bool = False) -> str:
    """ "auto" becomes "cuda" where there is a CUDA device, else "cpu".

    Raises InputError for a device that is not there, and for one whose kernels nobody has run this program on.

    What is computed elsewhere, on a cluster, keeps its device: the nodes decide (`orchestrator.runtimes.placement`).
    """
    if is_elsewhere:
        return device
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InputError(f"runtime.device is {device!r}, which torch does not know; give auto, cpu or cuda.") from error
    if kind not in ("cpu", "cuda"):
        raise InputError(
            f"runtime.device is {device!r}, on which neither pictures nor meshes have been made; give runtime.device=cpu, "
            "which works on every machine, Apple silicon too, or cuda."
        )
    if kind == "cuda" and not available:
        raise InputError(f"runtime.device is {device!r}, but torch finds no CUDA device; give runtime.device=cpu.")
    if kind == "cuda" and (torch.device(device).index or 0) >= (count := torch.cuda.device_count()):
        raise InputError(
            f"runtime.device is {device!r}, but torch finds {count} CUDA devices; give cuda:0 to cuda:{count - 1}."
        )
    return device
