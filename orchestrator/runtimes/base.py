"""What a runtime is: something that holds a prior and runs one recipe, giving back its events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from diffusion.checkpoints.source import Source
from jobs.errors import InputError
from jobs.events import Checkpoint, Event, Finished
from jobs.images import EditSource
from jobs.prior_client import PriorClient, PriorInfo
from jobs.specs import ImagesSpec, JobSpec, TextTo3DSpec

__all__ = ["Asked", "Attempt", "Runtime", "resolve_device", "run_recipe", "with_settled_prior"]


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


Spec = TypeVar("Spec")


def with_settled_prior(spec: Spec, device: str, *, is_elsewhere: bool = False) -> Spec:
    """The spec with what its prior leaves to the device (dtype=auto) decided and written out, once and for all replicas.

    Raises:
        InputError: it is computed elsewhere, on devices that are not seen from here.
    """
    source = getattr(spec, "prior", "")
    if "dtype=auto" not in source or Source.parse(source).dtype != "auto":
        return spec
    if is_elsewhere:
        raise InputError(
            f"The prior {source!r} leaves its precision to the device, but a cluster's devices are not seen from here; name "
            "it: dtype=bfloat16 where its GPUs have compute capability 8.0 or later, else dtype=float16 or dtype=float32."
        )
    settled = Source.parse(source).settled(device.partition(":")[0], strict=getattr(spec, "strict", False))
    location, mark, query = source.rpartition("?")
    options = [f"dtype={settled.dtype}" if option == "dtype=auto" else option for option in query.split("&")]
    return replace(spec, prior=f"{location}{mark}{'&'.join(options)}")  # type: ignore[type-var]


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
