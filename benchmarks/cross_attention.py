"""What it saves to compute the keys and values of cross-attention once per prompt instead of in every forward.

    python -m benchmarks.cross_attention [--only toybox]

For the published UNets the share of all multiplications, counted on the meta device at their own picture sizes. For the
toybox prior and for Stable Diffusion 1.5 (random weights, pictures of 256x256) the measured time of a forward from text
states, and of one from what `UNet2DCondition.project_context` made of them. Both gather their rows first, as the engine
does for each forward: projected rows are 15 times as large as states, and that is in the figures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe_machine, one_line
from benchmarks.saving import save_run
from diffusion.checkpoints.weights import skeleton
from diffusion.networks.layers import channels_last
from diffusion.networks.projected_context import ProjectedContext, cross_attentions
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.prior import Prior
from diffusion.seeding import normal, stream
from orchestrator.host.threads import use_threads
from tests.diffusion.checkpoints.published import PUBLISHED

RESULTS = Path(__file__).parent / "results" / "cross_attention.json"
NUM_TOKENS = 77


def share_of_multiplications(config: UNetConfig, side: int, num_tokens: int) -> float:
    """Key and value projections of the text / the whole forward of one row of side x side latents."""
    unet = skeleton(lambda: UNet2DCondition(config))
    x = torch.empty(1, config.in_channels, side, side, device="meta")
    states = torch.empty(1, num_tokens, config.cross_attention_dim, device="meta")
    added = torch.empty(1, config.added_dim, device="meta") if config.added_dim else None
    with FlopCounterMode(display=False) as whole:
        unet(x, torch.zeros(1, device="meta"), states, added)
    projections = [layer for part in cross_attentions(unet) for layer in (part.to_k, part.to_v)]
    ready = sum(2 * num_tokens * layer.in_features * layer.out_features for layer in projections)
    return ready / whole.get_total_flops()


@torch.no_grad()
def measured_saving(unet: UNet2DCondition, states: Tensor, *, side: int, rows: int, repeats: int) -> tuple[float, float, float]:
    """Quartiles of 1 - (projected / raw), by the processor time of neighbouring forwards.

    Args:
        states: (1, S, D) of one text. side: of the latents. rows: of a forward.
    """
    x, t = normal((rows, unet.config.in_channels, side, side), stream(0, "x")).to(states.dtype), torch.full((rows,), 600)
    projected, same = unet.project_context(states).packed(), torch.zeros(rows, dtype=torch.long)

    def from_states() -> Tensor:
        return unet(x, t, states[same])

    def from_projected() -> Tensor:
        return unet(x, t, ProjectedContext.unpacked(projected[same], embedding_dim=unet.context_embedding_dim))

    savings = []
    for repeat in range(1 + repeats):
        ways = (from_states, from_projected) if repeat % 2 else (from_projected, from_states)
        seconds = {way: _seconds(way) for way in ways}
        savings.append(1 - seconds[from_projected] / seconds[from_states])
    low, middle, high = statistics.quantiles(savings[1:], n=4)
    return low, middle, high


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _toybox() -> tuple[UNet2DCondition, Tensor]:
    prior = Prior.load("toybox")
    with torch.no_grad():
        return prior.unet, prior.encode_text(["a red mushroom with a white stem"])[0]


def _stable_diffusion() -> tuple[UNet2DCondition, Tensor]:
    torch.manual_seed(0)
    unet = UNet2DCondition(UNetConfig.from_dict(PUBLISHED["sd15"]["unet"])).eval().requires_grad_(False)
    return channels_last(unet), normal((1, NUM_TOKENS, 768), stream(0, "states"))


def main(arguments: list[str] | None = None) -> int:
    """Count, measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="forwards of each kind")
    parser.add_argument("--only", default="", help="networks with this in their name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    use_threads(1)
    machine = describe_machine()
    print(one_line(machine))
    unet, states = _toybox()
    shares = {"toybox, 64x64": share_of_multiplications(unet.config, unet.config.sample_size, states.shape[1])}
    for model, side in (("sd15", 64), ("sd15", 32), ("sd2-v", 96), ("sdxl", 128), ("sdxl", 64)):
        published = UNetConfig.from_dict(PUBLISHED[model]["unet"])
        shares[f"{model}, {8 * side}x{8 * side}"] = share_of_multiplications(published, side, NUM_TOKENS)
    for name, share in shares.items():
        print(f"{name:<28}{share:>8.2%} of all multiplications", flush=True)
    for name, load, side, sizes in (("toybox", _toybox, 16, (2, 8, 32)), ("sd15, 256x256", _stable_diffusion, 32, (2,))):
        if options.only not in name:
            continue
        unet, states = load()
        for rows in sizes:
            low, middle, high = measured_saving(unet, states, side=side, rows=rows, repeats=options.repeats)
            print(f"{name}, {rows:>2} rows".ljust(28) + f"{middle:>8.2%} of the time ({low:.2%} to {high:.2%})", flush=True)
            settings = {"network": name, "rows": rows, "repeats": options.repeats, "threads": 1}
            save_run(options.out, machine, settings, {"saving": {"low": low, "median": middle, "high": high}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
