"""Ours against diffusers' and transformers' on the same weights, steps and inputs: seconds of each, in pairs that take turns.

    python -m benchmarks.versus_diffusers                      every pair
    python -m benchmarks.versus_diffusers --only toybox        those with "toybox" in their name
    python -m benchmarks.versus_diffusers --missing            those that the file of results does not have yet

Each pair is saved as soon as it is measured, in the place of its earlier figures, with the machine at that moment.

The toybox prior is read from its folder by both sides; Stable Diffusion 1.5's networks have their published shape and random
weights. Before a pair is timed its two answers are compared. A ratio below 1 says that ours is faster; it is the median over
pairs of neighbouring runs, with the quartiles beside it. On the CPU one thread is used and its processor time counts, which
other programs on the machine disturb least; where all cores are used it is the clock, for a machine that does nothing else; on
CUDA it is the clock, after synchronising.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine import describe_machine, one_line
from benchmarks.saving import save_run
from diffusion.checkpoints.autoencoder_keys import folder_autoencoder_kl
from diffusion.checkpoints.folder import build_tower
from diffusion.checkpoints.keymap import identity
from diffusion.checkpoints.text_keys import folder_text
from diffusion.checkpoints.weights import fill, skeleton
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.layers import channels_last
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.prior import TOYBOX, Prior
from diffusion.requests import DecodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS
from diffusion.seeding import normal, normal_rows, stream
from diffusion.text.clip import TextConfig
from diffusion.torchvision_shim import ensure_torchvision_imports
from orchestrator.host.threads import available_cores, use_threads
from tests.diffusion.checkpoints.published import PUBLISHED

RESULTS = Path(__file__).parent / "results/versus_diffusers.json"
RANDOM = Path("random weights")
PROMPTS = ["a red mushroom with a white stem", "a blue chair", "a green teapot", "a yellow duck"]


@dataclass(frozen=True)
class Pair:
    """The same work twice; `tolerance` bounds the largest difference of the answers, scaled to a largest value of one."""

    ours: Callable[[], Tensor]
    theirs: Callable[[], Tensor]
    tolerance: float
    num_threads: int = 1


@dataclass(frozen=True)
class Timing:
    """Seconds of each side, medians, and the quartiles of ours / theirs."""

    name: str
    ours: float
    theirs: float
    ratio: tuple[float, float, float]
    difference: float


# -- the toybox prior ----------------------------------------------------------------------------------------------------


@functools.cache
def toybox(device: torch.device) -> tuple[Prior, Any]:
    """The prior in this package, and diffusers' pipeline of the same folder."""
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(str(TOYBOX), torch_dtype=torch.float32).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return Prior.load("toybox", device=device), pipeline


def toybox_unet(device: torch.device) -> Pair:
    """One forward of eight rows."""
    prior, pipeline = toybox(device)
    x, t = normal((8, *prior.latent_shape), stream(0, "x"), device=device), torch.full((8,), 600, device=device)
    tokens, states = prior.condition(PROMPTS).tokens.repeat(2, 1, 1), prior.encode_text(PROMPTS)[0].repeat(2, 1, 1)
    return Pair(lambda: prior.predict(x, t, tokens), lambda: pipeline.unet(x, t, states).sample, 1e-5)


def toybox_decoder(device: torch.device) -> Pair:
    """Eight pictures of 64x64."""
    prior, pipeline = toybox(device)
    x = normal((8, *prior.latent_shape), stream(0, "x"), device=device)
    factor = pipeline.vae.config.scaling_factor
    return Pair(lambda: prior.autoencoder.decode(x), lambda: pipeline.vae.decode(x / factor).sample / 2 + 0.5, 1e-5)


def toybox_text(device: torch.device) -> Pair:
    """Four prompts in one batch."""
    prior, pipeline = toybox(device)
    ids = prior.tokenizer(PROMPTS).to(device)
    return Pair(lambda: prior.text_encoder(ids), lambda: pipeline.text_encoder(ids)[0], 1e-5)


def toybox_pictures(device: torch.device) -> Pair:
    """From four sentences, none encoded before, to four pictures in 20 steps of DDIM with guidance."""
    prior, pipeline = toybox(device)
    start = normal_rows(prior.latent_shape, [stream(seed, "image") for seed in range(len(PROMPTS))], device=device)
    size = {"height": prior.image_size, "width": prior.image_size}

    def ours() -> Tensor:
        prior.text_cache.clear()
        sampling = SAMPLERS["ddim"](
            start,
            schedule=prior.schedule,
            timesteps=prior.schedule.timesteps(20),
            condition=prior.condition(PROMPTS),
            guidance=Guidance(scale=4),
        )
        return prior.answer(DecodeRequest(run(sampling, prior.answer)))

    def theirs() -> Tensor:
        return pipeline(PROMPTS, latents=start, num_inference_steps=20, guidance_scale=4.0, output_type="pt", **size).images

    return Pair(ours, theirs, 1e-4)


def toybox_batch(device: torch.device, *, dtype: torch.dtype) -> Pair:
    """16 pictures in 20 guided steps of DDIM, as a job asks for them; the pipeline channels last, both on all cores."""
    import diffusers

    from jobs.prior_client import GenerateRequest
    from orchestrator.prior.local import load_prior

    name = str(dtype).removeprefix("torch.")
    prior = load_prior(f"toybox?dtype={name}", str(device))
    prompts, seeds = PROMPTS * 4, range(16)
    request = GenerateRequest(
        prompts=tuple(prompts), seeds=tuple(seeds), num_steps=20, sampler="ddim", guidance=Guidance(scale=4.0)
    )
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(str(TOYBOX), torch_dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    pipeline.vae.to(memory_format=torch.channels_last)
    side = prior.info().image_size
    start = normal_rows(toybox(device)[0].latent_shape, [stream(seed, "image") for seed in seeds], device=device).to(dtype)
    settings = {"latents": start, "num_inference_steps": 20, "guidance_scale": 4.0, "height": side, "width": side}
    return Pair(
        lambda: torch.from_numpy(prior.generate(request)).permute(0, 3, 1, 2).float() / 255,
        lambda: pipeline(prompts, output_type="pt", **settings).images.float(),
        0.02 if dtype == torch.float32 else 0.5,
        num_threads=available_cores(),
    )


# -- Stable Diffusion 1.5's networks, random weights ---------------------------------------------------------------------


def unet(device: torch.device, *, dtype: torch.dtype, side: int) -> Pair:
    """One forward of two rows of side x side latents, the halves of one guided picture, from the text's states."""
    import diffusers

    config = PUBLISHED["sd15"]["unet"]
    theirs = _random(lambda: diffusers.UNet2DConditionModel.from_config(config), device, dtype)
    empty = skeleton(lambda: UNet2DCondition(UNetConfig.from_dict(config)))
    ours = channels_last(fill(empty, identity, theirs.state_dict(), RANDOM, dtype=dtype))
    x, t = normal((2, 4, side, side), stream(0, "x"), device=device).to(dtype), torch.tensor([700, 700], device=device)
    states = normal((2, 77, 768), stream(0, "states"), device=device).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    return Pair(lambda: ours(x, t, states), lambda: theirs(x, t, states).sample, tolerance)


def decoder(device: torch.device) -> Pair:
    """One picture of 256x256."""
    import diffusers

    config = PUBLISHED["sd15"]["vae"]
    theirs = _random(lambda: diffusers.AutoencoderKL.from_config(config), device)
    empty = skeleton(lambda: AutoencoderKL(AutoencoderKLConfig.from_dict(config)))
    ours = channels_last(fill(empty, folder_autoencoder_kl, theirs.state_dict(), RANDOM))
    x, factor = normal((1, 4, 32, 32), stream(0, "x"), device=device), theirs.config.scaling_factor
    return Pair(lambda: ours.decode(x), lambda: theirs.decode(x / factor).sample / 2 + 0.5, 1e-5)


def text(device: torch.device) -> Pair:
    """Four prompts in one batch."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = PUBLISHED["sd15"]["text_encoder"]
    theirs = _random(lambda: CLIPTextModel(CLIPTextConfig(**config)), device)
    ours = build_tower(TextConfig.from_published(config), folder_text, theirs.state_dict(), RANDOM).to(device)
    ids = torch.randint(49406, (4, 77), generator=stream(0, "ids")).to(device)
    ids[:, 0], ids[:, -1] = 49406, 49407
    return Pair(lambda: ours(ids), lambda: theirs(ids)[0], 1e-5)


def _random(build: Callable[[], nn.Module], device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return build().eval().requires_grad_(False).to(device, dtype)


PAIRS: dict[str, Callable[[torch.device], Pair]] = {
    "toybox UNet, 8 rows": toybox_unet,
    "toybox decoder, 8 pictures": toybox_decoder,
    "toybox text tower, 4 prompts": toybox_text,
    "toybox text to image, 4 pictures, 20 steps": toybox_pictures,
    "toybox, 16 pictures, 20 steps, all cores, float32": functools.partial(toybox_batch, dtype=torch.float32),
    "toybox, 16 pictures, 20 steps, all cores, bfloat16": functools.partial(toybox_batch, dtype=torch.bfloat16),
    "SD 1.5 UNet, 2 rows of 32x32, float32": functools.partial(unet, dtype=torch.float32, side=32),
    "SD 1.5 UNet, 2 rows of 64x64, float32": functools.partial(unet, dtype=torch.float32, side=64),
    "SD 1.5 UNet, 2 rows of 64x64, bfloat16": functools.partial(unet, dtype=torch.bfloat16, side=64),
    "SD 1.5 decoder, a picture of 256x256, float32": decoder,
    "SD 1.5 text tower, 4 prompts, float32": text,
}


# -- measuring -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def measure(name: str, pair: Pair, *, repeats: int, device: torch.device) -> Timing:
    """`repeats` neighbouring runs of both sides, the first of a pair in turn.

    Raises:
        RuntimeError: the two answers differ by more than the pair's tolerance.
    """
    use_threads(pair.num_threads)
    ours, theirs = pair.ours(), pair.theirs()
    difference = float((ours - theirs).abs().max() / theirs.abs().max())
    if not difference <= pair.tolerance:
        raise RuntimeError(f"{name}: the answers differ by {difference:.1e}; expected at most {pair.tolerance:g}")
    seconds: dict[Callable[[], Tensor], list[float]] = {pair.ours: [], pair.theirs: []}
    for repeat in range(repeats):
        for work in (pair.ours, pair.theirs) if repeat % 2 else (pair.theirs, pair.ours):
            seconds[work].append(_seconds(work, device, is_alone=pair.num_threads > 1))
    ratios = [a / b for a, b in zip(seconds[pair.ours], seconds[pair.theirs], strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    mine, other = (statistics.median(seconds[work]) for work in (pair.ours, pair.theirs))
    return Timing(name, mine, other, (low, middle, high), difference)


def _seconds(work: Callable[[], Tensor], device: torch.device, *, is_alone: bool) -> float:
    if device.type == "cpu" and not is_alone:
        begin = time.process_time()
        work()
        return time.process_time() - begin
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save; exit code 1 if ours was slower beyond noise, that is in three of four pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="pairs with this in their name")
    parser.add_argument("--missing", action="store_true", help="pairs that were not measured yet")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=15, help="runs of each side")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", category=FutureWarning)
    # transformers and diffusers import torchvision as they load.
    ensure_torchvision_imports()
    device = torch.device(options.device)
    done = _saved(options.out) if options.missing else set()
    print(f"{one_line(describe_machine())}\n\n{'':<52}{'ours':>10}{'theirs':>10}   ratio (quartiles)     largest difference")
    is_slower = False
    for name in (name for name in PAIRS if options.only in name and name not in done):
        machine = describe_machine()
        pair = PAIRS[name](device)
        timing = measure(name, pair, repeats=options.repeats, device=device)
        low, middle, high = timing.ratio
        times = f"{1e3 * timing.ours:>7.1f} ms{1e3 * timing.theirs:>7.1f} ms"
        print(f"{timing.name:<52}{times}   {middle:.3f} ({low:.3f} to {high:.3f})  {timing.difference:.0e}", flush=True)
        is_slower = is_slower or timing.ratio[0] > 1
        settings = {"pair": name, "device": device.type, "threads": pair.num_threads}
        save_run(options.out, machine, settings, {"repeats": options.repeats, **vars(timing)})
    return int(is_slower)


def _saved(path: Path) -> set[str]:
    """Names of the pairs in the file."""
    return {run["settings"]["pair"] for run in json.loads(path.read_text(encoding="utf-8"))["runs"]} if path.exists() else set()


if __name__ == "__main__":
    sys.exit(main())
