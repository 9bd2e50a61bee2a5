"""Which rows go into the next forward, and how they are put together and taken apart again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.engine.network_rows import NetworkRows
from diffusion.engine.ticket import Ticket


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of one ticket's request and the places in the batch where they sit."""

    ticket: Ticket
    rows: Sequence[int]
    places: Sequence[int]

    @property
    def source(self) -> NetworkRows:
        """The request that the rows belong to."""
        assert self.ticket.rows is not None
        return self.ticket.rows


@dataclass(frozen=True, eq=False)
class Batch:
    """One forward. `size` counts its rows with the padding."""

    parts: Sequence[Part]
    size: int

    @property
    def num_rows(self) -> int:
        """Rows that somebody asked for."""
        return sum(len(part.rows) for part in self.parts)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (size, C, h, w), t (size,), tokens (size, S, K); padding repeats a row that is there."""
        taken = [part.source.take(part.rows) for part in self.parts]
        x_t, t, tokens = taken[0]
        if len(taken) > 1:
            x_t, t, tokens = (torch.cat(tensors) for tensors in zip(*taken, strict=True))
        places = [place for part in self.parts for place in part.places]
        if places == list(range(self.size)):
            return x_t, t, tokens
        origin = torch.zeros(self.size, dtype=torch.long)
        origin[torch.tensor(places)] = torch.arange(len(places))
        origin = origin.to(x_t.device)
        return x_t[origin], t[origin], tokens[origin]

    def hand_out(self, output: Tensor) -> None:
        """Give every ticket its rows of the network's output (size, C, h, w)."""
        for part in self.parts:
            part.source.put(part.rows, output[torch.as_tensor(part.places, device=output.device)])


def pack(turns: Iterable[tuple[Ticket, Sequence[int]]], *, limit: int | None = None) -> Batch:
    """Rows side by side in the order of their turns.

    Args:
        limit: rows of the batch; the last ticket that fits in part gets a part.
    """
    parts: list[Part] = []
    size = 0
    for ticket, rows in turns:
        rows = rows if limit is None else rows[: limit - size]
        parts.append(Part(ticket, rows, range(size, size + len(rows))))
        size += len(rows)
        if size == limit:
            break
    return Batch(parts, size)


def pack_strictly(turns: Iterable[Ticket], *, size: int) -> Batch:
    """A batch that always has `size` rows and in which every strict row has one place, whoever sits beside it.

    A network computes a row from that row alone, but how it adds up may differ with the number of rows and with the place
    among them: matrix products are cut into tiles. With both fixed the result is the same to the last bit. Rows of tickets
    that are not strict fill what stays free.
    """
    parts: list[Part] = []
    free = set(range(size))
    others: list[Ticket] = []
    for ticket in turns:
        if not ticket.strict:
            others.append(ticket)
            continue
        assert ticket.rows is not None
        where = ticket.rows.places(size)
        rows: list[int] = []
        for row in ticket.rows.todo:
            if where[row] in free:
                free.discard(where[row])
                rows.append(row)
        if rows:
            parts.append(Part(ticket, rows, [where[row] for row in rows]))
        if not free:
            break
    for ticket in others:
        assert ticket.rows is not None
        rows = ticket.rows.todo[: len(free)]
        if rows:
            parts.append(Part(ticket, rows, [free.pop() for _ in rows]))
    return Batch(parts, size)
