"""The CPU kernels that layers choose, against torch's own choice: milliseconds of one thread, by turns.

    python -m benchmarks.cpu_kernels

Writes benchmarks/results/cpu_kernels.json.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.machine import describe_machine
from diffusion.networks.layers import GroupNorm, linear
from diffusion.seeding import normal, stream

RESULTS = Path(__file__).parent / "results" / "cpu_kernels.json"
ROUNDS, RUNS = 15, 10


def by_turns(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[float, float]:
    """The least milliseconds of each."""
    least = [float("inf")] * 2
    for _ in range(ROUNDS):
        for number, work in enumerate((ours, theirs)):
            begin = time.thread_time()
            for _ in range(RUNS):
                work()
            least[number] = min(least[number], 1e3 * (time.thread_time() - begin) / RUNS)
    return least[0], least[1]


def main() -> None:
    torch.set_num_threads(1)
    rows = []

    def note(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
        mine, other = by_turns(ours, theirs)
        rows.append({"work": name, "ours_ms": round(mine, 3), "torch_ms": round(other, 3), "ratio": round(other / mine, 2)})
        print(json.dumps(rows[-1]), flush=True)

    with torch.no_grad():
        for num, inputs, outputs in ((512, 192, 192), (512, 192, 1536), (512, 768, 192), (128, 224, 1792), (2048, 640, 640)):
            x, weight = normal((num, inputs), stream(0, "x")), normal((outputs, inputs), stream(0, "weight"))
            name = f"float32 product of {num} rows, {inputs} to {outputs}"
            note(name, lambda x=x, w=weight: linear(x, w, None), lambda x=x, w=weight: F.linear(x, w))
        for shape in ((8, 64, 16, 16), (8, 192, 8, 8), (8, 416, 8, 8), (8, 224, 4, 4)):
            x = normal(shape, stream(1, "x")).bfloat16().to(memory_format=torch.channels_last)
            mine, other = (kind(32, shape[1]).bfloat16() for kind in (GroupNorm, nn.GroupNorm))
            note(f"group norm in bfloat16 of {shape}", lambda x=x, norm=mine: norm(x), lambda x=x, norm=other: norm(x))
    RESULTS.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
