"""Running out of memory, told apart from other errors."""

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for CUDA's and a sentence for the CPU's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def release_cached_memory() -> None:
    """Give what torch keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
