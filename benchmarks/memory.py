"""Memory of the published networks by stage: counted by the scheduler's formulas, and found on tensors without numbers.

    python -m benchmarks.memory [--out benchmarks/results/memory.json] [--measure]

Each stage of Stable Diffusion 1.5 at 512 and SDXL at 1024 pixels runs on meta tensors, which have shapes and no numbers, with
its published configuration. --measure also runs a narrow network on the CPU and reads torch's allocator.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion.checkpoints.architectures import SD1, SDXL, Architecture
from diffusion.checkpoints.footprint import Footprint, coding_bytes, encoder_gradient_bytes, footprint, network_bytes
from diffusion.checkpoints.weights import skeleton
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.strips import decode_in_strips
from diffusion.networks.unet import NUM_SIZES, UNet2DCondition, UNetConfig
from diffusion.text.clip import TextEncoder

CARDS = {"Stable Diffusion 1.x": 8, "Stable Diffusion XL": 16}
"""Gigabytes of the card that each must fit."""
NARROW_UNET = UNetConfig(sample_size=20, block_out_channels=(64, 128, 256, 256), cross_attention_dim=64, attention_head_dim=8)
NARROW_AUTOENCODER = AutoencoderKLConfig(block_out_channels=(32, 64, 128, 128))


class Allocations(TorchDispatchMode):
    """The most bytes of tensors that are alive at once inside the block, parameters and what was there before left out."""

    def __init__(self, network: nn.Module, *given: Tensor) -> None:
        super().__init__()
        self._there = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *given)}
        self._alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._alive and key not in self._there:
                    self._alive[key] = storage.nbytes()
                    weakref.finalize(storage, self._alive.pop, key, None)
        self.peak = max(self.peak, sum(self._alive.values()))
        return result


@contextlib.contextmanager
def fused_attention() -> Iterator[None]:
    """Attention as the fused kernels allocate it, on tensors without numbers: the answer and no matrix."""
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, *_, **__: query.new_empty(query.shape) + 0 * query  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def of_forward(config: UNetConfig, latents: tuple[int, int], dtype: torch.dtype, *, rows: int = 2) -> int:
    """Bytes a row of the UNet's forward, the keys and values of its text counted."""
    network = skeleton(lambda: UNet2DCondition(config)).to(dtype)
    there: dict[str, Any] = {"device": "meta", "dtype": dtype}
    added = [torch.empty(rows, config.pooled_dim + NUM_SIZES, device="meta")] if config.addition_embed_type else []
    text = network.project_context(torch.empty(rows, 77, config.cross_attention_dim, **there), *added)
    x_t, t = torch.empty(rows, config.in_channels, *latents, **there), torch.zeros(rows, dtype=torch.long, device="meta")
    with torch.no_grad(), fused_attention(), Allocations(network, x_t, t) as forward:
        network(x_t, t, text)
    return forward.peak // rows


def of_coding(config: AutoencoderKLConfig, latents: tuple[int, int], dtype: torch.dtype) -> dict[str, int]:
    """Bytes of a picture in each of the autoencoder's stages."""
    autoencoder = skeleton(lambda: AutoencoderKL(config)).to(dtype).requires_grad_(False)
    z = torch.empty(1, config.latent_channels, *latents, device="meta", dtype=dtype)
    picture = torch.empty(1, 3, *(config.spatial_factor * side for side in latents), device="meta", dtype=dtype)
    stages: dict[str, Callable[[], Any]] = {
        "decode": lambda: autoencoder.decode(z),
        "decode in strips": lambda: decode_in_strips(autoencoder, z),
        "encoder gradient": lambda: pulled_back(autoencoder, picture, checkpointed=False),
        "with checkpoints": lambda: pulled_back(autoencoder, picture, checkpointed=True),
    }
    found = {}
    for name, stage in stages.items():
        with torch.set_grad_enabled("decode" not in name), fused_attention(), Allocations(autoencoder, z, picture) as coding:
            stage()
        found[name] = coding.peak
    return found


def pulled_back(autoencoder: AutoencoderKL, picture: Tensor, *, checkpointed: bool) -> Tensor:
    """The encoder's vector-Jacobian product, as `diffusion.prior.Prior` asks for it."""
    leaf = picture.detach().requires_grad_()
    latents = autoencoder.encode(leaf, checkpointed=checkpointed)
    return torch.autograd.grad(latents, leaf, torch.ones_like(latents))[0]


def counted(
    config: UNetConfig, autoencoder: AutoencoderKLConfig, latents: tuple[int, int], *, itemsize: int = 4, vae_itemsize: int = 4
) -> dict[str, int]:
    """The same stages by the formulas that choose rows and places."""
    widths, size, vae_size = autoencoder.decoder_widths, itemsize, vae_itemsize
    return {
        "forward, a row": network_bytes(config, latents, itemsize=size),
        "decode": coding_bytes(widths, latents, itemsize=vae_size),
        "decode in strips": coding_bytes(widths, latents, tiled=True, itemsize=vae_size),
        "encoder gradient": encoder_gradient_bytes(widths, latents, itemsize=vae_size),
        "with checkpoints": encoder_gradient_bytes(widths, latents, checkpointed=True, itemsize=vae_size),
    }


def hollow_file(architecture: Architecture, path: Path) -> Path:
    """A single file as published, in half precision: its header, and a hole where the numbers would be."""
    parts: list[tuple[str, nn.Module]] = [
        ("model.diffusion_model.", skeleton(lambda: UNet2DCondition(architecture.unet))),
        ("first_stage_model.", skeleton(lambda: AutoencoderKL(architecture.autoencoder))),
    ]
    parts += [(tower.prefix, skeleton(functools.partial(TextEncoder, tower.config))) for tower in architecture.towers]
    return hollow(path, {prefix + name: value.shape for prefix, part in parts for name, value in part.state_dict().items()})


def hollow(path: Path, shapes: Mapping[str, Sequence[int]]) -> Path:
    """A safetensors file in half precision by its header, with a hole where the numbers would be."""
    header: dict[str, Any] = {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + 2 * prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)
    return path


def row(architecture: Architecture, dtype: str, folder: Path) -> dict[str, Any]:
    """A line of the table: what the scheduler counts for the file, and each stage by formula and on meta tensors."""
    path = folder / "model.safetensors"
    whole: Footprint = footprint(f"{hollow_file(architecture, path)}?dtype={dtype}")
    side = max(architecture.image_sizes.values()) // architecture.autoencoder.spatial_factor
    unet, latents = replace(architecture.unet, sample_size=side), (side, side)
    precision = getattr(torch, dtype)
    vae_precision = torch.float32 if dtype == "float16" else precision
    found = of_coding(architecture.autoencoder, latents, vae_precision)
    found["forward, a row"] = of_forward(unet, latents, precision)
    sizes = {"itemsize": precision.itemsize, "vae_itemsize": vae_precision.itemsize}
    formulas = counted(unet, architecture.autoencoder, latents, **sizes)
    return {
        "model": architecture.name,
        "pixels": 8 * side,
        "dtype": dtype,
        "card_gb": CARDS[architecture.name],
        "weights": whole.weights,
        "towers": sum(whole.towers),
        "images": whole.least_on_gpu(),
        "steps_of_3d": whole.least_on_gpu(in_3d=True),
        "at_ease": whole.on_gpu,
        "stages": {name: {"counted": formulas[name], "on_meta_tensors": found[name]} for name in formulas},
    }


def measured() -> dict[str, dict[str, int]]:
    """A narrow UNet and autoencoder on the CPU: the peak of torch's allocator beside the formulas, in bytes."""
    latents = (NARROW_UNET.sample_size,) * 2
    formulas = counted(NARROW_UNET, NARROW_AUTOENCODER, latents)
    unet = UNet2DCondition(NARROW_UNET).eval().requires_grad_(False)
    autoencoder = AutoencoderKL(NARROW_AUTOENCODER).eval().requires_grad_(False)
    x_t, t, picture = torch.ones(2, 4, *latents), torch.full((2,), 500), torch.ones(1, 3, *(8 * side for side in latents))
    with torch.no_grad():
        text = unet.project_context(torch.ones(2, 77, NARROW_UNET.cross_attention_dim))
    stages: dict[str, tuple[Callable[[], Any], int]] = {
        "forward, a row": (lambda: unet(x_t, t, text), 2),
        "decode": (lambda: autoencoder.decode(x_t[:1]), 1),
        "decode in strips": (lambda: decode_in_strips(autoencoder, x_t[:1]), 1),
        "encoder gradient": (lambda: pulled_back(autoencoder, picture, checkpointed=False), 1),
        "with checkpoints": (lambda: pulled_back(autoencoder, picture, checkpointed=True), 1),
    }
    found = {}
    for name, (stage, rows) in stages.items():
        with torch.set_grad_enabled(name in ("encoder gradient", "with checkpoints")):
            found[name] = {"counted": formulas[name], "measured": allocator_peak(stage) // rows}
    return found


def allocator_peak(function: Callable[[], Any]) -> int:
    """The most bytes that torch's CPU allocator had given out during the call, beyond what it had before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    result = recorded.profiler.kineto_results  # type: ignore[union-attr]
    now = most = 0
    for event in sorted((event for event in result.events() if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(model, dtype, Path(folder)) for model in (SD1, SDXL) for dtype in ("float32", "float16", "bfloat16")]
    for line in rows:
        gb = {name: round(line[name] / 1e9, 2) for name in ("weights", "towers", "images", "steps_of_3d", "at_ease")}
        print(f"{line['model']} at {line['pixels']}, {line['dtype']}, card of {line['card_gb']} GB:", gb)
        for name, figures in line["stages"].items():
            print(f"  {name:18}", *(f"{key} {value / 1e9:.3f}" for key, value in figures.items()))
    found: dict[str, Any] = {"published": rows}
    if options.measure:
        found["narrow"] = measured()
        for name, figures in found["narrow"].items():
            print(f"{name:18} counted {figures['counted'] / 1e6:.1f} MB, measured {figures['measured'] / 1e6:.1f} MB")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
