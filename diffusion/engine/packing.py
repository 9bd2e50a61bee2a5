"""Which rows go into the next forward, and how they are put together and taken apart again."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion.engine.network_rows import NetworkRows
from diffusion.engine.ticket import Ticket
from diffusion.seeding import sent


@dataclass(frozen=True, eq=False)
class Part:
    """Some groups of rows of one ticket's request and the places in the batch where the rows sit."""

    ticket: Ticket
    groups: Sequence[int]
    places: Sequence[int]

    @property
    def num_rows(self) -> int:
        """How many network rows these groups have."""
        return len(self.places)

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
        return sum(part.num_rows for part in self.parts)

    @property
    def num_groups(self) -> int:
        """Groups of rows that know of each other, padding included."""
        return self.size // self.parts[0].source.num_views

    def inputs(self) -> tuple[Any, ...]:
        """The network's arguments, see `NetworkInputs.columns`: `size` rows; padding repeats a row that is there."""
        taken = [part.source.take(part.groups).columns for part in self.parts]
        columns = taken[0]
        if len(taken) > 1:
            columns = tuple(_side_by_side(values) for values in zip(*taken, strict=True))
        places = [place for part in self.parts for place in part.places]
        if places == list(range(self.size)):
            return columns
        origin = torch.zeros(self.size, dtype=torch.long)
        origin[torch.tensor(places)] = torch.arange(len(places))
        return tuple(value[sent(origin, value.device)] if isinstance(value, Tensor) else value for value in columns)

    def hand_out(self, output: Tensor) -> None:
        """Give every ticket its rows of the network's output (size, C, h, w)."""
        for part in self.parts:
            first, num = part.places[0], len(part.places)
            if list(part.places) == list(range(first, first + num)):
                rows = output if num == len(output) else output[first : first + num]
            else:
                rows = output[sent(torch.as_tensor(part.places), output.device)]
            part.source.put(part.groups, rows)


def pack(turns: Iterable[tuple[Ticket, Sequence[int]]], *, limit: int | None = None) -> Batch:
    """Rows side by side in the order of their turns.

    Args:
        turns: tickets and which of their groups are to be done.
        limit: rows of the batch; the last ticket that fits in part gets a part. A group is never parted, and one is always
            taken.
    """
    parts: list[Part] = []
    size = 0
    for ticket, groups in turns:
        views = _views(ticket)
        if limit is not None:
            groups = groups[: max((limit - size) // views, int(size == 0))]
        if groups:
            parts.append(Part(ticket, groups, range(size, size + len(groups) * views)))
            size += len(groups) * views
        if limit is not None and limit - size < views:
            break
    return Batch(parts, size)


def pack_strictly(turns: Iterable[Ticket], *, size: int) -> Batch:
    """A batch that always has `size` rows and in which every strict row has one place, whoever sits beside it.

    A network computes a row from that row alone, but how it adds up may differ with the number of rows and with the place
    among them: matrix products are cut into tiles. With both fixed the result is the same to the last bit. Rows of tickets
    that are not strict fill what stays free. Of views that are denoised together it is the group that has its place.
    """
    parts: list[Part] = []
    views, num_places = 1, size
    free = set(range(size))
    others: list[Ticket] = []
    for ticket in turns:
        if not parts and not others:
            views = _views(ticket)
            num_places = max(1, size // views)
            free = set(range(num_places))
        if not ticket.strict:
            others.append(ticket)
            continue
        assert ticket.rows is not None
        where = ticket.rows.places(num_places)
        groups: list[int] = []
        for group in ticket.rows.todo:
            if where[group] in free:
                free.discard(where[group])
                groups.append(group)
        if groups:
            parts.append(Part(ticket, groups, _places([where[group] for group in groups], views)))
        if not free:
            break
    for ticket in others:
        assert ticket.rows is not None
        groups = ticket.rows.todo[: len(free)]
        if groups:
            parts.append(Part(ticket, groups, _places([free.pop() for _ in groups], views)))
    return Batch(parts, num_places * views)


def _views(ticket: Ticket) -> int:
    assert ticket.rows is not None
    return ticket.rows.num_views


def _places(groups: Sequence[int], views: int) -> list[int]:
    """The rows of the places of groups."""
    return [group * views + view for group in groups for view in range(views)]


def _side_by_side(values: Sequence[Any]) -> Any:
    """The rows of several requests; what is no tensor is the same for all of them."""
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else values[0]
