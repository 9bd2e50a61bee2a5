"""The first ten minutes on a GPU: does everything work there, how fast, and with how much memory?

    python -m benchmarks.gpu_check [--out gpu_check.json] [--only parity,profile] [--ghost]

Each part runs in a process of its own with a limit of time, so that none can stop the others; the file is written after each.
--ghost runs all of it in reduced form on the CUDA device that is not there (tests/ghost_cuda), to see that it works.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROMPT = "a red chair"
PARTS: dict[str, tuple[int, Callable[[bool], dict[str, Any]]]] = {}


def part(limit_seconds: int) -> Callable[[Callable[[bool], dict[str, Any]]], Callable[[bool], dict[str, Any]]]:
    """Registers a part: from whether it is reduced to its figures."""

    def register(function: Callable[[bool], dict[str, Any]]) -> Callable[[bool], dict[str, Any]]:
        PARTS[function.__name__] = (limit_seconds, function)
        return function

    return register


def timed(function: Callable[[], Any], *, repeats: int) -> float:
    """Median seconds, the device's work included, after one call to warm up."""
    import torch

    function()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        function()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return round(statistics.median(seconds), 5)


def peak_gib() -> float:
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 3)


@part(300)
def build(reduced: bool) -> dict[str, Any]:
    """nerfacc's kernels."""
    from nerf3d.errors import BackendUnavailable
    from nerf3d.rendering import build_cuda_kernels

    begin = time.perf_counter()
    try:
        build_cuda_kernels()
    except BackendUnavailable as error:  # the fits below then go through torch's path
        return {"not_built": str(error)}
    return {"seconds_to_build": round(time.perf_counter() - begin, 1)}


@part(60)
def parity(reduced: bool) -> dict[str, Any]:
    """Pictures of one field and a prior's answer on both devices."""
    import torch

    from diffusion.prior import Prior
    from diffusion.seeding import normal_rows, stream
    from nerf3d.cameras import Cameras
    from nerf3d.fields import FieldConfig, make_field
    from nerf3d.fit import FitConfig
    from nerf3d.rendering import Occupancy, build_cuda_kernels, render

    with contextlib.suppress(RuntimeError):
        build_cuda_kernels()
    defaults, field = FitConfig(), make_field(FieldConfig(blob_scale=9.0, blob_radius=0.6))
    occupancy = Occupancy(defaults.occupancy_resolution, threshold=defaults.occupancy_threshold)
    occupancy.refresh(field.density, seed=0, step=0, radius=field.config.radius)
    cameras, background = Cameras.orbit([0.0, 100.0], [10.0, 40.0]), torch.full((2, 3), 0.5)
    pictures, counts = [], []
    for device in ("cpu", "cuda"):
        there = [thing.to(device) for thing in (field, occupancy, cameras)]
        shown = render(*there, 64, background=background.to(device), num_samples=48, radius=field.config.radius)
        pictures.append(shown.rgb.detach().cpu())
        counts.append(len(shown.samples.distances))
    answers = []
    x = normal_rows((8, 16, 16), [stream(0, "row", row) for row in range(2)])
    for device in ("cpu", "cuda"):
        prior = Prior.load("toybox", device=device)
        tokens = prior.condition([PROMPT] * 2).tokens
        with torch.no_grad():
            answers.append(prior.predict(x.to(device), torch.tensor([300, 800]), tokens).cpu())
    figures = {
        "num_samples": counts,
        "rgb": (pictures[0] - pictures[1]).abs().max(),
        "network": (answers[0] - answers[1]).abs().max(),
    }
    return {name: value if isinstance(value, list) else float(value) for name, value in figures.items()}


def fit_steps(device: str, kind: str, *, steps: int, state: Any = None) -> Iterator[Any]:
    """The progress of a fit with the toybox, step by step."""
    from diffusion.distillation import DistillationConfig
    from jobs.text_to_3d import PriorGuide, in_the_priors_groups
    from nerf3d.fields import FieldConfig
    from nerf3d.fit import FitConfig, fit
    from orchestrator.prior.local import load_prior

    prior = load_prior("toybox", device)
    small: dict[str, Any] = {}
    field_config = FieldConfig(kind=kind)
    if steps < 10:  # reduced
        small = {"num_views": 4, "num_samples": 16, "occupancy_resolution": 16, "render_sizes": ((0.0, 16),)}
        field_config = FieldConfig(kind=kind, resolutions=(8, 16), num_levels=2, log2_table_size=10, finest_resolution=32)
    config = FitConfig.preset("draft", num_steps=steps, field=field_config, **small)
    config = in_the_priors_groups(config, prior.info(), job="gpu_check")
    guide = PriorGuide(prior, prior.info(), PROMPT, 0, DistillationConfig())
    yield from fit(config, guide, seed=0, device=device, state=state)


def fitted(
    device: str, kind: str, *, steps: int, state: Any = None, stop_at: int | None = None
) -> tuple[Any, list[float], dict]:
    """The field of such a fit, its losses, and the state after `stop_at` steps."""
    losses, saved, field = [], {}, None
    for progress in fit_steps(device, kind, steps=steps, state=state):
        losses.append(progress.metrics["loss"])
        field = progress.state.field
        if progress.step == stop_at:
            saved = progress.state.state_dict()
    return field, losses, saved


def overlap(first: Any, second: Any, *, side: int = 48, density: float = 10.0) -> float:
    """Intersection over union of the places at which two fields are dense."""
    import torch

    axis = torch.linspace(-1, 1, side)
    points = torch.cartesian_prod(axis, axis, axis)
    dense = []
    for field in (first, second):
        with torch.no_grad():
            dense.append(field.density(points.to(next(field.parameters()).device)).cpu() > density)
    union = (dense[0] | dense[1]).sum()
    return round(float((dense[0] & dense[1]).sum() / union.clamp_min(1)), 4)


def _fit(reduced: bool, kind: str) -> dict[str, Any]:
    steps = 2 if reduced else 160
    begin = time.perf_counter()
    there, losses, _ = fitted("cuda", kind, steps=steps)
    seconds = time.perf_counter() - begin
    here, _, _ = fitted("cpu", kind, steps=steps)
    return {"seconds_a_step": round(seconds / steps, 4), "last_loss": losses[-1], "overlap_with_the_cpus": overlap(there, here)}


@part(300)
def fit_dense_pyramid(reduced: bool) -> dict[str, Any]:
    """A draft on the dense pyramid, on both devices."""
    return _fit(reduced, "dense_pyramid")


@part(300)
def fit_hash_grid(reduced: bool) -> dict[str, Any]:
    """A draft on the hash grid, on both devices."""
    return _fit(reduced, "hash_grid")


@part(60)
def resume(reduced: bool) -> dict[str, Any]:
    """A fit that is stopped half way and goes on, beside one that never stopped."""
    steps = 4 if reduced else 40
    _, whole, saved = fitted("cuda", "dense_pyramid", steps=steps, stop_at=steps // 2)
    _, rest, _ = fitted("cuda", "dense_pyramid", steps=steps, state=saved)
    apart = [abs(a - b) / abs(a) for a, b in zip(whole[steps // 2 :], rest, strict=True)]
    return {"first_step_apart": apart[0], "last_step_apart": apart[-1]}


@part(60)
def profile(reduced: bool) -> dict[str, Any]:
    """Kernels, their time and the host's waits, in a step of a fit."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    warm_up, num = (1, 1) if reduced else (3, 10)
    steps = fit_steps("cuda", "dense_pyramid", steps=warm_up + num)
    for _ in range(warm_up):
        next(steps)
    if reduced:
        from tests.ghost_cuda.device import RECORD

        RECORD.clear()
        next(steps)
        return {"launches": RECORD.num_launches, "waits": sum(RECORD.waits.values())}
    torch.cuda.synchronize()
    begin = time.perf_counter()
    with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(num):
            next(steps)
        torch.cuda.synchronize()
    wall = time.perf_counter() - begin
    events = recorded.key_averages()
    # An operation's own entry has its kernels' time once more.
    kernels = [event for event in events if event.device_type == torch.autograd.DeviceType.CUDA]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    waits = {event.key: event.count / num for event in events if "Synchronize" in event.key or "Memcpy" in event.key}
    longest = sorted(kernels, key=lambda event: -event.self_device_time_total)[:12]
    return {
        "seconds_a_step": round(wall / num, 4),
        "share_busy": round(busy / wall, 4),
        "launches_a_step": sum(event.count for event in events if "LaunchKernel" in event.key) / num,
        "waits_a_step": waits,
        "kernels": {event.key[:80]: round(event.self_device_time_total / 1e3, 2) for event in longest},
    }


@part(90)
def shapes_sd15(reduced: bool) -> dict[str, Any]:
    """The UNet of Stable Diffusion 1.5 in bfloat16 with random weights, beside diffusers' own."""
    return _beside("SD 1.5", reduced)


@part(150)
def shapes_sdxl(reduced: bool) -> dict[str, Any]:
    """That of SDXL."""
    return _beside("SDXL", reduced)


@part(150)
def compiled_sd15(reduced: bool) -> dict[str, Any]:
    """diffusers' UNet of Stable Diffusion 1.5 through torch.compile, four rows; to compile takes longer than to measure."""
    return {} if reduced else _measured("SD 1.5", _compiled, (4,), reduced)


@part(300)
def compiled_sdxl(reduced: bool) -> dict[str, Any]:
    """That of SDXL."""
    return {} if reduced else _measured("SDXL", _compiled, (4,), reduced)


def _beside(name: str, reduced: bool) -> dict[str, Any]:
    batches = (1,) if reduced else (1, 4, 16)
    return {
        f"{who} x{batch}": entry
        for who, make in (("ours", _ours), ("diffusers", _diffusers))
        for batch, entry in _measured(name, make, batches, reduced).items()
    }


def _measured(name: str, make: Callable[..., Any], batches: tuple[int, ...], reduced: bool) -> dict[int, dict[str, Any]]:
    """Batch -> seconds and peak of a forward. The network is made once, on the device: on the CPU SDXL's takes a minute."""
    import torch

    torch.backends.cudnn.benchmark = not reduced
    config, side, added = _published(reduced)[name]
    figures: dict[int, dict[str, Any]] = {}
    with torch.no_grad():
        forward = make(config, side, added)
        for batch in batches:
            torch.cuda.reset_peak_memory_stats()
            try:
                seconds = timed(forward(batch), repeats=1 if reduced else 10)
                figures[batch] = {"seconds": seconds, "peak_gib": peak_gib()}
            except torch.OutOfMemoryError:
                figures[batch] = {"out_of_memory": True}
                torch.cuda.empty_cache()
    return figures


def _published(reduced: bool) -> dict[str, tuple[dict[str, Any], int, bool]]:
    """Configurations by diffusers' names, the latents' side, and whether there is SDXL's added condition."""
    attentive = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    sd15 = {
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": (*attentive[:1] * 3, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *attentive[1:] * 3),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    }
    sdxl = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", *attentive[:1] * 2),
        "up_block_types": (*attentive[1:] * 2, "UpBlock2D"),
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    if reduced:
        narrow = {"block_out_channels": (32, 64, 64, 64), "attention_head_dim": 4, "cross_attention_dim": 32}
        few = {"block_out_channels": (32, 64, 64), "attention_head_dim": (2, 4, 4), "cross_attention_dim": 32}
        few["transformer_layers_per_block"] = (1, 1, 2)
        return {"SD 1.5": (sd15 | narrow, 8, False), "SDXL": (sdxl | few, 8, True)}
    return {"SD 1.5": (sd15, 64, False), "SDXL": (sdxl, 128, True)}


def _inputs(config: dict[str, Any], side: int, added: bool, batch: int) -> tuple[Any, Any, Any, Any]:
    import torch

    there = {"device": "cuda", "dtype": torch.bfloat16}
    text = torch.zeros(batch, 77, config["cross_attention_dim"], **there)
    vector = torch.zeros(batch, 1280, **there) if added else None
    return torch.zeros(batch, 4, side, side, **there), torch.full((batch,), 500, device="cuda"), text, vector


def _ours(config: dict[str, Any], side: int, added: bool) -> Callable[[int], Callable[[], Any]]:
    import torch

    from diffusion.networks.layers import channels_last
    from diffusion.networks.unet import UNet2DCondition, UNetConfig

    with torch.device("cuda"):
        unet = UNet2DCondition(UNetConfig.from_dict({**config, "sample_size": side}))
    unet = channels_last(unet.to(torch.bfloat16).eval())

    def of_batch(batch: int) -> Callable[[], Any]:
        x, t, text, vector = _inputs(config, side, added, batch)
        sizes = torch.tensor([[8.0 * side, 8.0 * side, 0, 0, 8.0 * side, 8.0 * side]], device="cuda").expand(batch, 6)
        context = unet.project_context(text, None if vector is None else torch.cat([vector.float(), sizes], 1))
        return lambda: unet(x, t, context)

    return of_batch


def _diffusers(
    config: dict[str, Any], side: int, added: bool, compiled: Callable[[Any], Any] = lambda unet: unet
) -> Callable[[int], Callable[[], Any]]:
    import torch

    from diffusion.torchvision_shim import ensure_torchvision_imports

    ensure_torchvision_imports()
    from diffusers import UNet2DConditionModel

    with torch.device("cuda"):
        unet = UNet2DConditionModel(**config, sample_size=side)
    unet = compiled(unet.to(torch.bfloat16).eval())

    def of_batch(batch: int) -> Callable[[], Any]:
        x, t, text, vector = _inputs(config, side, added, batch)
        more = None
        if vector is not None:
            more = {"text_embeds": vector, "time_ids": torch.zeros(batch, 6, device="cuda", dtype=torch.bfloat16)}
        return lambda: unet(x, t, text, added_cond_kwargs=more)

    return of_batch


def _compiled(config: dict[str, Any], side: int, added: bool) -> Callable[[int], Callable[[], Any]]:
    import torch

    return _diffusers(config, side, added, torch.compile)


@part(60)
def out_of_memory(reduced: bool) -> dict[str, Any]:
    """The engine where memory ends: batches are halved and everything is answered."""
    import torch

    from orchestrator.prior.local import load_prior
    from orchestrator.prior.resident import ResidentPrior

    prior = load_prior("toybox", "cuda")
    if not reduced:
        used = torch.cuda.memory_allocated() + 300 * 2**20
        torch.cuda.set_per_process_memory_fraction(used / torch.cuda.get_device_properties(0).total_memory)
    resident = ResidentPrior(prior, measure=False)
    num = 1 if reduced else 64
    drawn = [resident.start_generate(_draw(seed), job=str(seed)) for seed in range(num)]
    shapes_ = {future.result().shape for future in drawn}
    resident.close()
    return {"answered": len(drawn), "times_halved": resident.figures.out_of_memory, "shapes": sorted(map(list, shapes_))}


def _draw(seed: int) -> Any:
    from diffusion.requests import Guidance
    from jobs.prior_client import GenerateRequest

    return GenerateRequest(prompts=(PROMPT,) * 2, seeds=(seed, seed + 1000), num_steps=2, guidance=Guidance(scale=3.0))


@part(60)
def device_assert(reduced: bool) -> dict[str, Any]:
    """A process whose GPU is lost must end by itself, so that Ray starts it again."""
    # A GPU is lost by an index out of range, which the host meets at its next wait; without one the error alone is raised.
    lost = "x + torch.zeros(3, device='cuda')[torch.full((len(x),), 9, device='cuda')].view(-1, 1, 1, 1)"
    answer = "(_ for _ in ()).throw(torch.AcceleratorError('CUDA error: device-side assert triggered'))" if reduced else lost
    code = (
        "from benchmarks.gpu_check import _draw; from orchestrator.prior.actor import PriorActor; import torch\n"
        "from orchestrator.prior.local import load_prior; from orchestrator.prior.wire import Wire\n"
        "from diffusion.prior import Prior\n"
        f"actor = PriorActor(load_prior, 'toybox', {'cpu' if reduced else 'cuda'!r}, 1, measure=False)\n"
        f"Prior.predict = lambda self, x, *_: {answer}\n"
        "answered = actor.call('generate', Wire(_draw(0)))\n"
        "print(getattr(answered, 'error', answered))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    is_as_meant = ended.returncode == 1 and "The GPU is lost" in ended.stderr
    said = {} if is_as_meant else {"said": (ended.stdout + ended.stderr)[-500:]}
    return {"exit_code": ended.returncode, "is_as_meant": is_as_meant, **said}


def run_part(name: str, ghost: bool) -> None:
    """In a process of its own: its figures, as the last line."""
    with contextlib.ExitStack() as stack:
        if ghost:
            from tests.ghost_cuda.device import ghost_cuda

            stack.enter_context(ghost_cuda())
            from tests.ghost_cuda import nerfacc_kernels

            nerfacc_kernels.install()
        print(json.dumps(PARTS[name][1](ghost)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--only", default="", help="parts, with commas between them")
    parser.add_argument("--ghost", action="store_true")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options.part, options.ghost)
        return 0
    found: dict[str, Any] = {"ghost": options.ghost, "parts": {}}
    for name in options.only.split(",") if options.only else PARTS:
        begin, limit = time.perf_counter(), PARTS[name][0] * (4 if options.ghost else 1)  # every operation goes through Python
        command = [sys.executable, "-m", "benchmarks.gpu_check", "--part", name, *(["--ghost"] if options.ghost else [])]
        try:
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
            entry = json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else {"error": ended.stderr[-2000:]}
        except subprocess.TimeoutExpired:
            entry = {"error": f"took longer than {limit} s"}
        found["parts"][name] = {"wall_seconds": round(time.perf_counter() - begin, 1), **entry}
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(name, json.dumps(found["parts"][name])[:300], flush=True)
    failed = [name for name, entry in found["parts"].items() if "error" in entry]
    print(f"{options.out}: {', '.join(failed) + ' failed' if failed else 'all parts worked'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
