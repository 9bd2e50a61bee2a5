"""Stage by stage: operations, bytes, time, and the floor that this processor's own peaks set. One thread.

    python -m benchmarks.roofline

The peaks are measured in the same run: products of large square matrices by oneDNN, and the sum of two large vectors. The floor
of a stage is the longer of its operations at the one and its bytes at the other. Bytes are those of every operator's operands
and results, as if none were left in a cache: where the time is below the memory's floor, caches held them.

Writes benchmarks/results/roofline.json.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.machine import describe_machine
from diffusion.networks import layers
from diffusion.prior import Prior
from diffusion.seeding import normal, stream
from nerf3d.cameras import Cameras
from nerf3d.fields import FieldConfig, make_field
from nerf3d.rendering import Occupancy, render

RESULTS = Path(__file__).parent / "results" / "roofline.json"
ROUNDS = 9
SIDE = 2048
_PROMPTS = ["a red mushroom with a white stem", "a blue chair", "a green teapot", "a yellow duck"]


class _Counter(TorchDispatchMode):
    """Adds up what operators compute, and the bytes that they read and write; views move none."""

    operations = 0
    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        if not func.is_view:
            leaves = tree_leaves((args, kwargs, result))
            self.num_bytes += sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))
        return result


def counted(work: Callable[[], Any]) -> _Counter:
    """What one run takes."""
    known, layers._HAS_ONEDNN = layers._HAS_ONEDNN, False  # torch has no formulas for oneDNN's own operators
    try:
        with _Counter() as counter:
            work()
    finally:
        layers._HAS_ONEDNN = known
    return counter


def least_seconds(works: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Processor seconds of each: the least of several rounds in turn, which other work on the machine disturbs least."""
    seconds = dict.fromkeys(works, float("inf"))
    for _ in range(ROUNDS):
        for name, work in works.items():
            begin = time.thread_time()
            work()
            seconds[name] = min(seconds[name], time.thread_time() - begin)
    return seconds


def stages(dtype: str) -> dict[str, Callable[[], Any]]:
    """The toybox's networks as a 3D step of four views asks them, and the fit's picture with its gradient."""
    prior = Prior.load(f"toybox?dtype={dtype}")
    x, t = normal((8, *prior.latent_shape), stream(0, "x")), torch.full((8,), 600)
    tokens = prior.condition(_PROMPTS).tokens.repeat(2, 1, 1)
    images = normal((4, 3, prior.image_size, prior.image_size), stream(0, "images")).sigmoid()
    latents = prior.encode(images)
    found: dict[str, Callable[[], Any]] = {
        "UNet, 8 rows": lambda: prior.predict(x, t, tokens),
        "encoder, 4 views": lambda: prior.encode(images),
        "encoder and its gradient, 4 views": lambda: prior.encoder_gradient(images, latents),
        "decoder, 4 views": lambda: prior.decode(latents),
        "text tower, 4 prompts": lambda: prior.encode_text(_PROMPTS),
    }
    if dtype == "float32":
        field, occupancy = make_field(FieldConfig()), Occupancy()
        with torch.no_grad():
            occupancy.refresh(field.query().density, seed=0, step=0)
        cameras = Cameras.orbit([0.0, 90.0, 180.0, 270.0], 15.0)

        def picture() -> None:
            with torch.enable_grad():
                query = field.query(normals=True)
                drawn = render(query, occupancy, cameras, 64, background=torch.ones(4, 3), shading="lambert")
                (drawn.rgb.square().mean() + sum(query.total_variation(stream(0, "unused")))).backward()

        found["four views of 64 and their gradient, dense pyramid"] = picture
    return found


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for dtype in ("float32", "bfloat16"):
        kind = getattr(torch, dtype)
        square, line = normal((SIDE, SIDE), stream(0, "square")).to(kind), torch.ones(2**25)
        works = stages(dtype)
        counts = {name: counted(work) for name, work in works.items()}
        works["product"] = functools.partial(layers.linear, square, square, None)
        works["sum"] = functools.partial(torch.add, line, torch.zeros_like(line), out=line)
        seconds = least_seconds(works)
        peak, stream_rate = 2 * SIDE**3 / seconds.pop("product"), 3 * line.nbytes / seconds.pop("sum")
        rows.append({"dtype": dtype, "peak_gflops": round(peak / 1e9), "peak_gbytes": round(stream_rate / 1e9, 1)})
        for name, time_taken in seconds.items():
            operations, moved = counts[name].operations, counts[name].num_bytes
            row = {
                "stage": name,
                "dtype": dtype,
                "gflop": round(operations / 1e9, 3),
                "megabytes": round(moved / 1e6, 1),
                "milliseconds": round(1e3 * time_taken, 2),
                "gflops": round(operations / time_taken / 1e9),
                "floor_operations_ms": round(1e3 * operations / peak, 2),
                "floor_memory_ms": round(1e3 * moved / stream_rate, 2),
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    RESULTS.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
