"""Writes a prior as the published folder: fp16 safetensors, each file under a size limit, read by diffusers and by us."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from diffusion.checkpoints.checkpoint import PriorCard
from diffusion.checkpoints.folder import JOINT_PIPELINE, MULTI_VIEW, SECOND_TOWER, THIRD_TOWER
from diffusion.checkpoints.source import TOYBOX
from diffusion.checkpoints.text_keys import folder_text
from diffusion.checkpoints.transformer_keys import folder_transformer
from diffusion.flow_schedule import FlowSchedule
from diffusion.networks.autoencoder_tiny import AutoencoderTiny
from diffusion.networks.joint_transformer import JointTransformer
from diffusion.networks.multi_view import split_keys
from diffusion.networks.unet import UNet2DCondition
from diffusion.schedule import NoiseSchedule
from diffusion.text.clip import TextEncoder
from diffusion.text.tokenizer import Tokenizer

MAX_FILE_BYTES = 15 * 2**20
DIFFUSERS = {"_diffusers_version": "0.35.0"}
FLOW_DEFAULTS = {"num_steps": 30, "guidance_scale": 4.0, "guidance_rescale": 0.0, "sampler": "euler", "timestep_spacing": None}
"""How a flow of the toybox draws."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an indented JSON file, its folder too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def save_sharded(tensors: dict[str, Tensor], folder: Path, stem: str) -> None:
    """Writes fp16 safetensors: one file, or numbered shards with an index when they would exceed the limit.

    `save_file` would leave files that only their owner may read.
    """
    tensors = {name: tensor.detach().half().contiguous() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if filled and filled + tensor.nbytes > MAX_FILE_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    if len(shards) == 1:
        (folder / f"{stem}.safetensors").write_bytes(save(shards[0], metadata={"format": "pt"}))
        return
    names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for file, shard in zip(names, shards, strict=True):
        (folder / file).write_bytes(save(shard, metadata={"format": "pt"}))
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {key: file for file, shard in zip(names, shards, strict=True) for key in shard},
    }
    write_json(folder / f"{stem}.safetensors.index.json", index)


def save_prior(
    folder: Path,
    *,
    card: PriorCard,
    unet: UNet2DCondition,
    autoencoder: AutoencoderTiny,
    text_encoder: TextEncoder,
    tokenizer: Tokenizer,
    schedule: NoiseSchedule,
) -> None:
    """Writes every part; existing files of the same names are replaced."""
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            **DIFFUSERS,
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderTiny"],
        },
    )
    write_json(folder / "dreamkiln.json", asdict(card))
    _save_unet(unet, folder)
    write_json(
        folder / "vae/config.json",
        {"_class_name": "AutoencoderTiny", **DIFFUSERS, **asdict(autoencoder.config)},
    )
    save_sharded(autoencoder.state_dict(), folder / "vae", "diffusion_pytorch_model")
    write_json(folder / "text_encoder/config.json", text_encoder.config.to_published(tokenizer))
    tower = text_encoder.tower.state_dict()
    save_sharded(folder_text(tower).to_published(tower), folder / "text_encoder", "model")
    tokenizer.save(folder / "tokenizer")
    write_json(folder / "scheduler/scheduler_config.json", {**DIFFUSERS, **schedule.to_config()})


def save_flow(folder: Path, *, card: PriorCard, transformer: JointTransformer, schedule: FlowSchedule) -> None:
    """Writes a transformer of the toybox prior's latents in Stable Diffusion 3's layout, beside that prior's other parts.

    Of the two CLIP towers and T5 of that layout it has the first tower alone. diffusers opens the transformer.
    """
    towers = dict.fromkeys((*SECOND_TOWER, *THIRD_TOWER), (None, None))
    write_json(
        folder / "model_index.json",
        {
            "_class_name": JOINT_PIPELINE,
            **DIFFUSERS,
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "transformer": ["diffusers", "SD3Transformer2DModel"],
            "vae": ["diffusers", "AutoencoderTiny"],
            **towers,
        },
    )
    write_json(folder / "dreamkiln.json", {**asdict(card), "defaults": FLOW_DEFAULTS})
    config = {"_class_name": "SD3Transformer2DModel", **DIFFUSERS, **asdict(transformer.config)}
    write_json(folder / "transformer/config.json", config)
    weights = transformer.state_dict()
    published = folder_transformer(weights).to_published(weights)
    save_sharded(published, folder / "transformer", "diffusion_pytorch_model")
    write_json(folder / "scheduler/scheduler_config.json", {**DIFFUSERS, **schedule.to_config()})
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(TOYBOX / part, folder / part, dirs_exist_ok=True)


def _save_unet(unet: UNet2DCondition, folder: Path) -> None:
    """The published UNet in `unet/`, which diffusers opens, and in `multi_view/` what only we read."""
    config = asdict(unet.config)
    multi_view = config.pop("multi_view")
    weights = unet.state_dict()
    published, beside = split_keys(weights)
    write_json(folder / "unet/config.json", {"_class_name": "UNet2DConditionModel", **DIFFUSERS, **config})
    save_sharded({name: weights[name] for name in published}, folder / "unet", "diffusion_pytorch_model")
    if multi_view is not None:
        write_json(folder / MULTI_VIEW / "config.json", multi_view)
        save_sharded({name: weights[name] for name in beside}, folder / MULTI_VIEW, "diffusion_pytorch_model")
