"""The recipe rfds-sd3 with a reduced Stable Diffusion 3: its gradient is RFDS's, and it draws pictures and a mesh."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import dreamkiln
from diffusion.prior import Prior
from jobs.text_to_3d import PriorGuide
from nerf3d.cameras import Cameras
from nerf3d.fit.loop import _guide_loss
from orchestrator.cli.main import main
from orchestrator.prior.local import LocalPrior
from orchestrator.settings.compose import compose
from tests.diffusion.checkpoints.published import random_stable_diffusion_3

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    return random_stable_diffusion_3(folder, is_35=True), folder


def rfds_gradient(pipeline, rgb, prompts, negative, t, noise):
    """RFDS_sd3.py: 1/2 ||(noise - latents) - (v_null + 100 (v_text - v_null))||^2, the mean of the latents for a draw."""
    vae, size = pipeline.vae, 64
    rgb = rgb.clone().requires_grad_()
    enlarged = F.interpolate(rgb, (size, size), mode="bilinear", align_corners=False)
    latents = (vae.encode(enlarged * 2 - 1).latent_dist.mean - vae.config.shift_factor) * vae.config.scaling_factor
    with torch.no_grad():
        texts = pipeline.encode_prompt(prompts, None, None, negative_prompt=[negative] * len(prompts))
        sigmas = (t / 1000).float().view(-1, 1, 1, 1)
        noisy = sigmas * noise + (1 - sigmas) * latents
        v = pipeline.transformer(torch.cat([noisy] * 2), torch.cat(texts[:2]), torch.cat(texts[2:]), torch.cat([t] * 2)).sample
        v_text, v_null = v.chunk(2)
        target = v_null + 100 * (v_text - v_null)
    (0.5 * F.mse_loss(noise - latents, target, reduction="sum") / len(rgb)).backward()
    return rgb.grad


def test_the_gradient_is_that_of_rfds(sd3):
    pipeline, folder = sd3
    settings = compose(options={"prior.source": str(folder)})
    assert settings.recipe == "rfds-sd3" and settings.distillation.form == "flow"
    prior = LocalPrior(Prior.load(f"{folder}?prompt=plain"))
    guide = PriorGuide(prior, prior.info(), "a red cup", 3, settings.distillation, settings.distillation.form)
    views = Cameras.orbit([10.0, 190.0], [20.0, 40.0], radius=1.75, fov_degrees=55.0)
    rendered = torch.rand(2, 3, 16, 16, generator=torch.manual_seed(1))
    ours = rendered.clone().requires_grad_()
    reply = guide(rendered, views, background=torch.zeros(2, 3), step=7, num_steps=settings.fit.num_steps)
    _guide_loss(ours, reply, settings.fit.guide_reduction).backward()
    query = guide._query(rendered, views, step=7, num_steps=15_000, first_view=0, num_views=2)
    assert query.t.dtype == torch.float64 and bool(((query.t > 57) & (query.t < 876)).all())
    assert query.prompts == ("a red cup, front view", "a red cup, back view")
    noise = prior._noise(query.noise_keys)
    theirs = rfds_gradient(pipeline, rendered, list(query.prompts), query.negative_prompt, query.t, noise)
    assert float((ours.grad - theirs).norm() / theirs.norm()) < 1e-4


def test_a_sentence_becomes_a_mesh(sd3, tmp_path):
    small = {"fit.num_steps": 4, "fit.num_samples": 32, "fit.render_sizes": [[0.0, 16]], "field.log2_table_size": 12}
    small |= {"field.num_levels": 4, "field.finest_resolution": 64, "fit.guide_size": 64}
    small |= {"mesh.resolution": 32, "mesh.texture_size": 0, "export.turntable_frames": 0, "runtime": "inline"}
    outcome = dreamkiln.text_to_3d("a red cup", {"prior.source": str(sd3[1]), **small}, out=tmp_path / "cup")
    manifest = json.loads((Path(outcome.folder) / "manifest.json").read_text())
    assert manifest["recipe"]["name"] == "rfds-sd3" and "configs/rfds_sd3.yaml" in manifest["recipe"]["source"]
    assert manifest["spec"]["distillation"]["guidance_scale"] == 100
    assert (Path(outcome.folder) / "mesh.glb").stat().st_size > 1000


def test_images_are_drawn_with_the_familys_values(sd3, tmp_path):
    told = ["images", "a red mushroom", "--prior", str(sd3[1]), "--runtime", "inline", "--num-images", "2", "--steps", "4"]
    assert main([*told, "--size", "80x48", "--out", str(tmp_path / "run")]) == 0
    spec = json.loads((tmp_path / "run/manifest.json").read_text())["spec"]
    assert (spec["guidance_scale"], spec["sampler"], spec["num_steps"]) == (4.5, "euler", 4)
    assert main([*told, "--sampler", "flow_heun", "--strict", "--out", str(tmp_path / "strict")]) == 0


def test_what_a_flow_cannot_is_said_in_a_sentence(sd3, tmp_path, capsys):
    told = ["images", "a red mushroom", "--prior", str(sd3[1]), "--runtime", "inline", "--num-images", "1", "--steps", "4"]
    assert main([*told, "--sampler", "pndm", "--out", str(tmp_path / "a")]) != 0
    said = capsys.readouterr().err
    assert "pndm" in said and "rectified flow" in said and "flow_heun" in said and "Traceback" not in said
    assert main([*told, "--timestep-spacing", "leading", "--out", str(tmp_path / "b")]) != 0
    said = capsys.readouterr().err
    assert "'leading'" in said and "'linspace' or 'trailing'" in said and "Traceback" not in said
    assert main([*told, "--size", "72x64", "--out", str(tmp_path / "c")]) != 0
    assert "multiples of 16" in capsys.readouterr().err
