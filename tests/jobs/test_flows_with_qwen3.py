"""A 3D step through reduced Z-Image and FLUX.2 klein: its gradient is RFDS's formula on diffusers' own networks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import dreamkiln
from diffusion.flow_schedule import EmpiricalShift
from diffusion.prior import Prior
from jobs.text_to_3d import PriorGuide, _warn_of_distilled
from nerf3d.cameras import Cameras
from nerf3d.fit.loop import _guide_loss
from orchestrator.cli.main import main
from orchestrator.prior.local import LocalPrior
from orchestrator.settings.compose import compose
from tests.diffusion.checkpoints.published import KLEIN_LAYERS, random_klein, random_z_image
from tests.diffusion.test_flux2 import called, of_pipeline

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)
SCALE = 100


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("flows")
    pipelines = {"z_image": random_z_image(root / "z_image"), "klein": random_klein(root / "klein")}
    return pipelines, root


def of_z_image(pipeline: Any, rgb: Tensor, texts: list[list[str]], t: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """Latents with a graph, and the velocities under each of some texts: the negative of what the network says."""
    vae = pipeline.vae
    latents = (vae.encode(rgb * 2 - 1).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    noisy = noised(latents, t, noise)
    found = [latents]
    for prompts in texts:
        states, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False)
        out = pipeline.transformer(list(noisy[:, :, None].unbind(0)), (1000 - t) / 1000, states, return_dict=False)[0]
        found.append(-torch.stack(list(out))[:, :, 0])
    return tuple(found)


def of_klein(pipeline: Any, rgb: Tensor, texts: list[list[str]], t: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
    """The same of FLUX.2 klein."""
    latents = of_pipeline(pipeline.vae, pipeline.vae.encode(rgb * 2 - 1).latent_dist.mode())
    noisy = noised(latents, t, noise)
    states = (pipeline.encode_prompt(prompts, text_encoder_out_layers=KLEIN_LAYERS)[0] for prompts in texts)
    return latents, *(called(pipeline.transformer, noisy, t, text) for text in states)


def noised(latents: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    sigmas = (t / 1000).view(-1, 1, 1, 1)
    return (1 - sigmas) * latents.detach() + sigmas * noise


@pytest.mark.parametrize(("family", "oracle"), [("z_image", of_z_image), ("klein", of_klein)])
def test_the_gradient_is_that_of_rfds(family, oracle, saved):
    """Of 1/2 ||(noise - latents) - (v_null + 100 (v_text - v_null))||^2 in the latents, the encoder's mean, pulled back."""
    pipelines, root = saved
    settings = compose(options={"prior.source": str(root / family)})
    assert settings.recipe == "rfds-sd3" and settings.distillation.form == "flow"
    prior = LocalPrior(Prior.load(root / family))
    guide = PriorGuide(prior, prior.info(), "a red cup", 3, settings.distillation, settings.distillation.form)
    views = Cameras.orbit([10.0, 190.0], [20.0, 40.0], radius=1.75, fov_degrees=55.0)
    rendered = torch.rand(2, 3, 16, 16, generator=torch.manual_seed(1))
    ours = rendered.clone().requires_grad_()
    reply = guide(rendered, views, background=torch.zeros(2, 3), step=7, num_steps=settings.fit.num_steps)
    _guide_loss(ours, reply, settings.fit.guide_reduction).backward()
    query = guide._query(rendered, views, step=7, num_steps=15_000, first_view=0, num_views=2)
    assert query.guidance.scale == SCALE and query.prompts == ("a red cup, front view", "a red cup, back view")
    # Levels are drawn from 0.02 to 0.7 and then shifted as the family does it: klein as in 50 steps of its own size.
    shift = {"z_image": 6.0, "klein": EmpiricalShift().shift(16, 50)}[family]
    low, high = (1000 * shift * level / (1 + (shift - 1) * level) for level in (0.02, 0.7))
    assert bool(((query.t >= low) & (query.t <= high)).all())
    theirs = rendered.clone().requires_grad_()
    enlarged = F.interpolate(theirs, (64, 64), mode="bilinear", align_corners=False)
    noise = prior._noise(query.noise_keys)
    with torch.enable_grad():
        texts = [list(query.prompts), [query.negative_prompt] * 2]
        latents, with_text, without = oracle(pipelines[family], enlarged, texts, query.t.float(), noise)
        target = (without + SCALE * (with_text - without)).detach()
        (0.5 * F.mse_loss(noise - latents, target, reduction="sum") / 2).backward()
    assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm()) < 1e-4


def test_klein_draws_with_its_family_s_values_and_its_distilled_one_is_warned_of(saved, tmp_path, capsys):
    told = ["images", "a red mushroom", "--prior", str(saved[1] / "klein"), "--runtime", "inline", "--num-images", "1"]
    assert main([*told, "--steps", "2", "--size", "80x48", "--out", str(tmp_path / "run")]) == 0
    assert np.asarray(Image.open(tmp_path / "run/000000000.png")).shape == (48, 80, 3)
    spec = json.loads((tmp_path / "run/manifest.json").read_text())["spec"]
    assert (spec["guidance_scale"], spec["sampler"], spec["num_steps"]) == (4.0, "euler", 2)
    index = saved[1] / "klein/model_index.json"
    before = index.read_text()
    index.write_text(json.dumps({**json.loads(before), "is_distilled": True}))
    try:
        info = LocalPrior(Prior.load(saved[1] / "klein")).info()
    finally:
        index.write_text(before)
    assert any("(steps) and has no classifier-free guidance" in message.text for message in _warn_of_distilled(info))


@pytest.mark.slow
def test_a_sentence_becomes_a_mesh_through_klein(saved, tmp_path):
    small = {"fit.num_steps": 4, "fit.num_samples": 32, "fit.render_sizes": [[0.0, 16]], "field.log2_table_size": 12}
    small |= {"field.num_levels": 4, "field.finest_resolution": 64, "fit.guide_size": 64}
    small |= {"mesh.resolution": 32, "mesh.texture_size": 0, "export.turntable_frames": 0, "runtime": "inline"}
    outcome = dreamkiln.text_to_3d("a red cup", {"prior.source": str(saved[1] / "klein"), **small}, out=tmp_path / "cup")
    assert (Path(outcome.folder) / "mesh.glb").stat().st_size > 1000
