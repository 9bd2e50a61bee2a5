"""Where bfloat16 is fast: on a processor without instructions for it a product takes four times as long as in float32."""

import functools

import torch


@functools.cache
def has_fast_bfloat16(device_type: str) -> bool:
    """Whether a device ("cpu", "cuda") multiplies in bfloat16 faster than in float32.

    NVIDIA GPUs do from compute capability 8.0 on; CPUs with AVX-512-BF16 or AMX.
    """
    if device_type == "cuda":
        return torch.cuda.get_device_capability() >= (8, 0)
    if device_type != "cpu":
        return False
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


def autocast(device_type: str, *, enabled: bool = True) -> torch.autocast:
    """Context in which networks compute in bfloat16 where that is fast, else as their weights are."""
    return torch.autocast(device_type, torch.bfloat16, enabled=enabled and has_fast_bfloat16(device_type))
