"""Reads what a `Source` names: a checkpoint with its LoRAs, words and autoencoder in it."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from diffusion.checkpoints.autoencoders import replace_autoencoder
from diffusion.checkpoints.checkpoint import Checkpoint
from diffusion.checkpoints.defaults import TURBO_SIZE, defaults_of
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.folder import JOINT_PIPELINE, read_folder
from diffusion.checkpoints.hub import fetch
from diffusion.checkpoints.lora import merge_lora
from diffusion.checkpoints.lora_files import lora_file
from diffusion.checkpoints.qwen3_flows import FAMILIES, read_qwen3_flow
from diffusion.checkpoints.single_file import read_single_file
from diffusion.checkpoints.source import Source, resolve
from diffusion.checkpoints.stable_diffusion_3 import read_stable_diffusion_3
from diffusion.checkpoints.textual_inversion import add_words
from diffusion.checkpoints.weights import hash_files, read_json

FLOWS = {JOINT_PIPELINE: read_stable_diffusion_3, **dict.fromkeys(FAMILIES, read_qwen3_flow)}
"""Pipelines of diffusers that are rectified flows, and what reads their folders."""


def read(source: Source) -> Checkpoint:
    """The checkpoint of a source, with its LoRAs, words and autoencoder in it.

    Raises:
        PriorError: it is not there, damaged, or one of the parts does not fit.
    """
    path, name = locate(source.location, offline=source.offline)
    defaults = defaults_of(source)
    options: dict[str, Any] = {"prediction_type": source.prediction_type, "dtype": getattr(torch, source.dtype)}
    if path.is_dir():
        if source.averaged:
            raise PriorError(f"'averaged' was asked of the folder {path}; only single files of training hold such a copy")
        if source.unet is not None:
            options["network_file"] = locate(source.unet, offline=source.offline)[0]
        if (read_flow := FLOWS.get(pipeline_of(path))) is not None:
            _refuse_prediction_type(path, options.pop("prediction_type"))
            checkpoint = read_flow(path, name=name, **options)
        else:
            checkpoint = read_folder(path, name=name, **options)
    else:
        if source.unet is not None:
            raise PriorError(f"'unet' was given beside the file {path}; it replaces a folder's network, so give a folder")
        vae = None if source.vae is None else locate(source.vae, offline=source.offline)[0]
        checkpoint = read_single_file(path, averaged=source.averaged, vae=vae, **options)
        size = TURBO_SIZE if defaults.distilled == "turbo" else checkpoint.card.image_size
        checkpoint.card = dataclasses.replace(checkpoint.card, name=name or path.stem, image_size=size)
        if source.averaged:
            _changed(checkpoint, "averaged", [])
    if differences := checkpoint.schedule.differences():
        _changed(checkpoint, f"schedule {json.dumps(differences, sort_keys=True)}", [])
    if source.dtype != "float32":
        _changed(checkpoint, source.dtype, [])
    checkpoint.plain_prompts, checkpoint.clip_skip = source.plain_prompts, source.clip_skip
    checkpoint.decoding, checkpoint.strict_rows = source.decoding, source.strict_rows
    checkpoint.distilled = defaults.distilled
    if defaults.note:
        checkpoint.notes.append(defaults.note)
    if source.clip_skip > 1:
        check_clip_skip(checkpoint, source.clip_skip)
        _changed(checkpoint, f"clip_skip {source.clip_skip}", [])
    for location, scale in source.loras:
        file, _ = locate(location, offline=source.offline)
        merge_lora(checkpoint, file, scale)
        _changed(checkpoint, f"lora {scale:g}", [lora_file(file)])
    for location, word in source.embeddings:
        file, _ = locate(location, offline=source.offline)
        words = add_words(checkpoint, file, word)
        _changed(checkpoint, f"embedding {words}", [file])
    if source.vae is not None:
        _changed(checkpoint, "vae", replace_autoencoder(checkpoint, locate(source.vae, offline=source.offline)[0]))
    return checkpoint


def pipeline_of(folder: Path) -> str:
    """The class of diffusers that a folder is of, or nothing."""
    index = folder / "model_index.json"
    return str(read_json(index).get("_class_name", "")) if index.exists() else ""


def _refuse_prediction_type(path: Path, prediction_type: str | None) -> None:
    if prediction_type is not None:
        raise PriorError(
            f"prediction_type is {prediction_type!r}, and {path} is a rectified flow, which predicts a velocity; leave it out"
        )


def check_clip_skip(checkpoint: Checkpoint, clip_skip: int) -> None:
    """Checks that every text tower has so many layers.

    Raises:
        PriorError: one has not.
    """
    if not checkpoint.towers:
        raise PriorError(f"clip_skip is {clip_skip}, and {checkpoint.card.name} has no CLIP tower; leave it out")
    fewest = min(tower.config.layers for _, tower, _ in checkpoint.towers) - (checkpoint.text_encoder_2 is not None)
    if clip_skip > fewest:
        raise PriorError(
            f"clip_skip is {clip_skip}, and {checkpoint.card.name}'s text tower has {fewest} layers to read; use 1 or 2"
        )


def locate(location: str, *, offline: bool) -> tuple[Path, str | None]:
    """The path of a location, and for one on the hub its name with the commit.

    Raises:
        PriorError: it is neither a path that exists nor a name that can be had.
    """
    place = resolve(location)
    if isinstance(place, Path):
        return place, None
    fetched = fetch(place, offline=offline)
    return fetched.path, str(dataclasses.replace(place, revision=fetched.commit[:12]))


def _changed(checkpoint: Checkpoint, how: str, files: list[Path]) -> None:
    """The hash of weights that were changed or rounded: whatever changed them goes into it."""
    text = f"{checkpoint.weights_hash} {how} {hash_files(files)}"
    checkpoint.weights_hash = hashlib.sha256(text.encode()).hexdigest()
