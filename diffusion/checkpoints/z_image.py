"""Z-Image, base and Turbo: folders of their pipeline.

One Qwen3 tower, of which all layers but the last are read, FLUX.1's autoencoder of 16 channels, and a flow whose levels are
1, (N-1)/N, ... 1/N before their shift.
"""

import functools
from dataclasses import replace
from pathlib import Path

import torch

from diffusion.checkpoints.checkpoint import Checkpoint, PriorCard
from diffusion.checkpoints.errors import making_sense_of
from diffusion.checkpoints.folder import TEXT_STEMS, complete_parts_of, configured, read_autoencoder_folder
from diffusion.checkpoints.keymap import identity
from diffusion.checkpoints.network_files import fill_network
from diffusion.checkpoints.weights import Weights, fill, hash_files, skeleton, weight_files
from diffusion.checkpoints.z_image_keys import folder_z_image, original_z_image
from diffusion.flow_schedule import FlowSchedule
from diffusion.networks.z_image import ZImageConfig, ZImageTransformer
from diffusion.text.qwen3 import Qwen3, Qwen3Config, Qwen3Tower
from diffusion.text.t5 import load_tokenizer


def read_z_image(
    folder: Path, *, name: str | None = None, dtype: torch.dtype = torch.float32, network_file: Path | None = None
) -> Checkpoint:
    """Reads Z-Image or Z-Image-Turbo from a folder as `ZImagePipeline.save_pretrained` writes it.

    Args:
        name: of the prior; the folder's own by default. dtype: of transformer and text tower.
        network_file: with the transformer's weights, see `fill_network`.

    Raises:
        PriorError: a file is missing, damaged, or does not fit the others.
    """
    complete_parts_of(folder)
    config = configured(folder / "transformer/config.json", ZImageConfig.from_dict)
    network = skeleton(lambda: ZImageTransformer(config))
    layouts = {"folder": folder_z_image, "original": original_z_image}
    files = fill_network(network, folder / "transformer", network_file, **layouts, dtype=dtype)
    autoencoder, vae_files = read_autoencoder_folder(folder / "vae")
    tower, text_files = _read_tower(folder, dtype)
    schedule = configured(folder / "scheduler/scheduler_config.json", FlowSchedule.from_config)
    size = config.sample_size * autoencoder.config.spatial_factor
    checkpoint = Checkpoint(
        card=PriorCard.load(folder, name=name or folder.name, image_size=size),
        schedule=replace(schedule, timestep_spacing="trailing"),
        unet=network,
        autoencoder=autoencoder,
        text_encoder=tower,
        tokenizer=None,
        weights_hash=hash_files([*files, *vae_files, *text_files]),
    )
    checkpoint.check(folder)
    return checkpoint


def _read_tower(folder: Path, dtype: torch.dtype) -> tuple[Qwen3Tower, list[Path]]:
    place = folder / "text_encoder"
    config = configured(place / "config.json", Qwen3Config.from_dict)
    files = weight_files(place, *TEXT_STEMS)
    weights = Weights(files)
    with making_sense_of(place / "config.json"):
        encoder = skeleton(lambda: Qwen3(config, reads=(config.num_hidden_layers - 1,)))
    # Saved with the head that says words, which is one with the embedding in Qwen3-4B, or without it.
    unread = frozenset(name.removeprefix("model.") for name in weights if is_unread(name, config))
    layout = functools.partial(identity, ignored=unread, renamed=((r"^model\.", ""),))
    fill(encoder, layout, weights, place, dtype=dtype)
    with making_sense_of(folder / "tokenizer"):
        tokenizer = load_tokenizer(folder / "tokenizer")
    return Qwen3Tower(encoder, tokenizer), files


def is_unread(name: str, config: Qwen3Config) -> bool:
    """Whether a tensor of Qwen3's files is of the last layer or behind it: its norm, and the head that says words."""
    name = name.removeprefix("model.")
    return name in ("norm.weight", "lm_head.weight") or name.startswith(f"layers.{config.num_hidden_layers - 1}.")
