"""How much memory each prior takes: read from its files before anything is placed, and kept in the ledger."""

from __future__ import annotations

from collections.abc import Iterable

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.footprint import footprint
from jobs.ledger import Ledger
from orchestrator.scheduling import GpuNeed

__all__ = ["PriorSizes"]

SECONDS_BETWEEN_LOOKS = 60.0


class PriorSizes:
    """Each prior is looked at once; one whose files are not on this machine yet, again after a minute.

    Args:
        ledger: keeps what was found, for when the files cannot be seen. replicas: copies of each prior that are loaded.
        are_on_gpus: they compute there, and the machine's memory holds their weights alone.
    """

    def __init__(self, ledger: Ledger, *, replicas: int = 1, are_on_gpus: bool = False) -> None:
        self._ledger, self._replicas, self._are_on_gpus = ledger, replicas, are_on_gpus
        self._known: dict[str, int] | None = None
        self._needs: dict[str, GpuNeed] = {}
        self._looked_at: dict[str, float] = {}

    def of(self, sources: Iterable[str]) -> dict[str, int]:
        """Source -> bytes of all its copies; a source of which nothing is known is absent."""
        if self._known is None:
            self._known = self._ledger.priors.sizes()
        sources, now = set(sources), self._ledger.now()
        for source in sorted(sources):
            if now >= self._looked_at.get(source, 0.0):
                self._look(source, now)
        return {source: self._known[source] * self._replicas for source in sources if source in self._known}

    def on_gpu(self, sources: Iterable[str]) -> dict[str, GpuNeed]:
        """Source -> what each copy needs of a GPU, of those whose files `of` has seen."""
        return {source: self._needs[source] for source in sources if source in self._needs}

    def _look(self, source: str, now: float) -> None:
        assert self._known is not None
        try:
            found = footprint(source)
        except PriorError:  # its loading will say why
            self._looked_at[source] = now + SECONDS_BETWEEN_LOOKS
            return
        self._looked_at[source] = float("inf")
        num_bytes = found.beside_gpu if self._are_on_gpus else found.total
        at_ease = found.on_gpu + found.adapters
        self._needs[source] = GpuNeed(least=found.least_on_gpu(), at_ease=at_ease, replicas=self._replicas)
        if self._known.get(source) != num_bytes:
            self._ledger.priors.note(source, num_bytes)
            self._known[source] = num_bytes
