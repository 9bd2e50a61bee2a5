"""Rectified flows that read Qwen3: folders of Z-Image, base and Turbo, and of FLUX.2 klein, base and distilled.

Of the text tower no layer behind the last that is read is loaded. The levels are 1, (N-1)/N, ... 1/N before their shift.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffusion.checkpoints.checkpoint import Checkpoint, PriorCard
from diffusion.checkpoints.errors import making_sense_of
from diffusion.checkpoints.folder import (
    KLEIN_PIPELINE,
    SINGLE_STREAM_PIPELINE,
    TEXT_STEMS,
    complete_parts_of,
    configured,
    read_autoencoder_folder,
)
from diffusion.checkpoints.keymap import identity
from diffusion.checkpoints.network_files import Layout, fill_network
from diffusion.checkpoints.transformer_keys import folder_transformer, original_flux2
from diffusion.checkpoints.weights import Weights, fill, hash_files, read_json, skeleton, weight_files
from diffusion.checkpoints.z_image_keys import folder_z_image, original_z_image
from diffusion.flow_schedule import EmpiricalShift, FlowSchedule
from diffusion.networks.flux2 import Flux2Config, Flux2Transformer
from diffusion.networks.z_image import ZImageConfig, ZImageTransformer
from diffusion.text.qwen3 import Qwen3, Qwen3Config, Qwen3Tower
from diffusion.text.t5 import load_tokenizer


@dataclass(frozen=True)
class Family:
    """What one of these families is made of.

    Args:
        config, network: of the transformer. layouts: of its keys, see `fill_network`.
        reads: the number of Qwen3's layers -> after which of them its states are read.
        tower: how its tower reads a prompt, see `Qwen3Tower`. resolution_shift: of its levels; None for the scheduler's own.
    """

    config: type[Any]
    network: Callable[[Any], Any]
    layouts: dict[str, Layout]
    reads: Callable[[int], tuple[int, ...]]
    tower: dict[str, bool]
    resolution_shift: EmpiricalShift | None = None


USUAL_STEPS = 50
FAMILIES = {
    SINGLE_STREAM_PIPELINE: Family(
        ZImageConfig,
        ZImageTransformer,
        {"folder": folder_z_image, "original": original_z_image},
        lambda num_layers: (num_layers - 1,),
        {"thinks": True},
    ),
    # Of Qwen3-4B's 36 layers the ninth, eighteenth and twenty-seventh.
    KLEIN_PIPELINE: Family(
        Flux2Config,
        Flux2Transformer,
        {"folder": folder_transformer, "original": original_flux2},
        lambda num_layers: (num_layers // 4, num_layers // 2, 3 * num_layers // 4),
        {"thinks": False, "is_filled": True},
        EmpiricalShift(),
    ),
}
"""By the class of their pipeline."""


def read_qwen3_flow(
    folder: Path, *, name: str | None = None, dtype: torch.dtype = torch.float32, network_file: Path | None = None
) -> Checkpoint:
    """Reads a folder as `save_pretrained` of ZImagePipeline or Flux2KleinPipeline writes it.

    Args:
        name: of the prior; the folder's own by default. dtype: of transformer and text tower.
        network_file: with the transformer's weights, see `fill_network`.

    Raises:
        PriorError: a file is missing, damaged, or does not fit the others.
    """
    complete_parts_of(folder)
    index = read_json(folder / "model_index.json")
    family = FAMILIES[index["_class_name"]]
    config = configured(folder / "transformer/config.json", family.config.from_dict)
    network = skeleton(lambda: family.network(config))
    files = fill_network(network, folder / "transformer", network_file, **family.layouts, dtype=dtype)
    autoencoder, vae_files = read_autoencoder_folder(folder / "vae")
    tower, text_files = _read_tower(folder, family, dtype)
    schedule = configured(folder / "scheduler/scheduler_config.json", FlowSchedule.from_config)
    schedule = replace(schedule, timestep_spacing="trailing")
    if family.resolution_shift is not None:
        # What is distilled has its own size, and no number of steps.
        own = family.resolution_shift.shift((config.sample_size // config.patch_size) ** 2, USUAL_STEPS)
        schedule = replace(schedule, shift=own, resolution_shift=family.resolution_shift)
    size = config.sample_size * autoencoder.config.spatial_factor
    checkpoint = Checkpoint(
        card=PriorCard.load(folder, name=name or folder.name, image_size=size),
        schedule=schedule,
        unet=network,
        autoencoder=autoencoder,
        text_encoder=tower,
        tokenizer=None,
        weights_hash=hash_files([*files, *vae_files, *text_files]),
        ignores_guidance=bool(index.get("is_distilled")),
    )
    checkpoint.check(folder)
    return checkpoint


def _read_tower(folder: Path, family: Family, dtype: torch.dtype) -> tuple[Qwen3Tower, list[Path]]:
    place = folder / "text_encoder"
    config = configured(place / "config.json", Qwen3Config.from_dict)
    files = weight_files(place, *TEXT_STEMS)
    weights = Weights(files)
    reads = family.reads(config.num_hidden_layers)
    with making_sense_of(place / "config.json"):
        encoder = skeleton(lambda: Qwen3(config, reads=reads))
    # Saved with the head that says words, which is one with the embedding in Qwen3-4B, or without it.
    unread = frozenset(name.removeprefix("model.") for name in weights if is_unread(name, reads[-1]))
    layout = functools.partial(identity, ignored=unread, renamed=((r"^model\.", ""),))
    fill(encoder, layout, weights, place, dtype=dtype)
    with making_sense_of(folder / "tokenizer"):
        return Qwen3Tower(encoder, load_tokenizer(folder / "tokenizer"), **family.tower), files


def is_unread(name: str, num_layers: int) -> bool:
    """Whether a tensor of Qwen3's files is behind the first so many layers: of others, their norm, the head that says words."""
    parts = name.removeprefix("model.").split(".")
    return parts[0] in ("norm", "lm_head") or (parts[0] == "layers" and int(parts[1]) >= num_layers)
