"""A reduced Z-Image through the product: pictures, a mesh by its recipe, and Turbo, which is drawn and warned of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dreamkiln
from diffusion.prior import Prior
from diffusion.requests import DecodeRequest, Guidance, run
from diffusion.samplers import SAMPLERS, timesteps_for
from diffusion.seeding import normal_rows, stream
from jobs.text_to_3d import _warn_of_distilled
from orchestrator.cli.main import main
from orchestrator.prior.local import load_prior
from orchestrator.settings.compose import compose
from tests.diffusion.checkpoints.published import random_z_image

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("z")
    random_z_image(root / "base"), random_z_image(root / "eight", shift=3.0)
    return root


def drawn(folder, prompt, *, scale, num_steps, seed=0):
    prior = Prior.load(folder)
    condition, x = prior.condition([prompt]), normal_rows((16, 8, 8), [stream(seed, "image")])
    timesteps = timesteps_for("euler", prior.schedule, num_steps)
    told = {"schedule": prior.schedule, "timesteps": timesteps, "condition": condition, "guidance": Guidance(scale)}
    with torch.no_grad():
        picture = prior.answer(DecodeRequest(run(SAMPLERS["euler"](x, **told), prior.answer)))
    return (picture[0] * 255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize(("kind", "scale", "num_steps", "told"), [("base", 6.0, 4, ["--steps", "4"]), ("eight", 1.0, 8, [])])
def test_images_are_drawn_with_the_family_s_values(kind, scale, num_steps, told, folders, tmp_path, capsys):
    """The file that the command leaves is what the network draws with the published guidance, Turbo's in 8 steps."""
    words = ["images", "a red mushroom", "--prior", str(folders / kind), "--runtime", "inline", "--num-images", "1", *told]
    assert main([*words, "--seed", "0", "--out", str(tmp_path / "run")]) == 0
    spec = json.loads((tmp_path / "run/manifest.json").read_text())["spec"]
    assert (spec["guidance_scale"], spec["sampler"], spec["num_steps"]) == (scale, "euler", num_steps)
    assert ("by its scheduler's shift of 3" in capsys.readouterr().err) == (kind == "eight")
    (first,) = (path for path in (tmp_path / "run").glob("*.png") if path.stem.isdigit() or "image" in path.stem)
    found = np.asarray(Image.open(first)).astype(int)
    expected = drawn(folders / kind, "a red mushroom", scale=scale, num_steps=num_steps)
    assert np.abs(found - expected.astype(int)).max() <= 1


def test_pictures_of_any_size_and_prompts_of_any_length(folders, tmp_path):
    table = tmp_path / "prompts.csv"
    table.write_text(f"prompt,width,height\na red mushroom,80,48\n{'a wall of red bricks and ' * 6},64,64\n")
    told = ["images", "--prompts", str(table), "--prior", str(folders / "base"), "--runtime", "inline", "--steps", "2"]
    assert main([*told, "--out", str(tmp_path / "out")]) == 0
    sizes = {Image.open(path).size for path in (tmp_path / "out").rglob("*.png") if "contact" not in path.name}
    assert {(80, 48), (64, 64)} <= sizes


@pytest.mark.slow
def test_a_sentence_becomes_a_mesh(folders, tmp_path):
    small = {"fit.num_steps": 4, "fit.num_samples": 32, "fit.render_sizes": [[0.0, 16]], "field.log2_table_size": 12}
    small |= {"field.num_levels": 4, "field.finest_resolution": 64, "fit.guide_size": 64}
    small |= {"mesh.resolution": 32, "mesh.texture_size": 0, "export.turntable_frames": 0, "runtime": "inline"}
    outcome = dreamkiln.text_to_3d("a red cup", {"prior.source": str(folders / "base"), **small}, out=tmp_path / "cup")
    manifest = json.loads((Path(outcome.folder) / "manifest.json").read_text())
    assert manifest["recipe"]["name"] == "rfds-sd3"
    assert (Path(outcome.folder) / "mesh.glb").stat().st_size > 1000


def test_turbo_is_warned_of_before_it_is_distilled(folders):
    """Whatever its folder is called; score distillation is not refused."""
    assert compose(options={"prior.source": str(folders / "eight")}).recipe == "rfds-sd3"
    for folder, distilled in (("eight", "turbo"), ("eight?distilled=none", ""), ("base", "")):
        info = load_prior(str(folders / folder)).info()
        assert info.distilled == distilled
        said = [message.text for message in _warn_of_distilled(info)]
        assert [("(turbo) and has no classifier-free guidance" in text) for text in said] == [True] * bool(distilled)
