"""`dreamkiln train`: every part from rendered shards to a prior that draws, in a few steps each."""

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion.networks.autoencoder_tiny import AutoencoderTiny
from diffusion.prior import Prior
from diffusion.text.clip import load_clip
from jobs.errors import InputError, OutputError
from nerf3d.toybox.items import make_item
from nerf3d.toybox.render import render_items
from nerf3d.toybox.shards import write_shards
from orchestrator.host.progress_display import SilentDisplay
from orchestrator.lab.training import latents, recipe, run
from orchestrator.lab.training.assemble import assemble, unpack
from orchestrator.lab.training.gate import LEVELS, Gate
from orchestrator.lab.training.parts import trained_autoencoder
from orchestrator.lab.training.pictures import Pictures
from orchestrator.lab.training.run import loop_configs, train_parts

SHORT = {
    f"{part}.{field}": value
    for part in ("autoencoder", "decoder", "clip", "judge", "denoiser", "views")
    for field, value in (("num_steps", "2"), ("batch_size", "4"))
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    list(write_shards(folder, 48, shard_size=24))
    return folder


@pytest.fixture(scope="module")
def trained(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toybox")
    parts = ("autoencoder", "clip", "judge", "denoiser", "assemble")
    train_parts(parts, shards, root, device="cpu", overrides=SHORT, display=SilentDisplay())
    return root


def test_every_part_leaves_a_checkpoint_a_log_and_a_plot(trained: Path) -> None:
    for part in ("autoencoder", "clip", "judge", "denoiser"):
        assert (trained / part / "checkpoint.pt").exists()
        assert (trained / part / "loss.png").stat().st_size > 1000
        steps = [json.loads(line)["step"] for line in (trained / part / "log.jsonl").read_text().splitlines()]
        assert steps == [1, 2]
    assert (trained / "denoiser/samples-000002.png").exists()


def test_the_assembled_folder_is_a_prior_with_a_judge(trained: Path) -> None:
    prior = Prior.load(trained / "prior")
    assert prior.latent_shape == (8, 16, 16)
    assert prior.unknown_words("a red dragon") == ["dragon"]
    assert load_clip(trained / "prior/clip", text=prior.text_encoder).config.embed_dim == 192
    assert load_clip(trained / "prior/judge").config.embed_dim == 128
    files = [path for path in (trained / "prior").rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) <= 16 * 2**20
    assert sum(path.stat().st_size for path in files) <= 48 * 2**20
    assert len({path.stat().st_mode for path in files}) == 1


def test_training_goes_on_from_the_checkpoint(trained: Path, shards: Path) -> None:
    longer = {**SHORT, "judge.num_steps": "3"}
    train_parts(["judge"], shards, trained, device="cpu", overrides=longer, display=SilentDisplay())
    steps = [json.loads(line)["step"] for line in (trained / "judge/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_a_part_that_finds_the_disk_full_says_so_and_leaves_no_half_checkpoint(shards: Path, small_disk: Path) -> None:
    with pytest.raises(OutputError, match="judge could not be written: the disk is full; free some space"):
        train_parts(["judge"], shards, small_disk, device="cpu", overrides=SHORT, display=SilentDisplay())
    assert {path.name for path in (small_disk / "judge").iterdir()} == {"log.jsonl"}


def test_a_copied_training_keeps_its_latents(trained: Path, shards: Path, tmp_path: Path) -> None:
    """They belong to weights and pixels, not to names and dates of files."""
    shutil.copytree(trained, tmp_path / "copy")
    (tmp_path / "copy/autoencoder/checkpoint.pt").touch()
    data, autoencoder = Pictures.load(shards), trained_autoencoder(tmp_path / "copy")
    assert list(latents.encode(data, autoencoder, tmp_path / "copy", device="cpu")) == []


def test_latents_are_encoded_with_progress_and_never_those_of_another_source(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "CHUNK", 20)
    data, autoencoder = Pictures.load(shards), AutoencoderTiny(recipe.AUTOENCODER)
    other_weights, other_scale = deepcopy(autoencoder), AutoencoderTiny(replace(recipe.AUTOENCODER, scaling_factor=2.0))
    with torch.no_grad():
        next(other_weights.parameters()).mul_(1.5)
    other_scale.load_state_dict(autoencoder.state_dict())
    sources = [
        (data, autoencoder),
        (replace(data, images=255 - data.images), autoencoder),
        (replace(data, images=data.images.flip(0)), autoencoder),
        (data, other_weights),
        (data, other_scale),
    ]
    (tmp_path / "latents.pt").write_bytes(b"of an earlier version")
    for pictures, module in sources:
        steps = [(step.step, step.total) for step in latents.encode(pictures, module, tmp_path, device="cpu")]
        assert steps == [(0, 48), (20, 48), (40, 48), (48, 48)]
        assert list(latents.encode(pictures, module, tmp_path, device="cpu")) == []
        expected = module.encode(pictures.batch(torch.arange(48)))
        found = latents.all_latents(pictures, module, tmp_path, device="cpu")
        torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    assert [path.name for path in tmp_path.iterdir()] == [latents.LATENTS]

    whole = (tmp_path / latents.LATENTS).read_bytes()
    (tmp_path / latents.LATENTS).write_bytes(whole[:100])
    assert len(list(latents.encode(*sources[-1], tmp_path, device="cpu"))) == 4


def test_a_shipped_prior_can_be_trained_on(trained: Path, tmp_path: Path) -> None:
    unpack(trained / "prior", tmp_path)
    assemble(tmp_path, tmp_path / "prior")
    assert Prior.load(tmp_path / "prior").weights_hash == Prior.load(trained / "prior").weights_hash


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    list(write_shards(folder, 12, shard_size=8, views=4))
    return folder


def test_the_denoiser_learns_its_cameras_from_groups(
    trained: Path, groups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        run, "_gate", lambda root: Gate.make(trained_autoencoder(root), recipe.toybox_tokenizer(), num_objects=2)
    )
    for part in ("autoencoder", "denoiser", "judge"):
        shutil.copytree(trained / part, tmp_path / part)
    train_parts(["views", "assemble"], groups, tmp_path, device="cpu", overrides=SHORT, display=SilentDisplay())
    (line,) = (tmp_path / "views/gate.jsonl").read_text().splitlines()
    figures = json.loads(line)
    assert {f"{who}_left_right@{level}" for who in ("groups", "single", "words") for level in LEVELS} < figures.keys()
    assert figures["step"] == 2 and (tmp_path / "views/gate.png").stat().st_size > 1000
    prior = Prior.load(tmp_path / "prior")
    assert (prior.num_views, prior.elevation_jitter) == (4, recipe.MULTI_VIEW.elevation_jitter)
    assert prior.unet.config.addition_embed_type is None
    unpack(tmp_path / "prior", tmp_path / "again")
    assemble(tmp_path / "again", tmp_path / "again/prior")
    assert Prior.load(tmp_path / "again/prior").weights_hash == prior.weights_hash


def test_a_decoder_trained_on_leaves_the_latents_as_they_are(trained: Path, shards: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "autoencoder", tmp_path / "autoencoder")
    shutil.copy(trained / latents.LATENTS, tmp_path)
    before, data = trained_autoencoder(tmp_path), Pictures.load(shards)
    train_parts(["decoder"], shards, tmp_path, device="cpu", overrides=SHORT, display=SilentDisplay())
    after = trained_autoencoder(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before.encoder.parameters(), after.encoder.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before.decoder.parameters(), after.decoder.parameters(), strict=True))
    assert list(latents.encode(data, after, tmp_path, device="cpu")) == []
    figures = json.loads((tmp_path / "decoder/log.jsonl").read_text().splitlines()[-1])
    assert 0 < figures["object_psnr"] < 60


def test_masks_show_where_the_object_is(shards: Path) -> None:
    data, rows = Pictures.load(shards), torch.arange(8)
    _, alpha = render_items([make_item(index) for index in rows.tolist()])
    inside, outside = (data.masks(rows)[where].mean() for where in (alpha > 0.9, alpha == 0))
    assert inside > 0.97 and outside < 0.01


def test_views_are_not_trained_on_single_pictures(trained: Path, shards: Path) -> None:
    with pytest.raises(InputError, match="from 1 sides, but the views are trained on 4; render them"):
        train_parts(["views"], shards, trained, device="cpu", overrides=SHORT, display=SilentDisplay())


@pytest.mark.parametrize(("trained_first", "needed"), [((), "autoencoder"), (("autoencoder",), "clip")])
def test_the_denoiser_needs_its_predecessors(
    trained: Path, shards: Path, tmp_path: Path, trained_first: tuple[str, ...], needed: str
) -> None:
    for part in trained_first:
        shutil.copytree(trained / part, tmp_path / part)
    with pytest.raises(InputError, match=f"train the {needed} first"):
        train_parts(["denoiser"], shards, tmp_path, device="cpu", overrides=SHORT, display=SilentDisplay())


def test_missing_shards_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no training shards; render them: 'dreamkiln toybox render"):
        train_parts(["judge"], tmp_path, tmp_path, device="cpu", overrides={}, display=SilentDisplay())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"painter.num_steps": "3"}, "There is no training setting 'painter.num_steps'"),
        ({"judge.num_step": "3"}, "num_step"),
        ({"judge.num_steps": "many"}, "judge.num_steps is 'many', but a number was expected"),
    ],
)
def test_a_wrong_setting_is_named(overrides: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        loop_configs(overrides)
