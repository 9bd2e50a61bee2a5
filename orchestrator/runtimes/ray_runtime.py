"""A local Ray that lives as long as the command: one actor holds the prior, one runs the job.

What Ray 2.60 does that shaped this file (seen here, see the tests):

- An actor takes 1 CPU to be placed unless told otherwise; on one core two such actors would wait for ever. Ours ask for
  a share each, because they take turns.
- A signal that arrives inside `ray.init` ends the process with a segmentation fault and leaves Ray's processes behind;
  so signals wait until it has returned.
- An exception that leaves an actor comes back as a generated subclass; ours travel as values instead.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jobs.errors import DreamKilnError, JobFailed, PriorFailed, UnexpectedError
from jobs.events import Event
from jobs.prior_client import DistillationQuery, Distilled, DrawRequest, PriorClient, PriorInfo
from orchestrator.runtimes.base import Attempt, PriorLoader, run_recipe
from orchestrator.runtimes.threads import available_cores, use_threads
from orchestrator.signals import signals_deferred

__all__ = ["RayRuntime"]

# Read by Ray when it is imported and by its processes when they start; what the user has set already wins.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Despite its name this decides on every system whether Ray's ports bind to the loopback address alone. The documented
    # `_node_ip_address="127.0.0.1"` does not: Ray replaces it by the machine's outer address.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # By default Ray lowers its workers' priority to nice 15: beside any other busy program the job would starve.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A thread that waits for its next piece of work must not spin on a core that the other actor needs.
    "OMP_WAIT_POLICY": "PASSIVE",
}
_OBJECT_STORE_BYTES = 256 * 1024**2


class Raised:
    """An exception on its way between actors: the exception itself if it is ours, otherwise its words."""

    def __init__(self, error: BaseException) -> None:
        if isinstance(error, DreamKilnError):
            self.error: DreamKilnError = error
        else:
            self.error = UnexpectedError(f"{type(error).__name__}: {error}")
        self.error.add_note("".join(traceback.format_exception(error)))
        self.notes = self.error.__notes__

    def reraise(self) -> None:
        """Raise it here, with the other side's traceback as a note."""
        self.error.__notes__ = self.notes
        raise self.error


class PriorActor:
    """Holds the prior and answers one request at a time."""

    def __init__(self, load_prior: PriorLoader, source: str, device: str, num_threads: int) -> None:
        self._load = (load_prior, source, device)
        self._prior: PriorClient | None = None
        use_threads(num_threads)

    def call(self, method: str, *arguments: Any) -> Any:
        """Answer a method of `PriorClient`; errors are returned, not raised. The first call loads the prior."""
        try:
            if self._prior is None:
                load_prior, source, device = self._load
                self._prior = load_prior(source, device)
            return getattr(self._prior, method)(*arguments)
        except Exception as error:
            return Raised(error)


class RayPrior:
    """`PriorClient` over a `PriorActor`'s handle."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def info(self) -> PriorInfo:
        """Name, weights and sizes."""
        return self._call("info")

    def unknown_words(self, prompts: Sequence[str]) -> list[str]:
        """Words of the prompts that the prior was never trained on."""
        return self._call("unknown_words", list(prompts))

    def distill(self, query: DistillationQuery) -> Distilled:
        """One step of score distillation."""
        return self._call("distill", query)

    def draw(self, request: DrawRequest) -> np.ndarray:
        """uint8 images (N, H, W, 3)."""
        return self._call("draw", request)

    def _call(self, method: str, *arguments: Any) -> Any:
        import ray
        from ray.exceptions import RayError

        try:
            answer = ray.get(self._actor.call.remote(method, *arguments))
        except RayError as error:
            first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise PriorFailed(
                f"The process that holds the prior died ({first_line}); the same command continues from the last "
                "checkpoint. If it happens again, memory may be short: try a smaller prior or runtime=inline."
            ) from error
        if isinstance(answer, Raised):
            answer.reraise()
        return answer


class JobActor:
    """Runs one recipe and streams its events."""

    def __init__(self, prior: Any, device: str, num_threads: int) -> None:
        self._prior = RayPrior(prior)
        self._device = device
        use_threads(num_threads)

    def warm_up(self, modules: Sequence[str]) -> None:
        """Import what the recipe will need, while the prior is still loading on another core."""
        for module in modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)

    def run(self, attempt: Attempt) -> Iterator[Event | Raised]:
        """The recipe's events; an error is the last item."""
        try:
            yield from run_recipe(attempt, self._prior, device=self._device)
        except Exception as error:
            yield Raised(error)


class RayRuntime:
    """Starts Ray on entering, ends it and all its processes on leaving.

    Args:
        load_prior: see `PriorLoader`. source: what it is given. device: a torch device. num_threads: 0 for all cores.
        modules: what the job's actor imports while the prior's loads.
    """

    def __init__(
        self,
        load_prior: PriorLoader,
        source: str,
        *,
        device: str = "cpu",
        num_threads: int = 0,
        modules: Sequence[str] = (),
    ) -> None:
        self._load_prior = load_prior
        self._modules = tuple(modules)
        self._source = source
        self._device = device
        self._num_threads = num_threads

    def __enter__(self) -> RayRuntime:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import ray

        with signals_deferred():
            try:
                self._start(ray)
            except BaseException:
                ray.shutdown()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        with signals_deferred():
            ray.shutdown()

    def prior_info(self) -> PriorInfo:
        """Waits until the prior's actor has loaded it."""
        return RayPrior(self._prior).info()

    def prior(self) -> PriorClient:
        """The shared prior's client; it travels to other actors."""
        return RayPrior(self._prior)

    def run(self, attempt: Attempt) -> Iterator[Event]:
        """The recipe's events, as the job's actor produces them."""
        import ray
        from ray.exceptions import RayError

        try:
            for reference in self._job.run.options(num_returns="streaming").remote(attempt):
                item = ray.get(reference)
                if isinstance(item, Raised):
                    item.reraise()
                yield item
        except RayError as error:
            raise JobFailed(
                f"The process that ran the job died ({type(error).__name__}); the same command continues from the last "
                "checkpoint.",
                job=attempt.spec.name,
            ) from error

    def _start(self, ray: Any) -> None:
        ray.init(
            address="local",
            num_cpus=max(2, available_cores()),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            configure_logging=True,
            object_store_memory=_OBJECT_STORE_BYTES,
        )
        num_gpus = 0.5 if self._device.startswith("cuda") else 0
        options = {"num_cpus": 0.5, "num_gpus": num_gpus}
        self._prior = (
            ray.remote(PriorActor).options(**options).remote(self._load_prior, self._source, self._device, self._num_threads)
        )
        self._job = ray.remote(JobActor).options(**options).remote(self._prior, self._device, self._num_threads)
        self._prior.call.remote("info")
        self._job.warm_up.remote(self._modules)
