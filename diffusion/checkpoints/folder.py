"""The folder layout that diffusers' pipelines write: `model_index.json` and one folder a part."""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffusion.checkpoints.autoencoder_keys import folder_autoencoder_kl
from diffusion.checkpoints.checkpoint import Autoencoder, Checkpoint, PriorCard
from diffusion.checkpoints.errors import PriorError, making_sense_of
from diffusion.checkpoints.keymap import KeyMap, identity
from diffusion.checkpoints.network_files import STEMS, Layout, fill_network
from diffusion.checkpoints.text_keys import folder_text
from diffusion.checkpoints.unet_keys import original_unet
from diffusion.checkpoints.weights import Weights, fill, hash_files, read_json, skeleton, weight_files
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyConfig
from diffusion.networks.multi_view import MultiViewConfig
from diffusion.networks.unet import UNet2DCondition, UNetConfig
from diffusion.schedule import NoiseSchedule, PredictionType
from diffusion.text.clip import TextConfig, TextEncoder
from diffusion.text.tokenizer import Tokenizer

Config = TypeVar("Config")

UNET_STEMS = VAE_STEMS = STEMS
TEXT_STEMS = ("model", "pytorch_model")
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SECOND_TOWER = ("text_encoder_2", "tokenizer_2")
TRANSFORMER_PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
THIRD_TOWER = ("text_encoder_3", "tokenizer_3")
JOINT_PIPELINE = "StableDiffusion3Pipeline"
SINGLE_STREAM_PIPELINE = "ZImagePipeline"
KLEIN_PIPELINE = "Flux2KleinPipeline"
MULTI_VIEW = "multi_view"
"""The folder of what a UNet has beyond the published one, in priors of ours."""


def read_folder(
    folder: Path,
    *,
    name: str | None = None,
    prediction_type: PredictionType | None = None,
    dtype: torch.dtype = torch.float32,
    network_file: Path | None = None,
) -> Checkpoint:
    """Reads a folder of Stable Diffusion 1.x, 2.x, SDXL base, or a prior of our own.

    Args:
        name: for a folder without a card; its own name by default.
        prediction_type: instead of the one in `scheduler_config.json`.
        dtype: of UNet and text towers; the autoencoder is always float32, since SDXL's overflows in half precision.
        network_file: with the UNet's weights, see `fill_network`.

    Raises:
        PriorError: a file is missing, damaged, or does not fit the others.
    """
    refuse_other_families(folder)
    index, parts = read_json(folder / "model_index.json"), complete_parts_of(folder)
    second = "text_encoder_2" in parts
    unet_config = configured(folder / "unet/config.json", UNetConfig.from_dict)
    if (folder / MULTI_VIEW).is_dir():
        if network_file is not None:
            raise PriorError(
                f"'unet' was given beside {folder}, which takes cameras and has its network in two parts; leave it out"
            )
        views = configured(folder / MULTI_VIEW / "config.json", MultiViewConfig.from_dict)
        unet_config = replace(unet_config, multi_view=views)
        unet_files = weight_files(folder / "unet", *UNET_STEMS) + weight_files(folder / MULTI_VIEW, *UNET_STEMS)
        unet = fill(skeleton(lambda: UNet2DCondition(unet_config)), identity, Weights(unet_files), folder / "unet", dtype=dtype)
    else:
        unet = skeleton(lambda: UNet2DCondition(unet_config))
        layouts: dict[str, Layout] = {"folder": identity, "original": functools.partial(original_unet, unet_config)}
        unet_files = fill_network(unet, folder / "unet", network_file, **layouts, dtype=dtype)
    autoencoder, vae_files = read_autoencoder_folder(folder / "vae")
    towers, text_files = [], []
    for part in parts:
        if part.startswith("text_encoder"):
            files = weight_files(folder / part, *TEXT_STEMS)
            weights = Weights(files)
            # SDXL's second tower has a projection, whatever its configuration says of its class.
            projects = part == "text_encoder_2" and "text_projection.weight" in weights
            read = functools.partial(TextConfig.from_published, with_projection=projects or None)
            text_config = configured(folder / part / "config.json", read)
            towers.append(build_tower(text_config, folder_text, weights, folder / part, dtype=dtype))
            text_files += files
    schedule = schedule_of(folder, second=second)
    if prediction_type is not None:
        with making_sense_of(folder / "scheduler/scheduler_config.json"):
            schedule = replace(schedule, prediction_type=prediction_type)
    image_size = unet_config.sample_size * autoencoder.config.spatial_factor
    checkpoint = Checkpoint(
        card=PriorCard.load(folder, name=name or folder.name, image_size=image_size),
        schedule=schedule,
        unet=unet,
        autoencoder=autoencoder,
        text_encoder=towers[0],
        tokenizer=read_tokenizer(folder / "tokenizer", towers[0]),
        weights_hash=hash_files([*unet_files, *vae_files, *text_files]),
        text_encoder_2=towers[1] if second else None,
        tokenizer_2=read_tokenizer(folder / "tokenizer_2", towers[1]) if second else None,
        zeros_for_empty_negative=second and index.get("force_zeros_for_empty_prompt", True),
    )
    checkpoint.check(folder)
    return checkpoint


def read_autoencoder_folder(folder: Path) -> tuple[Autoencoder, list[Path]]:
    """The autoencoder of a `vae/` folder, KL or tiny, and its weight files.

    Raises:
        PriorError: a file is missing or damaged, or it is of another class.
    """
    config = read_json(folder / "config.json")
    name = config.get("_class_name")
    files = weight_files(folder, *VAE_STEMS)
    if name == "AutoencoderTiny":
        tiny = configured(folder / "config.json", AutoencoderTinyConfig.from_dict)
        return fill(skeleton(lambda: AutoencoderTiny(tiny)), identity, Weights(files), folder), files
    if name in ("AutoencoderKL", "AutoencoderKLFlux2"):
        usual = AutoencoderKLConfig.FLUX2 if name == "AutoencoderKLFlux2" else {}
        kl = configured(folder / "config.json", lambda config: AutoencoderKLConfig.from_dict({**usual, **config}))
        return fill(skeleton(lambda: AutoencoderKL(kl)), folder_autoencoder_kl, Weights(files), folder), files
    raise PriorError(f"the autoencoder in {folder} is a {name}; expected AutoencoderKL or AutoencoderTiny; use another one")


def build_tower(
    config: TextConfig,
    layout: Callable[[Iterable[str]], KeyMap],
    tensors: Mapping[str, Tensor],
    source: Path,
    *,
    prefix: str = "",
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """A text tower with a file's weights; see `fill`."""
    encoder = skeleton(lambda: TextEncoder(config))
    fill(encoder.tower, layout, tensors, source, prefix=prefix, dtype=dtype)
    return encoder.eval()


def parts_of(folder: Path) -> tuple[str, ...]:
    """The folders that belong to a prior, by its index.

    Raises:
        PriorError: the index is missing or damaged.
    """
    index = read_json(folder / "model_index.json")
    with making_sense_of(folder / "model_index.json"):
        second, third = ((index.get(part) or [None])[0] is not None for part in ("text_encoder_2", "text_encoder_3"))
        towers = (*(SECOND_TOWER if second else ()), *(THIRD_TOWER if third else ()))
        if index.get("_class_name") in (SINGLE_STREAM_PIPELINE, KLEIN_PIPELINE):
            return TRANSFORMER_PARTS
        return (*(TRANSFORMER_PARTS if index.get("_class_name") == JOINT_PIPELINE else PARTS), *towers)


def complete_parts_of(folder: Path) -> tuple[str, ...]:
    """`parts_of` a folder that has them all.

    Raises:
        PriorError: one is missing.
    """
    parts = parts_of(folder)
    for part in parts:
        if not (folder / part).is_dir():
            raise PriorError(f"the prior lacks the folder {part} in {folder}; copy it again, with all its files")
    return parts


def schedule_of(folder: Path, *, second: bool) -> NoiseSchedule:
    """The schedule of `scheduler_config.json`, read as diffusers' pipelines read it.

    They give published models of one text tower the offset 1 that those were trained with, whatever an old file says.

    Raises:
        PriorError: it is missing, damaged, or of another process.
    """
    schedule = configured(folder / "scheduler/scheduler_config.json", NoiseSchedule.from_config)
    ours = (folder / "dreamkiln.json").exists()
    return schedule if second or ours else replace(schedule, steps_offset=1)


# What a folder holds, by its pipeline's class or the files in it -> what it is, for the sentence that refuses it.
OTHER_PIPELINES = {
    "StableDiffusion3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "PixArt": "PixArt",
    "QwenImage": "Qwen-Image",
    "ZImage": "Z-Image",
    "Kandinsky": "Kandinsky",
    "StableCascade": "Stable Cascade",
    "IF": "DeepFloyd IF",
}
OTHER_FOLDERS = {
    "ControlNetModel": "a ControlNet",
    "T2IAdapter": "a T2I-Adapter",
    "UNet2DConditionModel": "a UNet alone",
    "AutoencoderKL": "an autoencoder alone, which is given beside a model as '?vae=FOLDER'",
}


def refuse_other_families(folder: Path) -> None:
    """Folders of diffusers that are no text-to-image model of the families that are read here.

    Raises:
        PriorError: it is one, named.
    """
    known = "use a folder of Stable Diffusion 1.x, 2.x, SDXL base, 3, Z-Image or FLUX.2 klein"
    if not (folder / "model_index.json").exists() and (folder / "config.json").exists():
        name = str(read_json(folder / "config.json").get("_class_name"))
        what = OTHER_FOLDERS.get(name, f"one network ({name})")
        raise PriorError(f"the folder {folder} holds {what} and no model_index.json; {known}")
    if not (folder / "model_index.json").exists() and any(folder.glob("*lora*.safetensors")):
        raise PriorError(f"the folder {folder} holds a LoRA, which is given beside a model as '?lora=FOLDER'; {known}")
    index = read_json(folder / "model_index.json")
    pipeline = str(index.get("_class_name", ""))
    if pipeline in (JOINT_PIPELINE, SINGLE_STREAM_PIPELINE, KLEIN_PIPELINE):
        return
    other = next((what for start, what in OTHER_PIPELINES.items() if pipeline.startswith(start)), None)
    if other is not None:
        raise PriorError(f"the folder {folder} is a {other} ({pipeline}), which is not supported; {known}")
    if (index.get("transformer") or [None])[0] is not None:
        raise PriorError(f"the folder {folder} is a {pipeline}, whose network is a transformer and not a UNet; {known}")
    if index.get("requires_aesthetics_score") or (index.get("text_encoder") or [1])[0] is None:
        raise PriorError(f"the folder {folder} is an SDXL refiner, which only refines; {known}")
    if (index.get("controlnet") or [None])[0] is not None:
        raise PriorError(f"the folder {folder} is a {pipeline}, and a ControlNet's picture cannot be given here; {known}")
    if "PAG" in pipeline:
        raise PriorError(
            f"the folder {folder} is a {pipeline}, and perturbed-attention guidance (PAG) is not here; write "
            f"{pipeline.replace('PAG', '')} as _class_name into its model_index.json to draw with plain guidance"
        )


def read_tokenizer(folder: Path, tower: TextEncoder) -> Tokenizer:
    """The tokenizer of a `tokenizer/` folder.

    Args:
        tower: that reads its tokens.

    Raises:
        PriorError: one of its files is missing or damaged.
    """
    with making_sense_of(folder):
        return Tokenizer.load(folder, context_length=tower.config.context_length)


def configured(path: Path, read: Callable[[dict[str, Any]], Config]) -> Config:
    """What `read` makes of a JSON configuration file.

    Raises:
        PriorError: it is missing, lacks a field, or holds a value that is not supported.
    """
    config = read_json(path)
    with making_sense_of(path):
        return read(config)
