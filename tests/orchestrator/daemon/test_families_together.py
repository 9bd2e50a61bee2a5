"""Tables and objects for several families on one orchestrator at once, one prior killed: every row right, and as if alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from diffusion import seeding
from diffusion.requests import Guidance
from diffusion.samplers.timesteps import Spacing
from jobs.prior_client import GenerateRequest
from orchestrator.client.client import Client
from orchestrator.host.state_folder import StateFolder
from orchestrator.prior.local import load_prior
from tests.diffusion.checkpoints.published import random_pipeline, random_stable_diffusion_3
from tests.fakes import FAST_OVERRIDES
from tests.orchestrator.daemon.test_daemon_end_to_end import digest, prior_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]

PROMPTS = ("a red mushroom", "a blue chair")
HOW = ("--steps", 2, "--guidance-scale", 5, "--sampler", "ddim", "images.guidance_rescale=0", "--strict")
MESH = ("mesh.resolution=32", "mesh.texture_size=0", "export.turntable_frames=0", "export.preview_size=16")
# The families' own recipes at a few steps and in small.
GRID = ("field.log2_table_size=12", "field.num_levels=4", "field.finest_resolution=64")
LEAN = (*GRID, "fit.num_steps=4", "fit.num_samples=32", "fit.render_sizes=[[0.0,16]]", "fit.guide_size=64", *MESH)


class Family(NamedTuple):
    """A family's table and its object.

    own: side of its pictures in pixels. heads: of its network's levels. sizes: (width, height) of its table's rows. spacing: of
    their timesteps. fit: settings of its object; empty for none.
    """

    model: str
    own: int
    heads: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    spacing: Spacing | None = "leading"
    fit: tuple[Any, ...] = ()


FAMILIES = (
    Family("sd15", 128, (1, 2, 2, 2), ((512, 768), (512, 512)), fit=LEAN),
    Family("sdxl", 512, (1, 2, 2), ((1216, 832), (832, 1216))),
    Family("sd3", 64, (), ((192, 128), (128, 192)), spacing=None, fit=LEAN),
    Family("toybox", 64, (), ((64, 64), (64, 64)), fit=(*FAST_OVERRIDES, *MESH)),
)


def prior_of(family: Family, folder: Path) -> tuple[str, Any]:
    """A prior of reduced depth and width, and diffusers' pipeline of it; its own size is less than the published one."""
    if family.model == "toybox":
        return "toybox", None
    if family.model == "sd3":
        return str(folder), random_stable_diffusion_3(folder, with_t5=False)
    depth = {"layers_per_block": 1, "attention_head_dim": family.heads}
    return str(folder), random_pipeline(family.model, folder, sample_size=family.own // 8, **depth)


@torch.no_grad()
def by_diffusers(pipeline: Any, prompt: str, seed: int, size: tuple[int, int]) -> np.ndarray:
    """The picture that diffusers draws from our noise, (H, W, 3) uint8."""
    import diffusers

    width, height = size
    if hasattr(pipeline, "unet"):
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    channels = pipeline.vae.config.latent_channels
    noise = seeding.normal_rows((channels, height // 8, width // 8), [seeding.stream(seed, "image")])
    told = {"num_inference_steps": 2, "guidance_scale": 5.0, "height": height, "width": width, "output_type": "pt"}
    picture = pipeline(prompt, latents=noise, **told).images[0]
    return (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def orchestrator(dreamkiln, tmp_path):
    """dreamkiln(verb, …) with --state and JSON answers; taken down at the end."""
    state = ("--state", tmp_path / "state")

    def call(*arguments, expect: int = 0):
        done = dreamkiln(*arguments, *state, "--json", timeout=1200)
        assert done.returncode == expect, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    yield call
    call("down")


def alone(prompt: str, seed: int, size: tuple[int, int], spacing: Spacing | None) -> GenerateRequest:
    """A row by itself."""
    how = {"num_steps": 2, "guidance": Guidance(scale=5.0), "sampler": "ddim", "timestep_spacing": spacing, "strict": True}
    return GenerateRequest(prompts=(prompt,), seeds=(seed,), size=size, **how)


def resident_bytes(process: psutil.Process) -> int:
    """Of its memory; 0 where it has just ended."""
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def busiest(processes: list[psutil.Process]) -> psutil.Process:
    """The one that computes most for a third of a second."""
    before = {process: sum(process.cpu_times()[:2]) for process in processes}
    time.sleep(0.3)
    return max(processes, key=lambda process: sum(process.cpu_times()[:2]) - before[process])


def test_families_at_once_and_a_prior_that_is_killed(orchestrator, dreamkiln, tmp_path):
    torch.set_num_threads(1)  # as the orchestrator's priors
    made = {family: prior_of(family, tmp_path / family.model) for family in FAMILIES}
    objects = [family for family in FAMILIES if family.fit]
    up = orchestrator("up", "--num-workers", 4, "--num-threads", 1)
    jobs = []
    for family in objects:
        command = ["text-to-3d", PROMPTS[0], "--prior", made[family][0], "--strict", *family.fit, "runtime.num_threads=1"]
        by_itself = dreamkiln(*command, "--runtime", "inline", "--out", tmp_path / "alone" / family.model, timeout=1200)
        assert by_itself.returncode == 0, by_itself.stderr
        queued = orchestrator("submit", *command, "--out", tmp_path / "objects" / family.model, "--paused")
        jobs.append(queued["jobs"][0]["id"])
    for family, (source, _) in made.items():
        table = tmp_path / f"{family.model}.csv"
        rows = [f"{prompt},{seed},{w}x{h}" for seed, (prompt, (w, h)) in enumerate(zip(PROMPTS, family.sizes, strict=True))]
        table.write_text("\n".join(["prompt,seed,size", *rows]))
        out = tmp_path / "together" / family.model
        how = (*HOW, f"images.timestep_spacing={family.spacing or 'null'}")
        queued = orchestrator("submit", "images", "--prompts", table, "--prior", source, "--out", out, *how, "--paused")
        jobs.append(queued["jobs"][0]["id"])
    orchestrator("jobs", "resume", *jobs)

    # Watched until all have ended: what the scheduler counts, and what the priors' processes really hold. Once an object is
    # being fitted, the prior that is at work is killed.
    client, most, together, killed = Client(StateFolder(tmp_path / "state")), 0, 0, None
    while True:
        system, shown = client.get("/v1/system"), [client.get(f"/v1/jobs/{job}")["job"] for job in jobs]
        counted = sum(prior["memory_bytes"] for prior in system["priors"])
        assert counted <= system["memory_bytes"]
        held = sum(map(resident_bytes, prior_processes(up["pid"])))
        running = [job for job in shown if job["state"] == "running"]
        most, together = max(most, held), max(together, len(running))
        if killed is None and any(job["stage"] == "fit" and job["step"] > 0 for job in running):
            killed = busiest(prior_processes(up["pid"]))
            killed.kill()
        if all(job["state"] in ("succeeded", "failed", "cancelled") for job in shown):
            break
        time.sleep(0.2)
    assert [(job["state"], job["num_attempts"]) for job in shown] == [("succeeded", 1)] * len(jobs) and together > 1
    assert killed is not None and not killed.is_running()
    assert most <= counted and len(system["priors"]) == len(FAMILIES)

    for family in objects:
        assert digest(tmp_path / "objects" / family.model) == digest(tmp_path / "alone" / family.model)

    for family, (source, pipeline) in made.items():
        prior = load_prior(source)
        for seed, (prompt, (width, height)) in enumerate(zip(PROMPTS, family.sizes, strict=True)):
            mixed = read(tmp_path / "together" / family.model / "00000" / f"{seed:09d}.png")
            assert mixed.shape == (height, width, 3)
            drawn = prior.generate(alone(prompt, seed, (height, width), family.spacing))[0]
            np.testing.assert_array_equal(drawn, mixed, err_msg=f"{family.model}, row {seed}")
            if pipeline is not None:
                theirs = by_diffusers(pipeline, prompt, seed, (width, height))
                assert np.abs(theirs.astype(int) - mixed).max() <= 1
