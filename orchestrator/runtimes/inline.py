"""Everything in this process, without Ray: for debugging, and for machines where Ray cannot run."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.events import Event
from jobs.prior_client import PriorClient, PriorInfo
from orchestrator.host.threads import use_threads
from orchestrator.prior.source import PriorLoader
from orchestrator.runtimes.base import Asked, Attempt, run_recipe

__all__ = ["InlineRuntime"]


class InlineRuntime:
    """The prior and the recipe as plain calls.

    Args:
        load_prior: see `PriorLoader`. source: what it is given. device: a torch device. num_threads: 0 for all cores.
    """

    def __init__(self, load_prior: PriorLoader, source: str, *, device: str = "cpu", num_threads: int = 0) -> None:
        self._load_prior = load_prior
        self._source = source
        self._device = device
        self._num_threads = num_threads
        self._prior: PriorClient | None = None
        self._checkpoint = Asked()

    def __enter__(self) -> InlineRuntime:
        use_threads(self._num_threads)
        return self

    def __exit__(self, *_: object) -> None:
        self._prior = None

    def prior_info(self) -> PriorInfo:
        """Loads the prior at the first call."""
        return self._loaded().info()

    def prior(self) -> PriorClient:
        """The prior itself."""
        return self._loaded()

    def run(self, attempt: Attempt) -> Iterator[Event]:
        """The recipe's events."""
        yield from run_recipe(attempt, self._loaded(), device=self._device, wants_checkpoint=self._checkpoint.take)

    def ask_for_checkpoint(self) -> None:
        """See `Runtime`."""
        self._checkpoint.ask()

    def _loaded(self) -> PriorClient:
        if self._prior is None:
            self._prior = self._load_prior(self._source, self._device)
        return self._prior
