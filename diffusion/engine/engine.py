"""The engine: many samplers and distillation queries advance together, one network forward a step.

Step-level ("continuous") batching as in InstGenIE (2505.20600) and vLLM-Omni, where requests join and leave between two
denoising steps; here sampling trajectories and one-step score-distillation queries meet in one forward.
"""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from diffusion.engine.autoencoder_stage import AutoencoderStage, num_pictures
from diffusion.engine.fair_share import FairShare
from diffusion.engine.memory import CALM, StrictOutOfMemory, is_out_of_memory, release_cached_memory
from diffusion.engine.network_rows import NetworkRows
from diffusion.engine.packing import Batch, pack, pack_strictly
from diffusion.engine.text_stage import TextStage
from diffusion.engine.ticket import Begin, Kind, NotFinite, Preview, Ticket
from diffusion.errors import DiffusionError
from diffusion.process import Schedule
from diffusion.requests import Condition, DecodeRequest, DenoiseRequest, EncodeGradientRequest, EncodeRequest, PreviewRequest


class Model(Protocol):
    """What the engine needs of `diffusion.prior.Prior`."""

    schedule: Schedule

    def condition(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Condition:
        """The encoded prompts, one row each, with what the unconditional side is told."""
        ...

    def has_condition(self, prompt: str, negative_prompt: str = "") -> bool:
        """Whether the pair is encoded already."""
        ...

    def predict(self, x_t: Tensor, t: Tensor, tokens: Tensor, cameras: Tensor | None = None, num_views: int = 1) -> Tensor:
        """The network's output (B, C, h, w) for x_t (B, C, h, w) at t (B,)."""
        ...

    def answer(self, request: Any) -> Any:
        """What the autoencoder is asked for: latents, pictures or a gradient."""
        ...


class Adapts(Protocol):
    """Gives a model with a request's LoRAs and words in it, as `diffusion.prior.Prior.adapted` does."""

    def adapted(self, adapters: tuple[Any, ...], *, in_use: Collection[tuple[Any, ...]]) -> Model | None:
        """The model with LoRAs and words in it."""
        ...


@dataclass(frozen=True)
class EngineConfig:
    """Batch sizes of the stages.

    Args:
        row_cap: network rows of a forward that several requests share; see `profile_batches`. This and the next two count
            rows of the prior's own size; of larger pictures a forward takes as many fewer as they are larger.
        max_rows: network rows of a forward when one request is alone. It does not follow from a measurement, so that a
            job that is alone is computed in the same batches, and to the same bits, each time. This and `row_cap` are
            upper bounds: a forward takes no more rows than the model counts memory for, a power of two of them.
        strict_rows: rows of every forward with strict rows in it. Strict results hold for one value of it, so that it is no
            matter of the moment's memory: `LocalPrior` takes the prior's.
        autoencoder_rows: pictures of one encode, decode or encode-with-gradient call.
        text_prompts: new prompts encoded in a step.
        max_jobs: jobs whose trajectories are under way at once. admitted_row_caps: how many row caps' worth of samples they
            have under way. Both bound the memory, and let what came first finish first.
    """

    row_cap: int = 16
    max_rows: int = 64
    strict_rows: int = 16
    autoencoder_rows: int = 8
    text_prompts: int = 8
    max_jobs: int = 32
    admitted_row_caps: int = 4

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise DiffusionError.explained(f"the engine's {name} is {value}", expected="at least 1", fix="raise it")


@dataclass(eq=False)
class StepReport:
    """What one step did.

    Args:
        finished: tickets that ended, well or not, in this step. previews: see `Preview`.
        rows: job -> network rows computed for it. batch_rows: rows of the forward with padding; 0 without a forward.
        seconds: stage -> seconds. out_of_memory: whether a batch was too large and the cap was halved.
    """

    finished: list[Ticket] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    batch_rows: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    out_of_memory: bool = False


class Engine:
    """Advances requests step by step. Not thread-safe: one thread owns it.

    A result depends on its request alone, up to rounding: each request draws from its own random streams, and a network
    row does not see the others. How a forward's rows are grouped shows in the last bits, except for strict requests.

    Args:
        model: the networks. clock: monotonic seconds.
    """

    def __init__(
        self, model: Model, *, config: EngineConfig | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config or EngineConfig()
        self._model = model
        self._clock = clock
        self._fair = FairShare()
        self._text = TextStage(per_step=self.config.text_prompts)
        self._autoencoder = AutoencoderStage(model, rows=self.config.autoencoder_rows)
        self._row_cap, self._max_rows = self.config.row_cap, self.config.max_rows
        self._wished_cap, self._calm = self._row_cap, 0
        self._rooms: dict[tuple[int, ...], int] = {}
        self._numbers = 0
        self._queued: dict[Ticket, None] = {}
        self._denoising: dict[Ticket, None] = {}
        self._coding: dict[Ticket, Any] = {}
        self._unfinished: list[tuple[Ticket, int, Tensor]] = []
        self._last_served: dict[Any, int] = {}
        self._taken: dict[Ticket, int] = {}
        self._steps = 0
        self._report = StepReport()

    # -- requests ----------------------------------------------------------------------------------------------------

    def submit(
        self,
        begin: Begin,
        *,
        prompts: Sequence[str],
        negative_prompts: Sequence[str] | None = None,
        job: str = "",
        kind: Kind = "trajectory",
        slots: Sequence[int] | None = None,
        preview_every: int = 0,
        size: tuple[int, int] | None = None,
        adapters: tuple[Any, ...] = (),
    ) -> Ticket:
        """Queue a request; it is let in at the next step.

        Args:
            begin: from the encoded prompts (B rows) to a generator of `diffusion.requests.Request`s.
            prompts, negative_prompts: B each; "" by default.
            job: rows are shared fairly among jobs, by `set_weight`.
            kind: "query" for what somebody waits for, "trajectory" for a sampling run.
            slots: strict mode, B integers, e.g. the seeds: requests whose slots differ modulo half of `strict_rows` share
                a forward. The result is bit-identical for the same slots, alone and among others (batch-invariant).
            preview_every: denoising answers between two previews of a trajectory; 0 for none.
            size: (height, width) of the pictures in pixels, for networks that are told it; the prior's own by default.
            adapters: what is put into the networks for this request, see `diffusion.prior.Prior.adapted`. Requests with the
                same ones share forwards.
        """
        prompts = tuple(prompts)
        negatives = tuple(negative_prompts) if negative_prompts is not None else ("",) * len(prompts)
        for name, given in (("negative prompts", negatives), ("slots", slots)):
            if given is not None and len(given) != len(prompts):
                raise DiffusionError.explained(
                    f"{len(given)} {name} for {len(prompts)} prompts", expected="one each", fix="give as many"
                )
        ticket = Ticket(
            number=self._numbers,
            job=job,
            kind=kind,
            prompts=prompts,
            negative_prompts=negatives,
            begin=begin,
            slots=None if slots is None else tuple(slots),
            preview_every=preview_every,
            submitted_at=self._clock(),
            size=size,
            adapters=adapters,
        )
        self._numbers += 1
        self._queued[ticket] = None
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request now, between two steps; nothing of it is computed any more."""
        if not ticket.finished:
            self._end(ticket, "cancelled")

    def set_weight(self, job: str, weight: float) -> None:
        """A job's share of the network's rows from now on, relative to those of other jobs; 1 unless it is set."""
        self._fair.set_weight(job, weight)

    def forget(self, job: str) -> None:
        """Drop what is remembered of a job that has ended: its weight and its debts."""
        self._fair.forget(job)

    @property
    def live(self) -> int:
        """Requests that are queued or running."""
        return len(self._queued) + len(self._denoising) + len(self._coding)

    @property
    def row_cap(self) -> int:
        """Rows of a shared forward; halved each time the device runs out of memory, and grows again after CALM forwards."""
        return self._row_cap

    @row_cap.setter
    def row_cap(self, rows: int) -> None:
        """Sets the cap, at least 1, to which it also grows again."""
        self._row_cap = self._wished_cap = max(1, rows)

    # -- the loop ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self) -> StepReport:
        """Let requests in, then one call of each stage in the order in which a query passes through them.

        A query that fits into the forward is answered within this step.
        """
        self._steps += 1
        for stage, advance in (
            ("text", self._let_in),
            ("encode", lambda: self._code(EncodeRequest)),
            ("denoise", self._denoise),
            ("decode", lambda: self._code(DecodeRequest)),
            ("encode_gradient", lambda: self._code(EncodeGradientRequest)),
            ("preview", self._preview),
        ):
            begin = self._clock()
            advance()
            self._report.seconds[stage] = self._clock() - begin
        report, self._report = self._report, StepReport()
        return report

    def _let_in(self) -> None:
        """Queries at once; trajectories while there is room, the job with the fewest samples under way first."""
        self._text.new_step()
        for ticket in [ticket for ticket in self._queued if ticket.kind == "query"]:
            self._start(ticket)
        under_way: dict[str, int] = {}
        for ticket in (*self._denoising, *self._coding):
            if ticket.kind == "trajectory":
                under_way[ticket.job] = under_way.get(ticket.job, 0) + len(ticket.prompts)
        first: dict[str, list[Ticket]] = {}
        for ticket in self._queued:
            if ticket.kind == "trajectory":
                first.setdefault(ticket.job, []).append(ticket)
        room = self.config.admitted_row_caps * self._row_cap
        while first:
            job = min(first, key=lambda job: (under_way.get(job, 0) / self._fair.weight(job), first[job][0].number))
            newcomer = job not in under_way and len(under_way) < self.config.max_jobs
            if sum(under_way.values()) >= room and not newcomer:
                break
            ticket = first[job].pop(0)
            if not first[job]:
                del first[job]
            if self._start(ticket):
                under_way[job] = under_way.get(job, 0) + len(ticket.prompts)

    def _start(self, ticket: Ticket) -> bool:
        """Whether it is under way now; it stays queued while prompts are to be encoded, or its adapters have no room."""
        try:
            ticket.model = ticket.model or self._model_of(ticket)
            if ticket.model is None:
                return False
            condition = self._text.condition(ticket)
            if condition is None:
                return False
            ticket.generator = ticket.begin(condition)
        except Exception as error:
            self._end(ticket, "failed", error=error)
            return False
        del self._queued[ticket]
        ticket.state, ticket.started_at = "running", self._clock()
        self._advance(ticket, None)
        return True

    def _model_of(self, ticket: Ticket) -> Any:
        """The model with the ticket's adapters; None while those that are at work leave no room for them."""
        if not ticket.adapters:
            return self._model
        living = (*self._queued, *self._denoising, *self._coding)
        in_use = {other.adapters for other in living if other.adapters and other.model is not None}
        return cast(Adapts, self._model).adapted(ticket.adapters, in_use=in_use)

    def _advance(self, ticket: Ticket, reply: Any) -> None:
        """Send an answer and note what is asked next."""
        assert ticket.generator is not None
        try:
            request = ticket.generator.send(reply)
            if isinstance(request, DenoiseRequest):
                ticket.rows = NetworkRows(request, ticket.slots)
                self._denoising[ticket] = None
            elif isinstance(request, EncodeRequest | DecodeRequest | EncodeGradientRequest):
                self._coding[ticket] = request
            else:
                raise TypeError(f"the engine cannot answer {type(request).__name__}")
        except StopIteration as finished:
            self._end(ticket, "done", result=finished.value)
        except Exception as error:
            self._end(ticket, "failed", error=error)

    def _end(self, ticket: Ticket, state: Any, *, result: Any = None, error: BaseException | None = None) -> None:
        for table in (self._queued, self._denoising, self._coding):
            table.pop(ticket, None)
        if ticket.generator is not None:
            ticket.generator.close()
        ticket.generator, ticket.rows, ticket.texts, ticket.model = None, None, {}, None
        ticket.state, ticket._result, ticket._error = state, result, error
        ticket.finished_at = self._clock()
        self._report.finished.append(ticket)

    # -- the network -------------------------------------------------------------------------------------------------

    def _denoise(self) -> None:
        """One forward of rows that fit together; kinds that do not fit take turns."""
        if not self._denoising:
            return
        groups: dict[Any, list[Ticket]] = {}
        for ticket in self._denoising:
            assert ticket.rows is not None
            groups.setdefault((*ticket.rows.key, _network(ticket), ticket.strict), []).append(ticket)
        key = min(groups, key=lambda key: self._last_served.get(key, -1))
        self._last_served = {key: self._last_served.get(key, -1) for key in groups} | {key: self._steps}
        members = groups[key]
        scale = self._scale(_rows(members[0]))
        if members[0].strict:
            members += groups.get((*key[:-1], False), [])
            size = max(min(2, self.config.strict_rows), int(self.config.strict_rows * scale))  # both halves of a guidance
            batch = pack_strictly(self._turns(members, size), size=size)
        else:
            limit = max(1, int((self._max_rows if self.live == 1 else self._row_cap) * scale))
            limit = min(limit, self._room(_rows(members[0])))
            batch = pack(((ticket, _rows(ticket).todo) for ticket in self._turns(members, limit)), limit=limit)
        self._forward(batch)
        for ticket, rows in self._taken.items():
            self._fair.refund(ticket.job, rows)
        for ticket in [part.ticket for part in batch.parts]:
            if not ticket.finished and not _rows(ticket).todo:
                self._answer(ticket)

    def _scale(self, rows: NetworkRows) -> float:
        """How much of the prior's own picture a row's fits into, at most 1: forwards of all sizes cost about the same."""
        own = getattr(self._model, "latent_shape", None)
        return 1.0 if own is None else min(1.0, prod(own[1:]) / prod(rows.request.x_t.shape[2:]))

    def _room(self, rows: NetworkRows) -> int:
        """Rows of this shape for which there is memory, rounded down so that a little more or less of it changes nothing.

        Asked when the shape is new, and again after CALM forwards or when one did not fit.
        """
        count, shape = getattr(self._model, "num_rows_at_once", None), tuple(rows.request.x_t.shape[2:])
        if count is not None and shape not in self._rooms:
            self._rooms[shape] = 1 << (max(1, count(shape)).bit_length() - 1)
        return self._rooms.get(shape, self.config.max_rows)

    def _turns(self, members: Sequence[Ticket], capacity: int) -> Iterator[Ticket]:
        """The fair order; notes what was taken, from which what is computed will be subtracted."""
        self._taken = {}
        for ticket in self._fair.turns([(ticket, _rows(ticket).num_todo) for ticket in members], capacity):
            self._taken[ticket] = _rows(ticket).num_todo
            yield ticket

    def _forward(self, batch: Batch) -> None:
        """Run the network; what goes wrong for one ticket ends that one alone."""
        try:
            output = batch.parts[0].ticket.model.predict(*batch.inputs())
            if len(output) != batch.size:
                raise DiffusionError.explained(
                    f"the network answered {len(output)} rows",
                    expected=f"the {batch.size} it was asked",
                    fix="check what the prior's network returns",
                )
            finite = output.isfinite().flatten(1).all(dim=1).tolist()
            broken = [part.ticket for part in batch.parts if not all(finite[place] for place in part.places)]
            Batch([part for part in batch.parts if part.ticket not in broken], batch.size).hand_out(output)
        except Exception as error:
            self._recover(batch, error)
            return
        self._grow_again()
        for ticket in broken:
            self._end(ticket, "failed", error=_not_finite(ticket))
        for part in batch.parts:
            self._report.rows[part.ticket.job] = self._report.rows.get(part.ticket.job, 0) + part.num_rows
            self._taken[part.ticket] = self._taken.get(part.ticket, 0) - part.num_rows
        self._report.batch_rows += batch.size

    def _grow_again(self) -> None:
        """After many forwards that fitted, caps that were halved for want of memory are doubled, up to what they were."""
        self._calm += 1
        if self._calm >= CALM:
            self._calm = 0
            self._rooms.clear()
            if self._max_rows < self.config.max_rows or self._row_cap < self._wished_cap:
                self._max_rows = min(self.config.max_rows, 2 * self._max_rows)
                self._row_cap = min(self._wished_cap, 2 * self._row_cap, self._max_rows)

    def _recover(self, batch: Batch, error: Exception) -> None:
        """After an exception in a forward: a smaller cap if memory was short, otherwise every ticket on its own."""
        strict = [part for part in batch.parts if part.ticket.strict]
        if is_out_of_memory(error):
            release_cached_memory(error)
            self._calm = 0
            self._rooms.clear()
            self._report.out_of_memory = True
            if batch.num_groups > 1 and not strict:
                # The rows stay to be done; the next step takes fewer of them.
                self._max_rows = max(1, int(batch.size // 2 / self._scale(batch.parts[0].source)))
                self._row_cap = min(self._row_cap, self._max_rows)
                return
            short = StrictOutOfMemory(f"a strict forward always has {batch.size} rows, which do not fit") if strict else error
            for part in strict or batch.parts:
                self._end(part.ticket, "failed", error=short)
            return
        if len(batch.parts) == 1:
            self._end(batch.parts[0].ticket, "failed", error=error)
            return
        for part in batch.parts:
            self._forward(Batch([part], batch.size) if strict else pack([(part.ticket, part.groups)]))

    def _answer(self, ticket: Ticket) -> None:
        """All rows are there: guide, note a preview, and go on."""
        del self._denoising[ticket]
        try:
            prediction = _rows(ticket).prediction(self._model.schedule)
        except Exception as error:
            self._end(ticket, "failed", error=error)
            return
        ticket.rows = None
        ticket.steps += 1
        if ticket.preview_every and ticket.steps % ticket.preview_every == 0:
            self._unfinished.append((ticket, ticket.steps, prediction.x0))
        self._advance(ticket, prediction)

    # -- the autoencoder ---------------------------------------------------------------------------------------------

    def _code(self, kind: type) -> None:
        """Answer one kind of autoencoder request: all queries', and as many of the trajectories' as do not delay them."""
        asked = [ticket for ticket, request in self._coding.items() if isinstance(request, kind)]
        queries = [ticket for ticket in asked if ticket.kind == "query"]
        others = [ticket for ticket in asked if ticket.kind != "query"]
        if any(ticket.kind == "query" for ticket in (*self._queued, *self._denoising, *self._coding)):
            others = self._one_call_of(others)
        for tickets in (queries, others):
            requests = [self._coding[ticket] for ticket in tickets]
            answers = self._autoencoder.answer_all(requests, strict=[ticket.strict for ticket in tickets])
            for ticket, answer in zip(tickets, answers, strict=True):
                if isinstance(answer, Exception):
                    self._end(ticket, "failed", error=answer)
                else:
                    del self._coding[ticket]
                    self._advance(ticket, answer)

    def _one_call_of(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """The first of the tickets, until their pictures fill a call of the autoencoder."""
        taken: list[Ticket] = []
        pictures = 0
        for ticket in tickets:
            if pictures >= self.config.autoencoder_rows:
                break
            taken.append(ticket)
            pictures += num_pictures(self._coding[ticket])
        return taken

    def _preview(self) -> None:
        waiting, self._unfinished = self._unfinished, []
        living = [(ticket, steps, x0) for ticket, steps, x0 in waiting if not ticket.finished]
        answers = self._autoencoder.answer_all([PreviewRequest(x0) for _, _, x0 in living], strict=[False] * len(living))
        for (ticket, steps, _), images in zip(living, answers, strict=True):
            if not isinstance(images, Exception):
                self._report.previews.append(Preview(ticket, steps, images))


def _network(ticket: Ticket) -> int:
    """Tickets with the same network share forwards: those of one LoRA, or with words of their own."""
    return id(getattr(ticket.model, "unet", ticket.model))


def _rows(ticket: Ticket) -> NetworkRows:
    assert ticket.rows is not None
    return ticket.rows


def _not_finite(ticket: Ticket) -> NotFinite:
    return NotFinite(
        f"the network answered {ticket.prompts[0]!r} with a number that is not finite at step {ticket.steps}; expected finite "
        "numbers; lower the guidance scale, or check the weights and the request's pictures"
    )
