"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, GPU, versions, and how busy the machine is right now."""
    import torch

    from orchestrator.host.threads import available_cores

    return {
        "processor": _processor(),
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def one_line(machine: dict[str, Any]) -> str:
    """The machine as a caption."""
    gpu = f", {machine['gpu']}" if machine["gpu"] else ", no GPU"
    busy = f", load {machine['load_average'][0]} before" if machine["load_average"][0] > 0.5 else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB{gpu}; Python "
        f"{machine['python']}, torch {machine['torch']}{busy}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
