"""What computing the keys and values of cross-attention once per prompt, instead of in every forward, would save at most.

    python -m benchmarks.cross_attention

For the published UNets the share of all multiplications, counted on the meta device at their own picture sizes; for the toybox
prior also the measured time of a forward whose keys and values lie ready, against a whole one. Keys and values differ from
prompt to prompt, so that a batch of many prompts would have to gather them; the ready ones here cost nothing to get.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe_machine, one_line
from diffusion.checkpoints.weights import skeleton
from diffusion.networks.attention import Attention
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.prior import Prior
from diffusion.seeding import normal, stream
from orchestrator.runtimes.threads import use_threads
from tests.diffusion.checkpoints.published import PUBLISHED

NUM_TOKENS = 77


def share_of_multiplications(config: UNetConfig, side: int, num_tokens: int) -> float:
    """Key and value projections of the text / the whole forward of one row of side x side latents."""
    unet = skeleton(lambda: UNet2DCondition(config))
    x = torch.empty(1, config.in_channels, side, side, device="meta")
    states = torch.empty(1, num_tokens, config.cross_attention_dim, device="meta")
    added = torch.empty(1, config.added_dim, device="meta") if config.added_dim else None
    with FlopCounterMode(display=False) as whole:
        unet(x, torch.zeros(1, device="meta"), states, added)
    projections = [layer for part in _cross_attentions(unet) for layer in (part.to_k, part.to_v)]
    ready = sum(2 * num_tokens * layer.in_features * layer.out_features for layer in projections)
    return ready / whole.get_total_flops()


def _cross_attentions(unet: nn.Module) -> list[Attention]:
    return [part for name, part in unet.named_modules() if name.endswith("attn2") and isinstance(part, Attention)]


@contextmanager
def ready_keys_and_values(unet: nn.Module) -> Iterator[None]:
    """Within it the projections of the text return what they returned at their first call."""
    layers = [layer for part in _cross_attentions(unet) for layer in (part.to_k, part.to_v)]

    def once(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        kept: list[Tensor] = []

        def forward(states: Tensor) -> Tensor:
            if not kept:
                kept.append(nn.functional.linear(states, layer.weight))
            return kept[0]

        return forward

    for layer in layers:
        layer.forward = once(layer)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.no_grad()
def measured_saving(prior: Prior, rows: int, repeats: int) -> tuple[float, float, float]:
    """Quartiles of 1 - (ready / whole), by the processor time of neighbouring forwards."""
    x, t = normal((rows, *prior.latent_shape), stream(0, "x")), torch.full((rows,), 600)
    tokens = prior.encode_text(["a red mushroom with a white stem"]).expand(rows, -1, -1).contiguous()

    def seconds() -> float:
        begin = time.process_time()
        prior.predict(x, t, tokens)
        return time.process_time() - begin

    savings = []
    for _ in range(repeats):
        with ready_keys_and_values(prior.unet):
            seconds()
            ready = seconds()
        savings.append(1 - ready / seconds())
    low, middle, high = statistics.quantiles(savings, n=4)
    return low, middle, high


def main(arguments: list[str] | None = None) -> int:
    """Count, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="forwards of each kind")
    options = parser.parse_args(arguments)
    use_threads(1)
    print(one_line(describe_machine()))
    prior = Prior.load("toybox")
    config: Any = prior.unet.config
    tokens = prior.encode_text([""]).shape[1]
    shares = {"toybox, 64x64": share_of_multiplications(config, prior.latent_shape[1], tokens)}
    for model, side in (("sd15", 64), ("sd2-v", 96), ("sdxl", 128), ("sdxl", 64)):
        published = UNetConfig.from_dict(PUBLISHED[model]["unet"])
        shares[f"{model}, {8 * side}x{8 * side}"] = share_of_multiplications(published, side, NUM_TOKENS)
    for name, share in shares.items():
        print(f"{name:<20}{share:>8.2%} of all multiplications", flush=True)
    for rows in (2, 8, 32):
        low, middle, high = measured_saving(prior, rows, options.repeats)
        print(f"toybox, {rows:>2} rows     {middle:>8.2%} of the time ({low:.2%} to {high:.2%})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
