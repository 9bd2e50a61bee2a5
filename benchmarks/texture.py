"""Painting a given mesh: what `dreamkiln texture` makes of the toybox's true shapes, against their true colours.

    python -m benchmarks.texture [--steps 150]

Of each object: the true shape without colours, painted as its sentence says. PSNR is of unlit views from twelve sides, over the
pixels that the object covers, against views of the true colours; before painting the object is middle grey. The score is the
prior's (`jobs.opinion`): the share of the denoising loss of eight lit views that the sentence explains.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.asset_tools.__main__ import TrueField
from benchmarks.machine import describe_machine, one_line
from benchmarks.pictures import write_small_webp
from benchmarks.saving import save_run
from jobs.texture import TextureSpec
from nerf3d.cameras import Cameras
from nerf3d.mesh import MeshConfig, draw_mesh, extract_mesh
from nerf3d.surface import PaintConfig
from nerf3d.toybox.truth import object_from_prompt
from orchestrator.exports import Placement, write_glb
from orchestrator.exports.transform import place
from orchestrator.host.threads import use_threads
from orchestrator.prior.local import load_prior
from orchestrator.run.given_mesh import GivenMesh
from orchestrator.run.texturing import texture_mesh
from orchestrator.settings.groups import ExportSettings, RuntimeSettings

RESULTS = Path(__file__).parent / "results" / "texture.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "assets" / "texture.webp"
PROMPTS = ("a red teapot", "a red house with a blue roof", "a blue car")
VIEWS = Cameras.orbit([30.0 * view for view in range(12)], 15.0)
SHOWN = [1, 7]


def main(arguments: list[str] | None = None) -> int:
    """Prints a line an object and saves the figures and a picture: grey, painted, true."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=PaintConfig().num_steps)
    parser.add_argument("--only", type=int, default=len(PROMPTS), help="so many of the objects")
    parser.add_argument("--faces", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    use_threads(1)
    rows, pictures = {}, []
    for prompt in PROMPTS[: options.only]:
        row, picture = _painted(prompt, options.steps, options.faces)
        rows[prompt] = row
        pictures.append(picture)
        print(prompt, row, flush=True)
    write_small_webp(np.concatenate(pictures, 0), options.picture, max_bytes=120_000, max_width=1024)
    machine = describe_machine()
    print(one_line(machine))
    save_run(options.out, machine, {"steps": options.steps, "faces": options.faces}, {"objects": rows})
    return 0


def _painted(prompt: str, steps: int, faces: int) -> tuple[dict[str, float], np.ndarray]:
    truth = object_from_prompt(prompt)
    assert truth is not None
    true = extract_mesh(TrueField(truth), MeshConfig(max_faces=faces, texture_size=0))
    grey = dataclasses.replace(true, colours=np.full_like(true.colours, 0.5))
    with tempfile.TemporaryDirectory() as scratch:
        file = write_glb(grey, Path(scratch) / "grey.glb", Placement())[0]
        given = GivenMesh.read(file)
        spec = TextureSpec(prompt=prompt, mesh_sha256=given.digest, texture=PaintConfig(num_steps=steps))
        out = Path(scratch) / "run"
        began = time.process_time()
        outcome = texture_mesh(
            *(spec, given),
            out=out,
            export=ExportSettings(turntable_frames=0),
            runtime=RuntimeSettings(kind="inline", device="cpu", num_threads=1),
            load_prior=load_prior,
        )
        seconds = time.process_time() - began
        painted = GivenMesh.read(out / "mesh.glb").mesh
    scene = {name: place(mesh, longest_side=1.5) for name, mesh in (("grey", grey), ("painted", painted), ("true", true))}
    shown = {name: draw_mesh(mesh, VIEWS, 128, shading="albedo") for name, mesh in scene.items()}
    row = {
        "cpu_seconds": round(seconds, 1),
        "psnr_grey": round(_psnr(shown["grey"], shown["true"]), 2),
        "psnr": round(_psnr(shown["painted"], shown["true"]), 2),
        "score_grey": outcome.metrics["prior_score_before"],
        "score": outcome.metrics["prior_score"],
    }
    lit = [draw_mesh(scene[name], VIEWS[SHOWN], 170)[0] for name in ("grey", "painted", "true")]
    strip = torch.cat([view for views in lit for view in views], dim=-1)
    return row, (strip.permute(1, 2, 0) * 255).round().byte().numpy()


def _psnr(ours: tuple[torch.Tensor, torch.Tensor], true: tuple[torch.Tensor, torch.Tensor]) -> float:
    """In dB, over the pixels that both cover."""
    inside = ((ours[1] > 0.99) & (true[1] > 0.99)).expand_as(true[0])
    return -10 * math.log10(float((ours[0] - true[0])[inside].square().mean()))


if __name__ == "__main__":
    sys.exit(main())
