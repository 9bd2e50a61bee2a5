"""A prior's folder: written, read back, read by diffusers, and refused with a sentence when it is damaged."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from diffusion.checkpoints.folder import read_folder
from diffusion.offload import lent
from diffusion.prior import Prior, PriorError
from diffusion.prior_folder import save_sharded
from diffusion.requests import (
    Condition,
    DecodeRequest,
    DenoiseRequest,
    EncodeGradientRequest,
    EncodeRequest,
    Guidance,
    run,
)
from diffusion.samplers import SAMPLERS
from diffusion.schedule import NoiseSchedule
from tests.fakes import save_tiny_prior


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior of the toybox's classes with random weights."""
    return save_tiny_prior(tmp_path_factory.mktemp("prior") / "tiny")


def draw(prior: Prior, prompt: str, latents: torch.Tensor, *, scale: float) -> torch.Tensor:
    sampler = SAMPLERS["ddim"](
        latents,
        schedule=prior.schedule,
        timesteps=prior.schedule.timesteps(10),
        condition=prior.condition([prompt]),
        guidance=Guidance(scale=scale),
    )
    return prior.answer(DecodeRequest(run(sampler, prior.answer)))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_diffusers_draws_the_same_pictures_from_the_folder(folder: Path) -> None:
    from diffusers import StableDiffusionPipeline

    prior = Prior.load(folder)
    pipeline = StableDiffusionPipeline.from_pretrained(str(folder))
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    prompt = "a red table with blue legs, front view"
    theirs = pipeline(
        prompt, height=16, width=16, latents=latents, num_inference_steps=10, guidance_scale=4.0, output_type="pt"
    ).images
    ours = draw(prior, prompt, latents, scale=4.0)
    psnr = -10 * (ours - theirs).square().mean().log10()
    assert psnr > 60


def test_the_prior_answers_every_request(folder: Path) -> None:
    prior = Prior.load(folder)
    assert prior.latent_shape == (8, 4, 4)
    images = torch.full((2, 3, 16, 16), 0.4)
    latents = prior.answer(EncodeRequest(images))
    assert latents.shape == (2, 8, 4, 4)
    assert prior.answer(DecodeRequest(latents)).shape == images.shape
    gradient = prior.answer(EncodeGradientRequest(images, torch.ones_like(latents)))
    bumped = images.clone()
    bumped[0, 1, 3, 5] += 1e-2
    expected = (prior.encode(bumped) - prior.encode(images)).sum() / 1e-2
    torch.testing.assert_close(gradient[0, 1, 3, 5], expected, rtol=0.05, atol=1e-3)
    condition = prior.condition(["a red table", "a blue table"])
    request = DenoiseRequest(latents, torch.tensor([10, 900]), condition, Guidance(scale=3.0))
    prediction = prior.answer(request)
    cond, uncond = (
        prior.answer(DenoiseRequest(latents, request.t, Condition(tokens), Guidance(scale=1.0)))
        for tokens in (condition.tokens, condition.negative)
    )
    torch.testing.assert_close(prediction.v, uncond.v + 3 * (cond.v - uncond.v), rtol=1e-4, atol=1e-5)


def test_weights_hash_depends_on_the_schedule(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "copy")
    path = other / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "_diffusers_version": "0.1", "unknown_to_us": 3}))
    assert Prior.load(other).weights_hash == Prior.load(folder).weights_hash
    path.write_text(json.dumps({**config, "beta_end": 0.013}))
    assert Prior.load(other).weights_hash != Prior.load(folder).weights_hash


def test_the_schedule_of_stable_diffusion_leaves_the_hash_as_it_was(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "copy")
    (other / "scheduler/scheduler_config.json").write_text(json.dumps(NoiseSchedule().to_config()))
    assert Prior.load(other).weights_hash == read_folder(other).weights_hash
    assert Prior.load(f"{other}?prediction_type=v_prediction").weights_hash != Prior.load(other).weights_hash


def test_weights_hash_depends_on_the_weights(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "copy")
    assert Prior.load(other).weights_hash == Prior.load(folder).weights_hash
    save_sharded(
        {k: v + 1 for k, v in Prior.load(folder).autoencoder.state_dict().items()},
        other / "vae",
        "diffusion_pytorch_model",
    )
    assert Prior.load(other).weights_hash != Prior.load(folder).weights_hash


def test_unknown_words_are_named_once(folder: Path) -> None:
    prior = Prior.load(folder)
    assert prior.unknown_words("A red dragon, with a dragon, front view!") == ["dragon"]
    assert prior.unknown_words("a blue table") == []


def test_large_parts_are_sharded_and_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusion import prior_folder
    from diffusion.checkpoints.weights import load_weights, weight_files

    monkeypatch.setattr(prior_folder, "MAX_FILE_BYTES", 100)
    tensors = {f"layer{i}": torch.full((30,), float(i)) for i in range(4)}
    save_sharded(tensors, tmp_path, "model")
    files = weight_files(tmp_path, "model")
    assert len(files) == 4
    assert load_weights(files).keys() == tensors.keys()


def damage_missing_file(folder: Path) -> str:
    (folder / "vae/diffusion_pytorch_model.safetensors").unlink()
    return "the prior lacks diffusion_pytorch_model.safetensors"


def damage_truncated_file(folder: Path) -> str:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    return "is truncated or not a safetensors file"


def damage_config(folder: Path) -> str:
    (folder / "unet/config.json").write_text("{")
    return "is not readable JSON"


def damage_part(folder: Path) -> str:
    shutil.rmtree(folder / "tokenizer")
    return "the prior lacks the folder tokenizer"


def damage_merges(folder: Path) -> str:
    (folder / "tokenizer/merges.txt").unlink()
    return "the prior lacks .*merges.txt"


def damage_shape(folder: Path) -> str:
    path = folder / "vae/config.json"
    path.write_text(path.read_text().replace('"latent_channels": 8', '"latent_channels": 4'))
    return "do not fit its config.json: .*expected"


def damage_json_of_another_kind(folder: Path) -> str:
    (folder / "model_index.json").write_text("[1, 2]")
    return "model_index.json holds a list; expected values by name; copy the folder again"


def damage_tokenizer_config(folder: Path) -> str:
    (folder / "tokenizer/tokenizer_config.json").write_text("{")
    return "tokenizer: tokenizer_config.json is not readable JSON .*; copy the folder again"


def damage_special_tokens(folder: Path) -> str:
    (folder / "tokenizer/special_tokens_map.json").write_bytes(b"\xff\xfe")
    return "tokenizer: special_tokens_map.json is not readable JSON .*; copy the folder again"


def damage_tokenizer_length(folder: Path) -> str:
    (folder / "tokenizer/tokenizer_config.json").write_text("{}")
    return "tokenizer: the tokenizer's model_max_length is None; expected a whole number; copy tokenizer_config.json again"


def damage_index(folder: Path) -> str:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text('{"metadata": {}}')
    return "diffusion_pytorch_model.safetensors.index.json lacks the field 'weight_map'; copy it again"


def damage_index_type(folder: Path) -> str:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": 3}')
    return "diffusion_pytorch_model.safetensors.index.json holds a value of another type than expected .*; copy it again"


@pytest.mark.parametrize(
    "damage",
    [
        damage_missing_file,
        damage_truncated_file,
        damage_config,
        damage_part,
        damage_merges,
        damage_shape,
        damage_json_of_another_kind,
        damage_tokenizer_config,
        damage_special_tokens,
        damage_tokenizer_length,
        damage_index,
        damage_index_type,
    ],
    ids=lambda f: f.__name__,
)
def test_a_damaged_folder_is_refused_by_name(folder: Path, tmp_path: Path, damage) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    message = damage(copy)
    with pytest.raises(PriorError, match=message):
        Prior.load(copy)


def test_predicted_noise_is_refused_where_the_schedule_ends_without_signal(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "scheduler/scheduler_config.json"
    config = json.loads(path.read_text()) | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    path.write_text(json.dumps(config))
    assert Prior.load(copy).schedule.rescale_betas_zero_snr
    with pytest.raises(PriorError, match="json: rescale_betas_zero_snr is set with prediction_type 'epsilon'"):
        Prior.load(f"{copy}?prediction_type=epsilon")


def test_a_name_that_is_no_folder_is_refused() -> None:
    with pytest.raises(PriorError, match="'no-such-prior' is neither 'toybox' nor a folder"):
        Prior.load("no-such-prior")


def test_checkpoints_change_no_bit_of_the_encoders_gradient(folder: Path) -> None:
    prior = Prior.load(folder)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    pull = torch.rand(prior.encode(images).shape, generator=torch.Generator().manual_seed(4))
    whole, thrifty = (
        prior.answer(EncodeGradientRequest(images, pull, checkpointed=checkpointed)) for checkpointed in (False, True)
    )
    assert torch.equal(whole, thrifty) and whole.abs().max() > 0


def test_a_lent_tower_reads_there_and_is_here_again(folder: Path) -> None:
    """The meta device stands for a GPU: what is read on it has no numbers, and the tower's own never left."""
    tower = Prior.load(folder).text_encoder
    before, ids = {name: value.clone() for name, value in tower.state_dict().items()}, torch.zeros(1, 8, dtype=torch.long)
    expected = tower(ids)
    with pytest.raises(KeyError), lent(tower, torch.device("meta")):
        assert tower(ids.to("meta")).device.type == "meta"
        raise KeyError
    assert torch.equal(tower(ids), expected)
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
