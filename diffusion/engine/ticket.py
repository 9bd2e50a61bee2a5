"""One request in the engine: what was asked, how far it is, and what came of it."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from diffusion.engine.network_rows import NetworkRows
from diffusion.errors import DiffusionError
from diffusion.requests import Condition

Kind = Literal["trajectory", "query"]
State = Literal["queued", "running", "done", "failed", "cancelled"]
Begin = Callable[[Condition], Generator[Any, Any, Any]]
"""Encoded prompts to the generator that works with them, e.g. a sampler; called when the request is let in."""


class NotFinite(DiffusionError):
    """The network answered this request with a number that is not finite."""


class Cancelled(Exception):
    """The request was cancelled; it has no result."""


@dataclass(eq=False)
class Ticket:
    """A request's place in the engine. The engine writes it; everyone else reads.

    Attributes:
        number: order of arrival. job: whose it is, for fair shares and figures.
        kind: a "query" is short and waited for, so it goes first; a "trajectory" is a whole sampling run.
        prompts, negative_prompts: B of each. begin: see `Begin`.
        slots: for strict mode, B integers that place the rows; None otherwise.
        preview_every: denoising answers between two previews; 0 for none.
        size: (height, width) of the pictures in pixels, which some networks are told; None for the prior's own.
        adapters: what is put into the prior's networks for this request. model: the prior with them, once there is room.
        state: "queued" until it is let in, then "running", then "done", "failed" or "cancelled".
        steps: denoising answers so far.
        submitted_at, started_at, finished_at: by the engine's clock.
    """

    number: int
    job: str
    kind: Kind
    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    begin: Begin
    slots: tuple[int, ...] | None
    preview_every: int
    submitted_at: float
    size: tuple[int, int] | None = None
    adapters: tuple[Any, ...] = ()
    model: Any = None
    started_at: float | None = None
    finished_at: float | None = None
    state: State = "queued"
    steps: int = 0
    _result: Any = None
    _error: BaseException | None = None
    # The engine's own: encoded prompts so far, the running generator, and the network rows it waits for.
    texts: dict[tuple[str, str], Condition] = field(default_factory=dict, repr=False)
    generator: Generator[Any, Any, Any] | None = field(default=None, repr=False)
    rows: NetworkRows | None = field(default=None, repr=False)

    @property
    def strict(self) -> bool:
        """Whether its result must be bit-identical whoever else is served."""
        return self.slots is not None

    @property
    def finished(self) -> bool:
        """Done, failed or cancelled."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def error(self) -> BaseException | None:
        """Why it failed; None unless it did."""
        return self._error

    def result(self) -> Any:
        """What the generator returned.

        Raises:
            Cancelled: it was cancelled. RuntimeError: it is not finished yet. Otherwise whatever made it fail.
        """
        if self._error is not None:
            raise self._error
        if self.state == "cancelled":
            raise Cancelled(f"request {self.number} of job {self.job!r} was cancelled")
        if self.state != "done":
            raise RuntimeError(f"request {self.number} of job {self.job!r} is {self.state}; call step() until it is finished")
        return self._result


@dataclass(frozen=True, eq=False)
class Preview:
    """A preview of a running trajectory after `steps` answers: its x0 estimate as small images (B, 3, H, W) in [0, 1]."""

    ticket: Ticket
    steps: int
    images: Tensor
