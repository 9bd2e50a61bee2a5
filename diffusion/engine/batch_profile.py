"""How fast this network is on this device at each batch size, measured; and the size from which more brings nothing."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.engine.memory import is_out_of_memory, release_cached_memory

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BatchProfile:
    """rows_per_second: batch size -> rows per second."""

    rows_per_second: Mapping[int, float]

    def knee(self, *, share: float = 0.95) -> int:
        """The smallest batch that reaches this share of the best rate: larger ones only make others wait."""
        best = max(self.rows_per_second.values())
        return min(size for size, rate in self.rows_per_second.items() if rate >= share * best)


@torch.no_grad()
def profile_batches(
    network: Network,
    *,
    latent_shape: Sequence[int],
    tokens: Tensor,
    device: torch.device | str = "cpu",
    sizes: Sequence[int] = SIZES,
    repeats: int = 2,
    seconds: float = 3.0,
    longest_forward: float = 0.5,
    clock: Callable[[], float] = time.perf_counter,
) -> BatchProfile:
    """Times forwards of rising size; of each, the fastest repeat counts.

    Stops at the first size that is out of memory, whose forward takes longer than `longest_forward` (a query would wait
    that long), or that is slower than half of the best rate, and when `seconds` are spent.

    Args:
        network: see `diffusion.guidance.Network`. latent_shape: (C, h, w). tokens: (1, S, K), any prompt's, see `Condition`.
    """
    rates: dict[int, float] = {}
    begin = clock()
    for size in sizes:
        try:
            x_t = torch.zeros((size, *latent_shape), device=device)
            t = torch.zeros(size, dtype=torch.long, device=device)
            text = tokens.to(device).expand(size, *tokens.shape[1:]).contiguous()
            fastest = min(_time(network, x_t, t, text, clock) for _ in range(repeats + (size == sizes[0])))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            release_cached_memory(error)
            break
        rates[size] = size / max(fastest, 1e-9)
        if fastest > longest_forward or rates[size] < 0.5 * max(rates.values()) or clock() - begin > seconds:
            break
    if not rates:
        raise torch.OutOfMemoryError("not even one row fits into the memory of the device")
    return BatchProfile(rates)


def _time(network: Network, x_t: Tensor, t: Tensor, tokens: Tensor, clock: Callable[[], float]) -> float:
    begin = clock()
    network(x_t, t, tokens)
    if x_t.device.type == "cuda":
        torch.cuda.synchronize(x_t.device)
    return clock() - begin
