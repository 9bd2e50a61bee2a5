"""Memory layout of convolutional networks."""

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def channels_last(module: Module) -> Module:
    """The module with its weights laid out channels last, in which CPU and GPU convolutions in bfloat16 are fastest."""
    # torch's own stubs leave this overload out.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module
