"""A table of tokens with rows of its own behind one that others share: words that one request alone has taught a text tower."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Network = TypeVar("Network", bound=nn.Module)


class LongerEmbedding(nn.Module):
    """Rows of a shared table, and behind them more.

    Args:
        table: stays as it is. rows: (n, width) of the ids from `len(table.weight)` on.
    """

    rows: Tensor

    def __init__(self, table: nn.Embedding, rows: Tensor | None = None) -> None:
        super().__init__()
        self.table = table
        self.register_buffer("rows", table.weight.new_empty(0, table.embedding_dim) if rows is None else rows)

    def __len__(self) -> int:
        return len(self.table.weight) + len(self.rows)

    def extended(self, rows: Tensor) -> "LongerEmbedding":
        """With further rows behind all others."""
        return LongerEmbedding(self.table, torch.cat([self.rows, rows.to(self.rows)]))

    def forward(self, ids: Tensor) -> Tensor:
        """(...) int64 -> (..., width)."""
        if not len(self.rows):
            return self.table(ids)
        first = len(self.table.weight)
        own = F.embedding((ids - first).clamp(min=0), self.rows)
        return torch.where((ids >= first)[..., None], own, self.table(ids.clamp(max=first - 1)))


def with_module(network: Network, path: str, module: nn.Module) -> Network:
    """The same network with another module at a dotted path; all others are shared."""
    changed = copy.copy(network)
    changed._modules = dict(network._modules)
    name, _, rest = path.partition(".")
    changed._modules[name] = with_module(network.get_submodule(name), rest, module) if rest else module
    return changed
