"""The key maps on the published configurations, without a single weight: everything here is on the meta device."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffusion.checkpoints.architectures import SD1, SD2, SDXL, Architecture
from diffusion.checkpoints.autoencoder_keys import (
    folder_autoencoder_kl,
    original_autoencoder_kl,
    original_autoencoder_tiny,
)
from diffusion.checkpoints.keymap import KeyMap, identity
from diffusion.checkpoints.text_keys import folder_text, original_text
from diffusion.checkpoints.unet_keys import original_unet
from diffusion.checkpoints.weights import skeleton
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.text.clip import TextConfig, TextEncoder
from tests.diffusion.checkpoints.published import MODELS, PUBLISHED

ARCHITECTURE: dict[str, Architecture] = {"sd15": SD1, "sd2-base": SD2, "sd2-v": SD2, "sdxl": SDXL}
# Counted in the published files.
UNET_PARAMETERS = {"sd15": 859_520_964, "sd2-base": 865_910_724, "sd2-v": 865_910_724, "sdxl": 2_567_463_684}
UNET_TENSORS = {"sd15": 686, "sd2-base": 686, "sd2-v": 686, "sdxl": 1680}
TEXT_PARAMETERS = {"sd15": [123_060_480], "sd2-base": [340_387_840], "sd2-v": [340_387_840]}
TEXT_PARAMETERS["sdxl"] = [123_060_480, 694_659_840]
TEXT_TENSORS = {"sd15": [196], "sd2-base": [372], "sd2-v": [372], "sdxl": [196, 517]}


def shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def unet_of(model: str) -> UNet2DCondition:
    return skeleton(lambda: UNet2DCondition(UNetConfig.from_dict(PUBLISHED[model]["unet"])))


def towers_of(model: str) -> list[nn.Module]:
    configs = [PUBLISHED[model][part] for part in ("text_encoder", "text_encoder_2") if part in PUBLISHED[model]]
    return [skeleton(lambda c=config: TextEncoder(TextConfig.from_published(c))).tower for config in configs]


def check_both_ways(layout: KeyMap, ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of ours has its own names in the file, and comes back from there in its own shape."""
    theirs = layout.to_published(ours)
    assert len(theirs) == sum(len(pair.theirs) for pair in layout.pairs)
    assert {pair.ours for pair in layout.pairs} == ours.keys()
    assert shapes(layout.to_ours(theirs)) == shapes(ours)
    return theirs


@pytest.mark.parametrize("model", MODELS)
def test_folders_have_the_keys_of_diffusers_and_transformers(model: str) -> None:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    published = PUBLISHED[model]
    unet = unet_of(model)
    assert sum(p.numel() for p in unet.parameters()) == UNET_PARAMETERS[model]
    assert len(unet.state_dict()) == UNET_TENSORS[model]
    vae = skeleton(lambda: AutoencoderKL(AutoencoderKLConfig.from_dict(published["vae"])))
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863
    with torch.device("meta"):
        their_unet = diffusers.UNet2DConditionModel.from_config(published["unet"])
        their_vae = diffusers.AutoencoderKL.from_config(published["vae"])
    assert shapes(check_both_ways(identity(unet.state_dict()), unet.state_dict())) == shapes(their_unet.state_dict())
    layout = folder_autoencoder_kl(vae.state_dict())
    assert shapes(check_both_ways(layout, vae.state_dict())) == shapes(their_vae.state_dict())

    for i, tower in enumerate(towers_of(model)):
        config = published["text_encoder_2" if i else "text_encoder"]
        assert sum(p.numel() for p in tower.parameters()) == TEXT_PARAMETERS[model][i]
        with torch.device("meta"):
            theirs = (CLIPTextModelWithProjection if i else CLIPTextModel)(CLIPTextConfig(**config))
        # Newer transformers have flattened the class; the files keep the longer names.
        expected = {
            name if name.startswith("text_") else f"text_model.{name}": tensor
            for name, tensor in theirs.state_dict().items()
            if "position_ids" not in name
        }
        keys = tower.state_dict()
        assert len(expected) == TEXT_TENSORS[model][i]
        assert shapes(check_both_ways(folder_text(keys), keys)) == shapes(expected)


@pytest.mark.parametrize("model", MODELS)
def test_single_files_map_to_diffusers_keys_through_its_own_converter(model: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    unet = unet_of(model).state_dict()
    config = UNetConfig.from_dict(PUBLISHED[model]["unet"])
    original = check_both_ways(original_unet(config, unet), unet)
    assert original["input_blocks.0.0.weight"].shape == (320, 4, 3, 3)
    assert original["out.2.weight"].shape == (4, 320, 3, 3)
    their_config: dict[str, Any] = {"class_embed_type": None, "addition_embed_type": None, **PUBLISHED[model]["unet"]}
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in original.items()}
    assert shapes(convert_ldm_unet_checkpoint(prefixed, their_config)) == shapes(unet)

    vae_config = AutoencoderKLConfig.from_dict(PUBLISHED[model]["vae"])
    vae = skeleton(lambda: AutoencoderKL(vae_config)).state_dict()
    original = check_both_ways(original_autoencoder_kl(vae_config, vae), vae)
    assert len(original) == 248
    assert original["encoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)
    prefixed = {f"first_stage_model.{name}": tensor for name, tensor in original.items()}
    assert shapes(convert_ldm_vae_checkpoint(prefixed, PUBLISHED[model]["vae"])) == shapes(vae)


@pytest.mark.parametrize("model", ["sd2-v", "sdxl"])
def test_single_files_name_openclip_towers_as_openclip(model: str) -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel

    tower = towers_of(model)[-1].state_dict()
    original = check_both_ways(original_text(tower), tower)
    config = PUBLISHED[model]["text_encoder_2" if model == "sdxl" else "text_encoder"]
    with torch.device("meta"):
        theirs = CLIPTextModel(CLIPTextConfig(**config))
    prefix = ARCHITECTURE[model].towers[-1].prefix
    converted = convert_open_clip_checkpoint(theirs, {f"{prefix}{k}": t for k, t in original.items()}, prefix)
    assert shapes(converted) == shapes(folder_text(tower).to_published(tower))


@pytest.mark.parametrize("model", MODELS)
def test_the_single_files_configurations_are_the_published_ones(model: str) -> None:
    architecture, published = ARCHITECTURE[model], PUBLISHED[model]
    unet = UNetConfig.from_dict({**published["unet"], "sample_size": architecture.unet.sample_size})
    assert architecture.unet == unet
    assert architecture.autoencoder == AutoencoderKLConfig.from_dict(published["vae"])
    configs = [TextConfig.from_published(published[p]) for p in ("text_encoder", "text_encoder_2") if p in published]
    assert [tower.config for tower in architecture.towers] == configs
    kind = published["scheduler"].get("prediction_type", "epsilon")
    assert architecture.image_sizes[kind] == 8 * published["unet"]["sample_size"]


def test_taesd_maps_to_its_two_files() -> None:
    """The names of madebyollin/taesd: a plain sequence, and in the decoder one number more for the clamp."""
    ours = skeleton(lambda: AutoencoderTiny(AutoencoderTinyConfig())).state_dict()
    theirs = check_both_ways(original_autoencoder_tiny(ours), ours)
    assert {"encoder.0.weight", "encoder.1.conv.0.weight", "encoder.14.bias", "decoder.1.weight"} <= theirs.keys()
    assert {"decoder.3.conv.4.bias", "decoder.19.weight", "decoder.19.bias"} <= theirs.keys()
    assert "decoder.0.weight" not in theirs and theirs["decoder.19.weight"].shape == (3, 64, 3, 3)


def test_heads_are_the_published_numbers() -> None:
    """`attention_head_dim` counts heads: 40, 80 and 160 channels a head in SD 1.5, 64 in all the others."""
    widths = {model: set() for model in MODELS}
    for model in MODELS:
        for name, part in unet_of(model).named_modules():
            if name.endswith("attn2"):
                widths[model].add(part.to_q.out_features // part.num_heads)
    assert widths == {"sd15": {40, 80, 160}, "sd2-base": {64}, "sd2-v": {64}, "sdxl": {64}}
