"""What is run on the ghost: each workload does what a user does, with small networks. Import `device` first."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.ghost_cuda.device import RECORD, Refused, ghost_cuda

WORKLOADS: dict[str, Callable[[], dict[str, Any] | None]] = {}


def workload(function: Callable[[], dict[str, Any] | None]) -> Callable[[], dict[str, Any] | None]:
    """Registers it; what it returns is added to the record."""
    WORKLOADS[function.__name__] = function
    return function


def measured(name: str) -> dict[str, Any]:
    """Runs one and says what happened."""
    RECORD.clear()
    begin = time.process_time()
    try:
        more = WORKLOADS[name]() or {}
        error = ""
    except Exception as failure:
        more, error = {}, f"{type(failure).__name__}: {failure}"
    return {"name": name, "error": error, "cpu_seconds": time.process_time() - begin, **RECORD.to_json(), **more}


_FOLDER = Path(tempfile.mkdtemp(prefix="ghost-"))


def tiny(num_views: int = 0) -> Any:
    """A prior of the product's own classes with random weights on the ghost; one that is told cameras, of so many views."""
    import torch

    from diffusion.networks.multi_view import MultiViewConfig
    from diffusion.prior_folder import save_prior
    from orchestrator.prior.local import load_prior
    from tests.fakes import save_tiny_prior

    folder = _FOLDER / f"prior-{num_views}"
    if not folder.exists():
        with torch.utils._python_dispatch._disable_current_modes():
            save_tiny_prior(folder)
            if num_views:
                from diffusion.networks.unet import UNet2DCondition
                from diffusion.prior import Prior

                plain = Prior.load(folder)
                config = dataclasses.replace(plain.unet.config, multi_view=MultiViewConfig(num_views=num_views))
                parts = {k: getattr(plain, k) for k in ("card", "autoencoder", "text_encoder", "tokenizer", "schedule")}
                save_prior(folder, unet=UNet2DCondition(config), **parts)
    return load_prior(str(folder), "cuda")


def _tells_more(progress: Any) -> bool:
    """Whether the step waits for more than steps do: for the prior's look at the object, or for the gradients of some steps."""
    return any(name.startswith(("prior_score", "gradient_t")) for name in progress.metrics)


def fit_of(prior: Any, *, steps: int = 6, to_the_end: bool = False, **changes: Any) -> dict[str, Any]:
    """Text to 3D; waits and launches of each step of the fit.

    to_the_end: with the mesh, and once more from the checkpoint after two steps, which must come to the same field.
    """
    import numpy as np

    from diffusion.distillation import DistillationConfig
    from jobs.events import Checkpoint, Progress
    from jobs.specs import TextTo3DSpec
    from jobs.text_to_3d import text_to_3d
    from tests.fakes import FAST_FIT, FAST_MESH

    distillation = changes.pop("distillation", DistillationConfig())
    strict = changes.pop("strict", False)
    fit = dataclasses.replace(FAST_FIT, num_steps=steps, occupancy_every=100, **changes)
    spec = TextTo3DSpec(prompt="a red table", fit=fit, distillation=distillation, mesh=FAST_MESH, strict=strict)
    waits, launches = [], []

    def drive(*, until_fitted: bool, **more: Any) -> tuple[dict[int, Checkpoint], Any]:
        checkpoints: dict[int, Checkpoint] = {}
        events = text_to_3d(spec, prior, device="cuda", checkpoint_every=2, **more)
        before = (0, 0)
        while True:
            try:
                event = next(events)
            except StopIteration as finished:
                return checkpoints, finished.value
            if isinstance(event, Progress) and event.stage == "fit" and not _tells_more(event):
                waits.append(sum(RECORD.waits.values()) - before[0])
                launches.append(RECORD.num_launches - before[1])
            elif isinstance(event, Checkpoint):
                checkpoints[event.step] = event
                if until_fitted and event.step == steps:
                    events.close()
                    return checkpoints, None
            before = (sum(RECORD.waits.values()), RECORD.num_launches)

    checkpoints, result = drive(until_fitted=not to_the_end)
    figures: dict[str, Any] = {"waits_a_step": waits[2:], "launches_a_step": launches[2:]}
    if to_the_end:
        again, _ = drive(until_fitted=True, checkpoint=checkpoints[2])
        first, second = (run[steps].tensors for run in (checkpoints, again))
        same = all(np.array_equal(first[name], second[name]) for name in first)
        figures |= {"num_faces": len(result.mesh.faces), "resumed_is_the_same": same}
    return figures


@workload
def x0() -> dict[str, Any]:
    """The toybox's own recipe on the dense pyramid, killed after two steps and gone on with."""
    return fit_of(tiny(), to_the_end=True)


@workload
def sds_hash_grid() -> dict[str, Any]:
    """DreamFusion's gradient on a hash grid, half of the views judged while the others are rendered, lit, strict."""
    from diffusion.distillation import DistillationConfig
    from nerf3d.fields import FieldConfig

    sds = DistillationConfig(form="sds", weighting="sigma2", guidance_scale=30.0, guidance_rescale=0.0)
    field = FieldConfig(kind="hash_grid", num_levels=2, log2_table_size=8, base_resolution=4, finest_resolution=16)
    rates = {"density_rate": 0.01, "colour_rate": 0.01}
    return fit_of(tiny(), distillation=sds, field=field, guide_parts=2, lit_from=0.0, strict=True, **rates)


@workload
def groups_of_views() -> dict[str, Any]:
    """MVDream's recipe with a prior that is told cameras, and its pictures of four sides."""
    from diffusion.distillation import DistillationConfig
    from jobs.images import images
    from jobs.specs import ImagesSpec

    prior = tiny(num_views=4)
    spec = ImagesSpec(prompt="a red table", num_images=4, num_views=4, num_steps=2, chunk_size=4)
    list(images(spec, prior))
    mvdream = DistillationConfig(form="x0_latents", shared_timestep="group", rescale_over="group", t_min_start=0.9)
    return fit_of(prior, num_views=4, distillation=mvdream)


@workload
def without_kernels() -> dict[str, Any]:
    """A fit where nerfacc's kernels are not built: the torch path on CUDA."""
    import nerfacc
    from torch.utils import cpp_extension

    kernels, load = nerfacc.csrc, cpp_extension.load
    del nerfacc.csrc

    def no_compiler(**_: Any) -> Any:
        raise OSError("CUDA_HOME environment variable is not set")

    cpp_extension.load = no_compiler
    try:
        return fit_of(tiny())
    finally:
        nerfacc.csrc, cpp_extension.load = kernels, load


@workload
def short_of_memory() -> dict[str, Any]:
    """The same pictures and gradient on a device with room for nothing but the least: text towers lent."""
    import numpy as np
    import torch

    from diffusion.checkpoints.footprint import MAX_TEXT_BYTES, least_bytes
    from diffusion.requests import Guidance
    from jobs.prior_client import DistillationQuery, GenerateRequest

    def answers() -> tuple[Any, Any, Any]:
        local = tiny()
        rgb, keys = torch.full((2, 3, 16, 16), 0.4).to("cuda"), ((0, "n"), (1, "n"))
        prompts, guidance = ("a red table",) * 2, Guidance(scale=3.0)
        t = torch.tensor([500, 20])
        query = DistillationQuery(images=rgb, prompts=prompts, t=t, noise_keys=keys, guidance=guidance, form="sds")
        request = GenerateRequest(prompts=prompts, seeds=(1, 2), num_steps=2, guidance=guidance)
        return local._prior, local.distill(query).gradient.cpu().numpy(), local.generate(request)

    prior, gradient, pictures = answers()
    widths, latents = prior.autoencoder.config.decoder_widths, prior.latent_shape[1:]
    least = least_bytes(prior.unet.config, widths, latents, in_3d=True)
    free, memory = int(1.1 * least), torch.cuda.mem_get_info
    torch.cuda.mem_get_info = lambda *_: (free, 2 * MAX_TEXT_BYTES)
    try:
        thrifty, *others = answers()
    finally:
        torch.cuda.mem_get_info = memory
    return {
        "lends_towers": [prior.lends_towers, thrifty.lends_towers],
        "tower_is_on": str(next(thrifty.text_encoder.parameters()).device),
        "gradient": float(np.abs(gradient - others[0]).max() / np.abs(gradient).max()),
        "pictures": int(np.abs(pictures.astype(int) - others[1]).max()),
    }


@workload
def renderers() -> dict[str, Any]:
    """The fit's default settings through nerfacc's traversal and, on the CPU, through torch: the same samples and pictures."""
    import torch

    from nerf3d.cameras import Cameras
    from nerf3d.fields import FieldConfig, make_field
    from nerf3d.fit import FitConfig
    from nerf3d.rendering import Occupancy, render

    defaults = FitConfig()
    field = make_field(FieldConfig(blob_scale=9.0, blob_radius=0.6))
    occupancy = Occupancy(defaults.occupancy_resolution, threshold=defaults.occupancy_threshold)
    occupancy.refresh(field.density, seed=0, step=0, radius=field.config.radius)
    cameras = Cameras.orbit([0.0, 100.0], [10.0, 40.0])
    settings: dict[str, Any] = {"num_samples": defaults.num_samples, "radius": field.config.radius}
    pictures, counts = [], []
    for device in ("cpu", "cuda"):
        there = [thing.to(device) for thing in (field, occupancy, cameras)]
        output = render(*there, 64, background=torch.full((2, 3), 0.5).to(device), **settings)
        pictures.append(output.rgb.detach().cpu())
        counts.append(len(output.samples.distances))
    return {"num_samples": counts, "largest_difference": float((pictures[0] - pictures[1]).abs().max())}


def _pictures(prior: Any, source: Any = None, *, preview_every: int = 0, **settings: Any) -> None:
    from jobs.images import images
    from jobs.specs import ImagesSpec

    spec = ImagesSpec(**{"prompt": "a red table", "num_images": 2, "num_steps": 2, "chunk_size": 2, **settings})
    list(images(spec, prior, source=source, preview_every=preview_every))


@workload
def samplers() -> dict[str, Any]:
    """Every sampler, and what a draw can be told; waits of a step of DDIM."""
    from diffusion.samplers import SAMPLERS

    prior = tiny()
    waits: dict[int, int] = {}
    for steps in (2, 6):
        before = sum(RECORD.waits.values())
        _pictures(prior, sampler="ddim", num_steps=steps)
        waits[steps] = sum(RECORD.waits.values()) - before
    for name in SAMPLERS:
        _pictures(prior, sampler=name)
    _pictures(prior, guidance_interval=(100, 600), guidance_rescale=0.7, negative_prompt="a blue table", num_steps=3)
    _pictures(prior, strict=True)
    _pictures(prior, preview_every=1)
    return {"waits_a_step": (waits[6] - waits[2]) / 4}


@workload
def editing() -> None:
    """Image to image and inpainting."""
    import torch

    from jobs.images import EditSource

    prior, size = tiny(), 16
    picture = torch.rand(3, size, size, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, size, size)
    mask[:, 4:9] = 1
    _pictures(prior, EditSource(picture), init_image="x", strength=0.6, num_steps=4)
    _pictures(prior, EditSource(picture, mask), init_image="x", mask="y", strength=1.0, num_steps=3)
    _pictures(prior, EditSource(picture, mask), init_image="x", mask="y", strength=0.8, sampler="euler_ancestral")


@workload
def engine() -> dict[str, Any]:
    """Three jobs at once in a resident prior: pictures and score distillation, in shared forwards whose size is measured."""
    import torch

    from diffusion.requests import Guidance
    from jobs.prior_client import DistillationQuery, GenerateRequest, LossQuery
    from orchestrator.prior.resident import ResidentPrior

    resident = ResidentPrior(tiny(), measure=True)
    guidance, rgb = Guidance(scale=3.0), torch.full((2, 3, 16, 16), 0.4).to("cuda")
    prompts, keys = ("a red table",) * 2, ((0, "n"), (1, "n"))
    query = DistillationQuery(images=rgb, prompts=prompts, t=torch.tensor([500, 20]), noise_keys=keys, guidance=guidance)
    drawn = [
        resident.start_generate(
            GenerateRequest(prompts=prompts, seeds=(seed, seed + 1), num_steps=3, guidance=guidance, strict=seed == 2),
            job=str(seed),
        )
        for seed in range(3)
    ]
    distilled = [resident.start_distill(query, job="fit") for _ in range(2)]
    shapes = [list(future.result().shape) for future in drawn]
    shapes += [list(future.result().gradient.shape) for future in distilled]
    loss = LossQuery(images=rgb, prompts=prompts, t=torch.tensor([500, 20]), noise_keys=keys)
    resident.losses(loss)
    resident.close()
    return {"shapes": shapes}


def command(*arguments: object) -> str:
    """`dreamkiln ...` in this process; its output. Raises RuntimeError for a bad exit code."""
    from orchestrator.cli.main import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(argument) for argument in arguments])
    if code:
        raise RuntimeError(f"{arguments[0]} ended with {code}: {said.getvalue()[-600:]}")
    return said.getvalue()


@workload
def batch_table() -> None:
    """A table of prompts, drawn shard by shard."""
    tiny()
    table = _FOLDER / "prompts.csv"
    table.write_text("prompt,seed,sampler\na red table,,\na blue table,7,euler\na table,,ddpm\n")
    inline = ("--steps", 2, "--runtime", "inline", "runtime.device=cuda")
    command("images", "--prompts", table, "--prior", _FOLDER / "prior-0", "--out", _FOLDER / "table", *inline)


@workload
def evaluation() -> None:
    """Meshes and pictures before the judge that ships with the toybox."""
    from orchestrator.lab.evaluation.judge import judge_folder, load_judge

    judge = load_judge(judge_folder("toybox"), device="cuda")
    import torch

    judge.embed_images(torch.full((2, 3, 64, 64), 0.5))
    judge.embed_texts(["a red house", "a duck"])
    out = ("--out", _FOLDER / "evaluation", "--num-prompts", 2, "device=cuda", "num_threads=1", "num_captions=200")
    command("evaluate", "images", *out)


@workload
def training() -> None:
    """Every part of the toybox's prior for two steps, then one more from the checkpoint."""
    import torch

    from nerf3d.toybox.shards import write_shards
    from orchestrator.host.progress_display import SilentDisplay
    from orchestrator.lab.training.run import train_parts

    with torch.utils._python_dispatch._disable_current_modes():
        list(write_shards(_FOLDER / "shards", 16, shard_size=8))
    parts = ("autoencoder", "clip", "judge", "denoiser")
    short = {f"{part}.{name}": value for part in parts for name, value in (("num_steps", "2"), ("batch_size", "4"))}
    run: dict[str, Any] = {"device": "cuda", "display": SilentDisplay()}
    train_parts((*parts, "assemble"), _FOLDER / "shards", _FOLDER / "toybox", overrides=short, **run)
    longer = {name: "3" if name.endswith("num_steps") else value for name, value in short.items()}
    train_parts(("autoencoder", "denoiser"), _FOLDER / "shards", _FOLDER / "toybox", overrides=longer, **run)


@workload
def family() -> None:
    """Models of the family: trained for two steps, then drawn from."""
    import torch

    from nerf3d.toybox.shards import write_shards

    with torch.utils._python_dispatch._disable_current_modes():
        list(write_shards(_FOLDER / "small", 32, shard_size=16, size=16))
    sizes = ("network.block_out_channels=[8,16]", "network.attention_levels=[false,true]", "network.sample_size=8")
    loop = ("loop.num_steps=2", "loop.batch_size=4", f"data.folder={_FOLDER / 'small'}", "data.kinds=car,mushroom,chair")
    for objective in ("glide", "ddpm", "ncsn", "bit_diffusion"):
        out = _FOLDER / "family" / objective
        command(
            "train",
            f"objective={objective}",
            *loop,
            *(sizes if objective != "ncsn" else sizes[2:]),
            "--out",
            out,
            "--device",
            "cuda",
        )
        prompt = ("prompt=a red car", "guidance_scale=3") if objective == "glide" else ()
        drawing = (f"model={out}", "num_samples=2", "num_steps=2", *prompt)
        command("sample", *drawing, "--out", out / "drawn.png", "--device", "cuda")


@workload
def toybox() -> dict[str, Any]:
    """The shipped prior: two steps of its own recipe, two of DDIM, and the gradient's other form in half precision."""
    from orchestrator.prior.local import load_prior

    prior = load_prior("toybox", "cuda")
    _pictures(prior)
    half = load_prior("toybox?dtype=bfloat16", "cuda")
    _pictures(half)
    return fit_of(prior, guide_size=64)


def _fault(module: Any, name: str, replacement: Any, run: Callable[[], Any]) -> str:
    """What happens with a fault planted: the kind of its refusal, or "survived"."""
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        run()
        return "survived"
    except (Refused, TypeError) as error:
        return type(error).__name__
    except Exception as error:
        return "Refused" if RECORD.refused else f"another error: {type(error).__name__}: {error}"
    finally:
        setattr(module, name, original)
        RECORD.clear()


@workload
def planted_faults() -> dict[str, Any]:
    """One of each kind, which the ghost must refuse or count."""
    import torch

    from nerf3d.fit import FitConfig, fit, loop, scene
    from nerf3d.guide import GuideReply
    from nerf3d.rendering import volume
    from tests.fakes import FAST_FIT

    config: FitConfig = dataclasses.replace(FAST_FIT, num_steps=3)

    def guide(rgb: Any, views: Any, **_: Any) -> GuideReply:
        return GuideReply(rgb.detach() * 0, rgb.detach() * 0.5)

    def one_step() -> None:
        next(fit(config, guide, seed=0, device="cuda"))

    one_step()
    generated = lambda s, g, d: torch.empty(s, device=d).uniform_(generator=g)  # noqa: E731
    answers = {
        "none": _fault(loop, "_gradient_norm", loop._gradient_norm, one_step),
        "operands on two devices": _fault(volume, "_jitter", lambda s, g, d: torch.empty(s).uniform_(generator=g), one_step),
        "cameras left on the CPU": _fault(scene.Scene, "to", lambda self, device: self, one_step),
        "a generator of the CPU": _fault(volume, "_jitter", generated, one_step),
        "numpy of a tensor there": _fault(loop, "_gradient_norm", lambda f: f.density_grids[0].detach().numpy(), one_step),
        "an index there into a tensor here": _fault(
            volume, "_jitter", lambda s, g, d: torch.zeros(s)[torch.zeros(s, dtype=torch.long, device=d)], one_step
        ),
    }
    before = sum(RECORD.waits.values())
    torch.ones(3).to("cuda").sum().item()
    return {"answers": answers, "counted": sum(RECORD.waits.values()) - before}


def lines(names: list[str]) -> Iterator[str]:
    """One line of JSON a workload, on one ghost."""
    import torch

    torch.set_num_threads(1)
    with ghost_cuda():
        from tests.ghost_cuda import nerfacc_kernels

        nerfacc_kernels.install()
        for name in names:
            yield json.dumps(measured(name))
