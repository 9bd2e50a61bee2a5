"""The published configurations of Stable Diffusion, for single files, which hold weights and no configuration.

A single file's family follows from the names of its text towers. Its prediction type does not follow from anything.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from diffusion.checkpoints.keymap import KeyMap
from diffusion.checkpoints.text_keys import folder_text, original_text
from diffusion.networks.autoencoder_kl import AutoencoderKLConfig
from diffusion.networks.multi_view import MultiViewConfig
from diffusion.networks.unet import UNetConfig
from diffusion.schedule import PredictionType
from diffusion.text.clip import TextConfig


@dataclass(frozen=True)
class Tower:
    """One text tower: where a single file has it, under which names, and how its prompts are padded."""

    prefix: str
    config: TextConfig
    layout: Callable[[Iterable[str]], KeyMap]
    pad_with_end: bool


@dataclass(frozen=True)
class Architecture:
    """A family of checkpoints.

    Args:
        image_sizes: side of the pictures in pixels for each prediction type that was published. One: the family's only
            published type. Two: the type must be known from elsewhere.
    """

    name: str
    unet: UNetConfig
    autoencoder: AutoencoderKLConfig
    towers: tuple[Tower, ...]
    image_sizes: dict[PredictionType, int]
    picture_suffix: str = ""


CLIP_L = TextConfig(vocab_size=49408, context_length=77, width=768, heads=12, layers=12, hidden_act="quick_gelu")
# OpenCLIP's tower has 24 layers, of which Stable Diffusion 2 reads the last but one: 23 are loaded, as published folders do.
OPENCLIP_H = TextConfig(vocab_size=49408, context_length=77, width=1024, heads=16, layers=23)
OPENCLIP_BIGG = TextConfig(vocab_size=49408, context_length=77, width=1280, heads=20, layers=32, projection_dim=1280)

SD1 = Architecture(
    name="Stable Diffusion 1.x",
    unet=UNetConfig(cross_attention_dim=768, attention_head_dim=8),
    autoencoder=AutoencoderKLConfig(),
    towers=(Tower("cond_stage_model.transformer.", CLIP_L, folder_text, pad_with_end=True),),
    image_sizes={"epsilon": 512},
)
SD2 = Architecture(
    name="Stable Diffusion 2.x",
    unet=UNetConfig(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
    autoencoder=AutoencoderKLConfig(),
    towers=(Tower("cond_stage_model.model.", OPENCLIP_H, original_text, pad_with_end=False),),
    image_sizes={"epsilon": 512, "v_prediction": 768},
)
SDXL = Architecture(
    name="Stable Diffusion XL",
    unet=UNetConfig(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    ),
    autoencoder=AutoencoderKLConfig(scaling_factor=0.13025),
    towers=(
        Tower("conditioner.embedders.0.transformer.", CLIP_L, folder_text, pad_with_end=True),
        Tower("conditioner.embedders.1.model.", OPENCLIP_BIGG, original_text, pad_with_end=False),
    ),
    image_sizes={"epsilon": 1024},
)
ARCHITECTURES = (SDXL, SD2, SD1)


def multi_view(base: Architecture) -> Architecture:
    """MVDream's network on this one (2308.16512), which predicts noise: `sd-v2.1-base-4view`, `sd-v1.5-4view`."""
    return replace(
        base,
        name=f"MVDream on {base.name}",
        unet=replace(base.unet, multi_view=MultiViewConfig(num_views=4)),
        image_sizes={"epsilon": 256},
        picture_suffix=", 3d asset",
    )
