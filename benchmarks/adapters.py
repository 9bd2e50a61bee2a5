"""What LoRAs of requests cost on a shared prior: a forward's time and the bytes of an adapter, and eight LoRAs over 64 rows.

    python -m benchmarks.adapters [--only toybox]

Forwards: the network as it is, with low-rank side paths, and with merged copies of the weights that change, for LoRAs of rank
16 on the attention, or on every linear layer and convolution; measured of the toybox (and, where asked for, of Stable Diffusion
1.5 with random weights at 256x256 pixels), counted of published structures. Rows: eight requests of eight rows each, through
one prior without LoRAs, one prior with a LoRA for each request, and eight priors with one merged into each. Ways take turns;
times are of the processor, ratios medians over rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe_machine, one_line
from benchmarks.saving import save_run
from diffusion.checkpoints.adapted import adapted
from diffusion.checkpoints.lora import modules
from diffusion.checkpoints.lora_files import Lora
from diffusion.checkpoints.weights import skeleton
from diffusion.networks.layers import channels_last
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.prior import Prior
from diffusion.requests import Guidance
from diffusion.seeding import normal, stream
from diffusion.text.row_cache import RowCache
from jobs.prior_client import GenerateRequest
from jobs.specs import find_loras
from orchestrator.host.threads import use_threads
from orchestrator.prior.local import LocalPrior, load_prior
from tests.diffusion.checkpoints.published import PUBLISHED

RESULTS = Path(__file__).parent / "results" / "adapters.json"
RANK, NUM_LORAS, ROWS_EACH = 16, 8, 8
ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
PROMPTS = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("cup", "duck", "table", "house")]


def write_lora(prior: Prior, path: Path, *, everywhere: bool, seed: int) -> Path:
    """A LoRA of random factors on the UNet's attention, or on all its linear layers and convolutions and the text tower's."""
    tensors: dict[str, Tensor] = {}
    names = [name for name, _ in prior.unet.named_modules() if everywhere or name.endswith(ATTENTION)]
    targets = {f"unet.{name}" for name in names}
    for name, module in modules(prior).items():
        in_text = everywhere and name.startswith("text_encoder.text_model.encoder.")
        if module.weight is None or module.weight.ndim < 2 or not (name in targets or in_text):
            continue
        rank, window = min(RANK, *module.weight.shape[:2]), module.weight.shape[2:]
        down, up = (rank, *module.weight.shape[1:]), (len(module.weight), rank, *[1] * len(window))
        tensors[f"{name}.lora_A.weight"] = normal(down, stream(seed, name, "A")) * 0.02
        tensors[f"{name}.lora_B.weight"] = normal(up, stream(seed, name, "B")) * 0.02
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def processor_seconds(work: Callable[[], Any]) -> float:
    """Of all threads of this process."""
    begin = time.process_time()
    work()
    return time.process_time() - begin


def in_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Way -> seconds of each round after one that is not counted; every other round begins at the other end."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name in list(ways)[:: 1 if number % 2 else -1]:
            seconds[name].append(processor_seconds(ways[name]))
    return {name: times[1:] for name, times in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], way: str, base: str) -> float:
    """Median over rounds of the way's time over that of the base."""
    return statistics.median(one / other for one, other in zip(seconds[way], seconds[base], strict=True))


@torch.no_grad()
def forwards(prior: Prior, folder: Path, *, everywhere: bool, side: int, rows: int, rounds: int) -> dict[str, Any]:
    """A forward's time by the three ways, bytes of both kinds of adapter, and the time to make them of a file."""
    loras = (Lora.named(str(write_lora(prior, folder / f"{everywhere}.safetensors", everywhere=everywhere, seed=0))),)
    made: dict[str, tuple[Prior, int]] = {}
    loading = {}
    for name, merged in (("side paths", False), ("merged copies", True)):
        begin = time.process_time()
        made[name] = adapted(prior, loras, merged=merged)
        loading[name] = time.process_time() - begin
    x, t = normal((rows, prior.unet.config.in_channels, side, side), stream(0, "x")), torch.full((rows,), 600)
    states = normal((rows, 77, prior.unet.config.cross_attention_dim), stream(0, "states"))

    def forward(model: Prior) -> Callable[[], Tensor]:
        tokens = model.unet.project_context(states).packed()
        return lambda: model.predict_together(x, t, tokens)

    ways = {"no LoRA": forward(prior), **{name: forward(model) for name, (model, _) in made.items()}}
    apart = (ways["side paths"]() - ways["merged copies"]()).abs().max() / ways["merged copies"]().abs().max()
    seconds = in_turns(ways, rounds)
    return {
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio": {name: ratio(seconds, name, "no LoRA") for name in made},
        "bytes": {name: num for name, (_, num) in made.items()},
        "loading_seconds": loading,
        "file_bytes": Path(loras[0].file).stat().st_size,
        "largest_relative_difference": float(apart),
    }


def eight_loras(folder: Path, *, everywhere: bool, num_steps: int, rounds: int) -> dict[str, Any]:
    """64 rows by the three ways: network rows per second of the processor, ratios, bytes."""
    base = Prior.load("toybox")
    files = [write_lora(base, folder / f"{i}.safetensors", everywhere=everywhere, seed=i) for i in range(NUM_LORAS)]
    shared, merged = load_prior("toybox"), [load_prior(f"toybox?lora={file}") for file in files]
    loras = [find_loras([str(file)]) for file in files]

    def requests(own: list[tuple[Lora, ...]]) -> list[GenerateRequest]:
        return [
            GenerateRequest(
                prompts=(prompt,) * ROWS_EACH,
                seeds=tuple(range(ROWS_EACH)),
                num_steps=num_steps,
                guidance=Guidance(scale=4.0),
                adapters=one,
            )
            for prompt, one in zip(PROMPTS, own, strict=True)
        ]

    def drawn(priors: list[LocalPrior], own: list[tuple[Lora, ...]]) -> None:
        for prior in priors:
            _texts_of(prior).clear()
        pairs = list(zip(priors if len(priors) > 1 else priors * NUM_LORAS, requests(own), strict=True))
        pending = [prior.begin_generate(request, job=str(i)) for i, (prior, request) in enumerate(pairs)]
        while not all(one.finished for one in pending):
            for prior in priors:
                if prior.engine.live:
                    prior.engine.step()
        for one in pending:
            one.result()

    nothing: list[tuple[Lora, ...]] = [()] * NUM_LORAS
    ways = {
        "one prior, no LoRA": lambda: drawn([shared], nothing),
        "one prior, eight LoRAs": lambda: drawn([shared], loras),
        "eight priors": lambda: drawn(merged, nothing),
    }
    weights = shared.num_bytes
    seconds = in_turns(ways, rounds)
    rows = NUM_LORAS * ROWS_EACH
    return {
        "rows_per_second": {name: rows / statistics.median(times) for name, times in seconds.items()},
        "ratio": {name: 1 / ratio(seconds, name, "one prior, no LoRA") for name in ways},
        "bytes": {
            "one prior, no LoRA": weights,
            "one prior, eight LoRAs": shared.num_bytes,
            "eight priors": sum(prior.num_bytes for prior in merged),
        },
    }


def counted(model: str, latents: int, *, everywhere: bool) -> dict[str, float]:
    """Of a published UNet: bytes of both kinds of adapter in float32, and multiplications that side paths add to a forward."""
    config = UNetConfig.from_dict(PUBLISHED[model]["unet"])
    unet = skeleton(lambda: UNet2DCondition(config))
    added, side_bytes, merged_bytes = [0], 0, 0
    for name, layer in unet.named_modules():
        if not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)) or not (everywhere or name.endswith(ATTENTION)):
            continue
        out, inner = len(layer.weight), layer.weight[0].numel()
        rank = min(RANK, out, layer.weight.shape[1])
        side_bytes, merged_bytes = side_bytes + 4 * rank * (inner + out), merged_bytes + 4 * layer.weight.numel()

        def note(_: Any, __: Any, output: Tensor, per_place: int = rank * (inner + out), out: int = out) -> None:
            added[0] += output.numel() // out * per_place

        layer.register_forward_hook(note)
    x = torch.empty(1, config.in_channels, latents, latents, device="meta")
    states = torch.empty(1, 77, config.cross_attention_dim, device="meta")
    pooled = torch.empty(1, config.added_dim, device="meta") if config.added_dim else None
    with FlopCounterMode(display=False) as whole:
        unet(x, torch.zeros(1, device="meta"), states, pooled)
    share = 2 * added[0] / whole.get_total_flops()
    return {"side_path_bytes": side_bytes, "merged_bytes": merged_bytes, "multiplications_added": share}


def _texts_of(prior: LocalPrior) -> RowCache:
    return prior._prior.text_cache  # type: ignore[attr-defined]


def _stable_diffusion(toybox: Prior) -> Prior:
    """Stable Diffusion 1.5's UNet at full width; of the rest no forward knows."""
    torch.manual_seed(0)
    unet = UNet2DCondition(UNetConfig.from_dict(PUBLISHED["sd15"]["unet"])).eval().requires_grad_(False)
    return dataclasses.replace(toybox, unet=channels_last(unet), text_cache=RowCache(0))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="sampler steps of the 64 rows")
    parser.add_argument("--only", default="", help="toybox, sd15, counted or rows")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    use_threads(1)
    machine = describe_machine()
    print(one_line(machine))
    with tempfile.TemporaryDirectory() as place:
        folder, toybox = Path(place), Prior.load("toybox")
        for name, load, side, rows in (("toybox", lambda: toybox, 16, 16), ("sd15", lambda: _stable_diffusion(toybox), 32, 2)):
            if options.only != name and (options.only or name == "sd15"):  # minutes, unless it is asked for
                continue
            prior = load()
            for everywhere in (False, True):
                found = forwards(prior, folder, everywhere=everywhere, side=side, rows=rows, rounds=options.rounds)
                kind = "everywhere" if everywhere else "attention"
                times = ", ".join(f"{way} {value:.3f} times the base's" for way, value in found["ratio"].items())
                sizes = ", ".join(f"{way} {value / 1e6:,.1f} MB" for way, value in found["bytes"].items())
                print(f"{name}, {rows} rows, {kind}: {times}; {sizes}", flush=True)
                settings = {"network": name, "rows": rows, "side": side, "where": kind, "rank": RANK, "rounds": options.rounds}
                save_run(options.out, machine, settings, found)
        if options.only in ("", "counted"):
            for model, latents in (("sd15", 64), ("sdxl", 128)):
                for everywhere in (False, True):
                    found = counted(model, latents, everywhere=everywhere)
                    kind = "everywhere" if everywhere else "attention"
                    print(
                        f"{model}, {kind}: side paths {found['side_path_bytes'] / 1e6:,.1f} MB and "
                        f"{found['multiplications_added']:.2%} more multiplications, merged copies "
                        f"{found['merged_bytes'] / 1e6:,.0f} MB",
                        flush=True,
                    )
                    settings = {"counted": model, "latents": latents, "where": kind, "rank": RANK}
                    save_run(options.out, machine, settings, found)
        if options.only in ("", "rows"):
            for everywhere in (False, True):
                found = eight_loras(folder, everywhere=everywhere, num_steps=options.steps, rounds=options.rounds)
                for way, rate in found["rows_per_second"].items():
                    size = found["bytes"][way] / 1e6
                    print(f"{way}: {rate:.2f} pictures a second ({found['ratio'][way]:.3f}), {size:,.0f} MB", flush=True)
                kind = "everywhere" if everywhere else "attention"
                settings = {"network": "toybox", "where": kind, "rank": RANK, "steps": options.steps, "rounds": options.rounds}
                save_run(options.out, machine, {"rows": 64, **settings}, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
