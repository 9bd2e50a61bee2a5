"""The recipe dreamfusion-sd with a reduced Stable Diffusion 1.5: its gradient is threestudio's, and it ends with a mesh."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import dreamkiln
from diffusion.prior import Prior
from jobs.text_to_3d import PriorGuide, view_prompts
from nerf3d.cameras import Cameras
from nerf3d.fit.loop import _guide_loss
from orchestrator.prior.local import LocalPrior
from orchestrator.settings.compose import compose
from tests.diffusion.checkpoints.published import random_pipeline

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd15")
    return random_pipeline("sd15", folder), folder


def threestudios_gradient(pipeline, rgb, prompts, t, noise):
    """stable_diffusion_guidance.py: compute_grad_sds and __call__, with the mean of the latents instead of a draw."""
    vae, unet, size = pipeline.vae, pipeline.unet, 64
    rgb = rgb.clone().requires_grad_()
    enlarged = F.interpolate(rgb, (size, size), mode="bilinear", align_corners=False)
    latents = vae.encode(enlarged * 2 - 1).latent_dist.mean * vae.config.scaling_factor
    with torch.no_grad():
        text, uncond = pipeline.encode_prompt(list(prompts), "cpu", 1, True, negative_prompt=[""] * len(prompts))
        alphas = pipeline.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
        prediction = unet(torch.cat([noisy] * 2), torch.cat([t] * 2), encoder_hidden_states=torch.cat([text, uncond])).sample
        noise_text, noise_uncond = prediction.chunk(2)
        noise_pred = noise_text + 100.0 * (noise_text - noise_uncond)
        grad = (1 - alphas) * (noise_pred - noise)
        target = (latents - grad).detach()
    (0.5 * F.mse_loss(latents, target, reduction="sum") / len(rgb)).backward()
    return rgb.grad


def test_the_gradient_is_threestudios(sd15):
    pipeline, folder = sd15
    settings = compose(options={"prior.source": str(folder)})
    prior = LocalPrior(Prior.load(folder))
    guide = PriorGuide(prior, prior.info(), "a red cup", 3, settings.distillation, settings.distillation.form)
    views = Cameras.orbit([10.0, 190.0], [20.0, 70.0], radius=1.75, fov_degrees=55.0)
    rendered = torch.rand(2, 3, 16, 16, generator=torch.manual_seed(1))
    ours = rendered.clone().requires_grad_()
    reply = guide(rendered, views, background=torch.zeros(2, 3), step=7, num_steps=settings.fit.num_steps)
    _guide_loss(ours, reply, settings.fit.guide_reduction).backward()
    query = guide._query(rendered, views, step=7, num_steps=10_000, first_view=0, num_views=2)
    assert (
        query.prompts
        == view_prompts("a red cup", views, settings.distillation)
        == (
            "a red cup, front view",
            "a red cup, overhead view",
        )
    )
    noise = prior._noise(query.noise_keys)
    theirs = threestudios_gradient(pipeline, rendered, query.prompts, query.t, noise)
    assert float((ours.grad - theirs).norm() / theirs.norm()) < 3e-5


def test_a_sentence_becomes_a_mesh_and_the_manifest_names_the_recipe(sd15, tmp_path):
    small = {"fit.num_steps": 6, "fit.num_samples": 32, "fit.render_sizes": [[0.0, 16]], "field.log2_table_size": 12}
    small |= {"fit.lit_from": 0.3, "field.num_levels": 4, "field.finest_resolution": 64}
    small |= {"mesh.resolution": 32, "mesh.texture_size": 0, "export.turntable_frames": 0, "runtime": "inline"}
    outcome = dreamkiln.text_to_3d("a red cup", {"prior.source": str(sd15[1]), **small}, out=tmp_path / "cup")
    manifest = json.loads((Path(outcome.folder) / "manifest.json").read_text())
    assert manifest["recipe"]["name"] == "dreamfusion-sd" and "configs/dreamfusion-sd.yaml" in manifest["recipe"]["source"]
    spec = manifest["spec"]
    assert spec["distillation"]["guidance_scale"] == 101 and spec["fit"]["backgrounds"] == "learned"
    assert (Path(outcome.folder) / "mesh.glb").stat().st_size > 1000
    assert any("6 steps" in message and "12 rows" in message for message in outcome.messages)
