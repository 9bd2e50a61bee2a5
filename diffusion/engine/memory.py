"""Running out of memory, and errors that a process does not outlive, told apart from other errors."""

import traceback

import psutil
import torch

_SHORT = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")

CALM = 256
"""After so many calls that fitted, batches that were halved for want of memory grow again: who took it may have gone."""


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for CUDA's and sentences for the CPU's and the libraries'."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _SHORT)
    )


def is_sticky(error: BaseException | None) -> bool:
    """Whether it, or what caused it, is an error after which every CUDA call of the process fails, as a device assert is."""
    while error is not None:
        if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
            return True
        error = error.__cause__ or error.__context__
    return False


SURELY_FREE = 0.95
"""Of what is free: the rest is for what an estimate leaves out."""


def free_bytes(device: torch.device) -> int:
    """Of the device that torch computes on, what it keeps for later use included."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available


def release_cached_memory(error: BaseException) -> None:
    """Give what torch keeps for later back to the device, and first what the frames of a forward that failed still hold."""
    traceback.clear_frames(error.__traceback__)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class StrictOutOfMemory(MemoryError):
    """A strict forward did not fit; its size is part of the result, so it cannot be tried with fewer rows."""
