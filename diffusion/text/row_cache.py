"""Texts that were read already, kept by prompt in so many bytes, and put side by side without copying where they are one."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor


class RowCache:
    """Tensors by key, at most `max_bytes` of them: the least recently used goes first, the latest always stays."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rows: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._num_bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._rows

    def get(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """The tensor of that key, computed unless it is here."""
        if key in self._rows:
            self._rows.move_to_end(key)
            return self._rows[key]
        row = self._rows[key] = compute()
        self._num_bytes += row.nbytes
        while self._num_bytes > self._max_bytes and len(self._rows) > 1:
            _, oldest = self._rows.popitem(last=False)
            self._num_bytes -= oldest.nbytes
        return row

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()
        self._num_bytes = 0


def side_by_side(rows: Sequence[Tensor]) -> Tensor:
    """Tensors (...) to (B, ...); B times the same tensor shares its memory."""
    first = rows[0]
    if all(row.is_set_to(first) for row in rows):
        return first.expand(len(rows), *first.shape)
    return torch.stack(list(rows))
