"""Text states and SDXL's vector condition in one tensor, so that whoever batches conditions moves one tensor.

SDXL's UNet reads, beside the text states (B, S, D), one vector a row: pooled text and six sizes. Packed, the vector is
one more row behind the states, filled up with zeros.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def pack(states_BSD: Tensor, added_BA: Tensor) -> Tensor:
    """(B, S, D), (B, A) with A <= D -> (B, S + 1, D)."""
    row = F.pad(added_BA, (0, states_BSD.shape[-1] - added_BA.shape[-1]))
    return torch.cat([states_BSD, row[:, None]], dim=1)


def unpack(packed: Tensor, added_dim: int) -> tuple[Tensor, Tensor | None]:
    """The inverse: (B, S, D) and (B, added_dim); where `added_dim` is 0 the tensor as it is, and None."""
    if added_dim == 0:
        return packed, None
    return packed[:, :-1], packed[:, -1, :added_dim]
