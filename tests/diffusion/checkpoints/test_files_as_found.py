"""Files and folders as people have them: with what other programs leave in them, in their forms, or of another family."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.checkpoints.architectures import Architecture
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.folder import read_folder
from diffusion.checkpoints.single_file import original_tensors, read_single_file
from diffusion.networks.autoencoder_kl import AutoencoderKLConfig
from diffusion.networks.unet import UNetConfig
from tests.diffusion.checkpoints.published import Saved
from tests.diffusion.checkpoints.test_single_file import small

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

Original = Callable[[str], tuple[Architecture, dict[str, Tensor]]]


@pytest.fixture(scope="module")
def original(saved: Saved) -> Original:
    """Model -> its architecture and a single file's tensors."""

    def make(model: str) -> tuple[Architecture, dict[str, Tensor]]:
        architecture = small(model)
        tensors = original_tensors(read_folder(saved(model)[1]), architecture)
        return architecture, {name: tensor.clone().contiguous() for name, tensor in tensors.items()}

    return make


def read_back(
    original: tuple[Architecture, dict[str, Tensor]], tensors: dict[str, Tensor], folder: Path, **options: Any
) -> Any:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return read_single_file(folder / "model.safetensors", architecture=original[0], **options)


CLIP = "cond_stage_model.transformer."
BIGG = "conditioner.embedders.1.model."
EXTRAS = {
    "sd15": [
        f"{CLIP}text_projection.weight",
        "cond_stage_model.logit_scale",
        f"{CLIP}text_model.embeddings.position_ids",
        f"{CLIP}embeddings.position_ids",
        "safety_checker.special_care_embeds",
        "model.betas",
        "model_ema.decay",
        "first_stage_model.loss.logvar",
    ],
    "sdxl": [
        "conditioner.embedders.0.transformer.text_projection.weight",
        "conditioner.embedders.0.logit_scale",
        f"{BIGG}logit_scale",
        f"{BIGG}attn_mask",
        f"{BIGG}transformer.text_model.embeddings.position_ids",
    ],
}


@pytest.mark.parametrize("model", sorted(EXTRAS))
def test_what_changes_no_picture_is_passed_over_with_one_note(model: str, original: Original, tmp_path: Path) -> None:
    one = original(model)
    plain = read_back(one, one[1], tmp_path)
    assert plain.notes == []
    found = read_back(one, {**one[1], **{name: torch.zeros(2) for name in EXTRAS[model]}}, tmp_path)
    (note,) = found.notes
    assert "model.safetensors holds tensors that change no picture, which were passed over" in note and "more" in note
    torch.testing.assert_close(found.unet.state_dict(), plain.unet.state_dict(), rtol=0, atol=0)


def test_equivalent_forms_give_the_same_weights(original: Original, tmp_path: Path) -> None:
    """Matrices for 1x1 convolutions, convolutions for matrices, and a projection's transpose under its other name."""
    one = original("sdxl")
    plain, tensors = read_back(one, one[1], tmp_path), dict(one[1])
    for name, tensor in one[1].items():
        if "attn_1" in name and tensor.ndim == 4:
            tensors[name] = tensor[:, :, 0, 0]
        if name.endswith("proj_in.weight") and tensor.ndim == 2:
            tensors[name] = tensor[:, :, None, None]
    tensors[f"{BIGG}text_projection.weight"] = tensors.pop(f"{BIGG}text_projection").T
    found = read_back(one, tensors, tmp_path)
    for part in ("unet", "autoencoder", "text_encoder_2"):
        torch.testing.assert_close(getattr(found, part).state_dict(), getattr(plain, part).state_dict(), rtol=0, atol=0)


def test_a_file_without_autoencoder_takes_another_or_says_how(original: Original, saved: Saved, tmp_path: Path) -> None:
    one = original("sd15")
    pruned = {name: tensor for name, tensor in one[1].items() if not name.startswith("first_stage_model.")}
    with pytest.raises(PriorError, match=r"holds no autoencoder.*add the family's with '\?vae=PATH'"):
        read_back(one, pruned, tmp_path)
    folder = saved("sd15")[1] / "vae"
    completed = read_back(one, pruned, tmp_path, vae=folder)
    plain = read_back(one, one[1], tmp_path)
    torch.testing.assert_close(completed.autoencoder.state_dict(), plain.autoencoder.state_dict(), rtol=0, atol=0)
    assert completed.weights_hash != plain.weights_hash


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_low_precisions_are_read(dtype: torch.dtype, original: Original, tmp_path: Path) -> None:
    one = original("sd15")
    found = read_back(one, {name: tensor.to(dtype) for name, tensor in one[1].items()}, tmp_path)
    assert found.unet.conv_in.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ({"edm_vpred.sigma_max": torch.tensor(120.0)}, "is an EDM model with v-prediction, as CosXL is"),
        ({"edm_mean": torch.zeros(4)}, "is an EDM model, as Playground 2.5 is"),
    ],
)
def test_other_processes_are_refused_by_name(marks: Any, message: str, original: Original, tmp_path: Path) -> None:
    one = original("sdxl")
    with pytest.raises(PriorError, match=message):
        read_back(one, {**one[1], **marks}, tmp_path)


# -- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(saved: Saved, tmp_path: Path) -> Callable[[str], Path]:
    """Model -> a copy of its folder that may be changed."""

    def copy(model: str) -> Path:
        return Path(shutil.copytree(saved(model)[1], tmp_path / model))

    return copy


def edit(path: Path, **changes: Any) -> None:
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))


@pytest.mark.parametrize("model", ["sd15", "sd2-base", "sdxl"])
def test_what_the_installed_diffusers_saves_loads(model: str, saved: Saved, tmp_path: Path) -> None:
    """It writes `tokenizer.json` alone."""
    pipeline, folder = saved(model)
    pipeline.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved/tokenizer/merges.txt").exists()
    ours, original = read_folder(tmp_path / "saved"), read_folder(folder)
    for (_, _, new), (_, _, old) in zip(ours.towers, original.towers, strict=True):
        prompts = ["a photo of a corgi, 8k (masterpiece)", "", "word " * 90]
        assert torch.equal(new(prompts), old(prompts))


def test_old_folders_of_one_tower_get_the_offset_that_diffusers_gives_them(copied: Callable[[str], Path]) -> None:
    for model, expected in (("sd15", [981, 961, 941]), ("sdxl", [980, 960, 940])):
        folder = copied(model)
        edit(folder / "scheduler/scheduler_config.json", steps_offset="absent", timestep_spacing="leading")
        assert read_folder(folder).schedule.timesteps(50)[:3].tolist() == expected


def test_a_length_that_means_unknown_is_the_tower_s(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    edit(folder / "tokenizer/tokenizer_config.json", model_max_length=int(1e30))
    assert read_folder(folder).tokenizer(["a cat"]).shape == (1, 77)


@pytest.mark.parametrize("architectures", [None, "absent"])
def test_a_second_tower_s_projection_does_not_hang_on_its_class(architectures: Any, copied: Callable[[str], Path]) -> None:
    folder = copied("sdxl")
    edit(folder / "text_encoder_2/config.json", architectures=architectures)
    edit(folder / "text_encoder/config.json", architectures=architectures)
    assert read_folder(folder).text_encoder_2 is not None


def test_the_copy_without_averaging_is_read_where_there_is_no_other(copied: Callable[[str], Path]) -> None:
    unet = copied("sd15") / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.non_ema.safetensors")
    assert read_folder(unet.parent).weights_hash


def test_pointers_and_failed_merges_are_named(copied: Callable[[str], Path]) -> None:
    folder = copied("sd15")
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, "decoder.conv_in.weight": tensors["decoder.conv_in.weight"] * float("nan")}, file)
    with pytest.raises(PriorError, match=r"hold numbers that are not finite, first in decoder\.conv_in\.weight"):
        read_folder(folder)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(PriorError, match="is a pointer of git-lfs and not the weights themselves; run 'git lfs pull'"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"_class_name": "StableDiffusion3ControlNetPipeline", "transformer": ["d", "T"]}, "is a Stable Diffusion 3"),
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "T"]}, "is a FLUX"),
        ({"_class_name": "NewPipeline", "transformer": ["diffusers", "T"]}, "whose network is a transformer and not a UNet"),
        ({"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None]}, "is an SDXL refiner"),
        ({"_class_name": "StableDiffusionControlNetPipeline", "controlnet": ["diffusers", "C"]}, "a ControlNet's picture"),
        ({"_class_name": "StableDiffusionPAGPipeline"}, r"perturbed-attention guidance \(PAG\) is not here"),
    ],
)
def test_other_families_are_named(index: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(PriorError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ControlNetModel", "holds a ControlNet and no model_index.json"),
        ("AutoencoderKL", r"given beside a model as '\?vae=FOLDER'"),
    ],
)
def test_single_networks_are_named(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(PriorError, match=message):
        read_folder(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mid_block_type": None}, "mid_block_type is None, as in the distilled BK-SDM; expected 'UNetMidBlock2DCrossAttn'"),
        ({"reverse_transformer_layers_per_block": [1]}, "SSD-1B and Segmind-Vega; expected None"),
        ({"class_embed_type": "timestep"}, "as in unCLIP and the upscalers"),
        ({"attention_type": "gated"}, "as in GLIGEN; .* use a model of Stable Diffusion 1.x, 2.x or SDXL"),
        ({"encoder_hid_dim_type": "ip_image_proj"}, "as in a UNet with an IP-Adapter"),
        ({"num_attention_heads": 8}, "num_attention_heads is 8; expected None"),
    ],
)
def test_other_unets_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetConfig.from_dict(settings)


def test_another_scaling_of_latents_is_named() -> None:
    with pytest.raises(ValueError, match=r"latents_mean is \[0.1, 0.2\], as in Playground 2.5"):
        AutoencoderKLConfig.from_dict({"latents_mean": [0.1, 0.2]})
