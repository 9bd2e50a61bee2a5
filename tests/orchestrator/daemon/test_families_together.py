"""Tables for three families on one orchestrator at once, at sizes that owners draw: every row right, and as if alone."""

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
from jobs.prior_client import GenerateRequest
from orchestrator.client.client import Client
from orchestrator.host.state_folder import StateFolder
from orchestrator.prior.local import load_prior
from tests.diffusion.checkpoints.published import random_pipeline
from tests.orchestrator.daemon.test_daemon_end_to_end import prior_processes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]

PROMPTS = ("a red mushroom", "a blue chair")
HOW = (
    "--steps",
    2,
    "--guidance-scale",
    5,
    "--sampler",
    "ddim",
    "images.timestep_spacing=leading",
    "images.guidance_rescale=0",
    "--strict",
)


class Family(NamedTuple):
    """own: side of its pictures in pixels. heads: of its network's levels. sizes: (width, height) of its table's rows."""

    model: str
    own: int
    heads: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]


FAMILIES = (
    Family("sd15", 256, (1, 2, 2, 2), ((512, 768), (512, 512))),
    Family("sdxl", 512, (1, 2, 2), ((1216, 832), (832, 1216))),
    Family("toybox", 64, (), ((64, 64), (64, 64))),
)


def prior_of(family: Family, folder: Path) -> tuple[str, Any]:
    """A prior of reduced depth and width, and diffusers' pipeline of it; its own size is half of the published one."""
    if family.model == "toybox":
        return "toybox", None
    depth = {"layers_per_block": 1, "attention_head_dim": family.heads}
    return str(folder), random_pipeline(family.model, folder, sample_size=family.own // 8, **depth)


@torch.no_grad()
def by_diffusers(pipeline: Any, prompt: str, seed: int, size: tuple[int, int]) -> np.ndarray:
    """The picture that diffusers draws from our noise, (H, W, 3) uint8."""
    import diffusers

    width, height = size
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    noise = seeding.normal_rows((4, height // 8, width // 8), [seeding.stream(seed, "image")])
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


def alone(prompt: str, seed: int, size: tuple[int, int]) -> GenerateRequest:
    """A row by itself."""
    how = {"num_steps": 2, "guidance": Guidance(scale=5.0), "sampler": "ddim", "timestep_spacing": "leading", "strict": True}
    return GenerateRequest(prompts=(prompt,), seeds=(seed,), size=size, **how)


def test_three_families_at_once(orchestrator, tmp_path):
    torch.set_num_threads(1)  # as the orchestrator's priors
    made = {family: prior_of(family, tmp_path / family.model) for family in FAMILIES}
    up = orchestrator("up", "--num-workers", 3, "--num-threads", 1)
    jobs = []
    for family, (source, _) in made.items():
        table = tmp_path / f"{family.model}.csv"
        rows = [f"{prompt},{seed},{w}x{h}" for seed, (prompt, (w, h)) in enumerate(zip(PROMPTS, family.sizes, strict=True))]
        table.write_text("\n".join(["prompt,seed,size", *rows]))
        out = tmp_path / "together" / family.model
        queued = orchestrator("submit", "images", "--prompts", table, "--prior", source, "--out", out, *HOW, "--paused")
        jobs.append(queued["jobs"][0]["id"])
    orchestrator("jobs", "resume", *jobs)

    # Watched until all have ended: what the scheduler counts, and what the priors' processes really hold.
    client, most, together = Client(StateFolder(tmp_path / "state")), 0, 0
    while True:
        system, shown = client.get("/v1/system"), [client.get(f"/v1/jobs/{job}")["job"] for job in jobs]
        counted = sum(prior["memory_bytes"] for prior in system["priors"])
        assert counted <= system["memory_bytes"]
        held = sum(process.memory_info().rss for process in prior_processes(up["pid"]) if psutil.pid_exists(process.pid))
        most, together = max(most, held), max(together, sum(job["state"] == "running" for job in shown))
        if all(job["state"] in ("succeeded", "failed", "cancelled") for job in shown):
            break
        time.sleep(0.2)
    assert [job["state"] for job in shown] == ["succeeded"] * 3 and together > 1
    assert most <= counted and len(system["priors"]) == 3

    for family, (source, pipeline) in made.items():
        prior = load_prior(source)
        for seed, (prompt, (width, height)) in enumerate(zip(PROMPTS, family.sizes, strict=True)):
            mixed = read(tmp_path / "together" / family.model / "00000" / f"{seed:09d}.png")
            assert mixed.shape == (height, width, 3)
            np.testing.assert_array_equal(prior.generate(alone(prompt, seed, (height, width)))[0], mixed)
            if pipeline is not None:
                theirs = by_diffusers(pipeline, prompt, seed, (width, height))
                assert np.abs(theirs.astype(int) - mixed).max() <= 1
