"""Networks that wait on the CPU and are on a device only while they are asked: text towers, where a GPU is short of memory."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def lent(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the module's weights are on the device; afterwards it has those again that never left."""
    tables: list[dict[str, Any]] = [table for part in module.modules() for table in (part._parameters, part._buffers)]
    here = [dict(table) for table in tables]
    try:
        for table in tables:
            for name, tensor in table.items():
                table[name] = None if tensor is None else tensor.to(device)
        yield
    finally:
        for table, tensors in zip(tables, here, strict=True):
            table.update(tensors)
