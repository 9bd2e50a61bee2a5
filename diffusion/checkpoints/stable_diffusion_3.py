"""Stable Diffusion 3 and 3.5: folders of their pipeline, and Stability's single files with text towers.

Two CLIP towers, both projected, and T5, which may be absent: its rows are zeros then, as they were for a part of the
training (2403.03206 section 5.3.3). A flow of ours, trained on the toybox, has one tower, whose last layer it reads, and no
rows of T5.
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion.checkpoints.autoencoder_keys import original_autoencoder_kl
from diffusion.checkpoints.autoencoders import read_autoencoder
from diffusion.checkpoints.checkpoint import Checkpoint, PriorCard
from diffusion.checkpoints.errors import PriorError, making_sense_of
from diffusion.checkpoints.folder import (
    TEXT_STEMS,
    build_tower,
    complete_parts_of,
    configured,
    read_autoencoder_folder,
    read_tokenizer,
)
from diffusion.checkpoints.keymap import identity
from diffusion.checkpoints.network_files import fill_network
from diffusion.checkpoints.text_keys import folder_text, num_layers
from diffusion.checkpoints.transformer_keys import folder_transformer, original_transformer
from diffusion.checkpoints.weights import Weights, fill, hash_files, skeleton, weight_files
from diffusion.flow_schedule import FlowSchedule
from diffusion.networks.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from diffusion.networks.joint_transformer import JointTransformer, JointTransformerConfig
from diffusion.text.clip import TextConfig, TextEncoder
from diffusion.text.t5 import T5Config, T5Encoder, T5Tower, load_tokenizer
from diffusion.text.tokenizer import Tokenizer, full_merges

TRANSFORMER, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
MARK = f"{TRANSFORMER}joint_blocks."
# The towers of a single file: prefix, activation, whether prompts are padded with the end token.
CLIP_L, CLIP_G, T5 = "text_encoders.clip_l.", "text_encoders.clip_g.", "text_encoders.t5xxl."
TOWERS = ((CLIP_L, "quick_gelu", True), (CLIP_G, "gelu", False))
HEAD_DIM = 64
"""Of every published transformer and CLIP tower; a single file does not say it."""
SHIFT = 3.0
"""Of the published scheduler_config.json, which a single file has not."""
AUTOENCODER_CONFIG = AutoencoderKLConfig(
    latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
)
_UNREAD = ("logit_scale", "transformer.text_model.embeddings.position_ids")


def read_stable_diffusion_3(
    folder: Path, *, name: str | None = None, dtype: torch.dtype = torch.float32, network_file: Path | None = None
) -> Checkpoint:
    """Reads Stable Diffusion 3 or 3.5 medium from a folder as `StableDiffusion3Pipeline.save_pretrained` writes it.

    Args:
        name: of the prior; the folder's own by default. dtype: of transformer and text towers.
        network_file: with the transformer's weights, see `fill_network`.

    Raises:
        PriorError: a file is missing, damaged, or does not fit the others.
    """
    parts = complete_parts_of(folder)
    config = configured(folder / "transformer/config.json", JointTransformerConfig.from_dict)
    network = skeleton(lambda: JointTransformer(config))
    layouts = {"folder": folder_transformer, "original": original_transformer}
    files = fill_network(network, folder / "transformer", network_file, **layouts, dtype=dtype)
    autoencoder, vae_files = read_autoencoder_folder(folder / "vae")
    towers, text_files = [], []
    second = "text_encoder_2" in parts
    for part in ("text_encoder", "text_encoder_2") if second else ("text_encoder",):
        weight_paths = weight_files(folder / part, *TEXT_STEMS)
        read = functools.partial(TextConfig.from_published, with_projection=second)
        text_config = configured(folder / part / "config.json", read)
        towers.append(build_tower(text_config, folder_text, Weights(weight_paths), folder / part, dtype=dtype))
        text_files += weight_paths
    t5 = None
    if "text_encoder_3" in parts:
        t5, t5_files = _read_t5(folder, dtype)
        text_files += t5_files
    schedule = configured(folder / "scheduler/scheduler_config.json", FlowSchedule.from_config)
    size = config.sample_size * autoencoder.config.spatial_factor
    whose = name or folder.name
    lacks_t5 = [f"{whose} has no T5 tower: its rows of the text are zeros."] if second and t5 is None else []
    checkpoint = Checkpoint(
        card=PriorCard.load(folder, name=whose, image_size=size),
        schedule=schedule,
        unet=network,
        autoencoder=autoencoder,
        text_encoder=towers[0],
        tokenizer=read_tokenizer(folder / "tokenizer", towers[0]),
        weights_hash=hash_files([*files, *vae_files, *text_files]),
        text_encoder_2=towers[1] if second else None,
        tokenizer_2=read_tokenizer(folder / "tokenizer_2", towers[1]) if second else None,
        text_encoder_3=t5,
        notes=lacks_t5,
    )
    checkpoint.check(folder)
    return checkpoint


def _read_t5(folder: Path, dtype: torch.dtype) -> tuple[T5Tower, list[Path]]:
    place = folder / "text_encoder_3"
    config = configured(place / "config.json", T5Config.from_dict)
    files = weight_files(place, *TEXT_STEMS)
    layout = functools.partial(identity, ignored=frozenset({"encoder.embed_tokens.weight"}))
    encoder = fill(skeleton(lambda: T5Encoder(config)), layout, Weights(files), place, dtype=dtype)
    with making_sense_of(folder / "tokenizer_3"):
        tokenizer = load_tokenizer(folder / "tokenizer_3")
    return T5Tower(encoder, tokenizer), files


def read_stable_diffusion_3_file(
    path: Path, weights: Weights, *, vae: Path | None = None, dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Reads a single file of Stable Diffusion 3 or 3.5 medium that holds both CLIP towers.

    A T5 tower in it is not read, since no single file holds its tokenizer; its rows are zeros, and a note says so.

    Args:
        weights: the file, opened. vae: of a file without autoencoder. dtype: of transformer and text towers.

    Raises:
        PriorError: the file lacks a part, or holds tensors that the family does not have.
    """
    tensors = weights.under(TRANSFORMER)
    config = config_of(tensors, path)
    network = fill(
        skeleton(lambda: JointTransformer(config)), original_transformer, tensors, path, prefix=TRANSFORMER, dtype=dtype
    )
    autoencoder, vae_files = _autoencoder_of(weights, path, vae)
    towers = [_tower_of(weights, path, prefix, act, dtype) for prefix, act, _ in TOWERS]
    tokenizers = [Tokenizer(full_merges(), 77, pad_with_end=pad_with_end) for _, _, pad_with_end in TOWERS]
    unknown = [name for name in weights if not name.startswith((TRANSFORMER, AUTOENCODER, CLIP_L, CLIP_G, T5))]
    if unknown:
        raise PriorError(
            f"{path} holds {len(unknown)} tensors that a Stable Diffusion 3 does not have, such as {unknown[0]}; use the file "
            "as it was published, without additions"
        )
    has_t5 = any(name.startswith(T5) for name in weights)
    why = "holds a T5 tower without its tokenizer, which is not read" if has_t5 else "has no T5 tower"
    checkpoint = Checkpoint(
        card=PriorCard(path.stem, config.sample_size * autoencoder.config.spatial_factor),
        schedule=FlowSchedule(shift=SHIFT),
        unet=network,
        autoencoder=autoencoder,
        text_encoder=towers[0],
        tokenizer=tokenizers[0],
        weights_hash=hash_files([path, *vae_files]),
        text_encoder_2=towers[1],
        tokenizer_2=tokenizers[1],
        notes=[f"{path.name} {why}: its rows of the text are zeros. A folder of the pipeline has one."],
    )
    checkpoint.check(path)
    return checkpoint


def config_of(tensors: Mapping[str, Tensor], path: Path) -> JointTransformerConfig:
    """The configuration of a transformer by the shapes of a single file's tensors, whose heads have HEAD_DIM numbers each.

    Raises:
        PriorError: one of the tensors that say it is missing.
    """
    try:
        dim, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
        out_channels = tensors["final_layer.linear.weight"].shape[0] // patch**2
        joint_dim, pooled_dim = tensors["context_embedder.weight"].shape[1], tensors["y_embedder.mlp.0.weight"].shape[1]
        side = math.isqrt(tensors["pos_embed"].shape[1])
    except KeyError as error:
        raise PriorError(f"{path} lacks {TRANSFORMER}{error.args[0]}; use a full checkpoint of Stable Diffusion 3") from None
    blocks = {int(name.split(".")[1]) for name in tensors if name.startswith("joint_blocks.")}
    dual = {int(name.split(".")[1]) for name in tensors if ".attn2." in name}
    return JointTransformerConfig(
        patch_size=patch,
        in_channels=channels,
        out_channels=out_channels,
        num_layers=len(blocks),
        attention_head_dim=HEAD_DIM,
        num_attention_heads=dim // HEAD_DIM,
        joint_attention_dim=joint_dim,
        caption_projection_dim=dim,
        pooled_projection_dim=pooled_dim,
        pos_embed_max_size=side,
        dual_attention_layers=tuple(sorted(dual)),
        qk_norm="rms_norm" if any(name.endswith(".ln_q.weight") for name in tensors) else None,
    )


def _autoencoder_of(weights: Weights, path: Path, vae: Path | None) -> tuple[AutoencoderKL, list[Path]]:
    tensors = weights.under(AUTOENCODER)
    if tensors:
        network = skeleton(lambda: AutoencoderKL(_autoencoder_config(tensors)))
        layout = functools.partial(original_autoencoder_kl, network.config)
        return fill(network, layout, tensors, path, prefix=AUTOENCODER), []
    if vae is None:
        raise PriorError(f"{path} holds no autoencoder; add the family's with '?vae=PATH', a .safetensors file or a folder")
    other, files = read_autoencoder(vae, AUTOENCODER_CONFIG)
    if not isinstance(other, AutoencoderKL):
        raise PriorError(f"the autoencoder {vae} is a tiny one; give Stable Diffusion 3's own, a KL autoencoder of 16 channels")
    return other, files


def _autoencoder_config(tensors: Mapping[str, Tensor]) -> AutoencoderKLConfig:
    """The published one, with the widths of this file."""
    levels = len({name.split(".")[2] for name in tensors if name.startswith("encoder.down.")})
    widths = tuple(tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels))
    blocks = len({name.split(".")[4] for name in tensors if name.startswith("encoder.down.0.block.")})
    groups = math.gcd(32, *widths)
    return AutoencoderKLConfig(
        **{
            **vars(AUTOENCODER_CONFIG),
            "block_out_channels": widths,
            "layers_per_block": blocks,
            "norm_num_groups": groups,
            "latent_channels": tensors["decoder.conv_in.weight"].shape[1],
        }
    )


def _tower_of(weights: Weights, path: Path, prefix: str, act: str, dtype: torch.dtype) -> TextEncoder:
    tensors = {name: tensor for name, tensor in weights.under(prefix).items() if name not in _UNREAD}
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    words = tensors.get("text_model.embeddings.token_embedding.weight")
    places = tensors.get("text_model.embeddings.position_embedding.weight")
    if words is None or places is None:
        raise PriorError(
            f"{path} lacks the text tower {prefix.split('.')[1]}; use a file that includes the CLIP towers, or the folder of "
            "the pipeline"
        )
    width = words.shape[1]
    # CLIP-L's projection is no part of these files: its pooled text goes on as it is.
    tensors.setdefault("text_projection.weight", torch.eye(width, dtype=words.dtype))
    layers = len({name.split(".")[3] for name in tensors if name.startswith("text_model.encoder.layers.")})
    config = TextConfig(
        vocab_size=words.shape[0],
        context_length=places.shape[0],
        width=width,
        heads=max(1, width // HEAD_DIM),
        layers=layers,
        hidden_act=act,
        projection_dim=tensors["text_projection.weight"].shape[0],
    )
    return build_tower(config, folder_text, tensors, path, prefix=f"{prefix}transformer.", dtype=dtype)


def write_stable_diffusion_3_file(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint as one file in Stability's layout, without T5, in the precision that its parts have."""
    network, autoencoder = checkpoint.unet.state_dict(), checkpoint.autoencoder
    assert isinstance(autoencoder, AutoencoderKL)
    own = autoencoder.state_dict()
    tensors = {f"{TRANSFORMER}{k}": v for k, v in original_transformer(network).to_published(network).items()}
    tensors |= {f"{AUTOENCODER}{k}": v for k, v in original_autoencoder_kl(autoencoder.config, own).to_published(own).items()}
    for (_, encoder, _), (prefix, _, _) in zip(checkpoint.towers, TOWERS, strict=True):
        tower = encoder.tower.state_dict()
        assert num_layers(tower) == encoder.config.layers
        tensors |= {f"{prefix}transformer.{k}": v for k, v in folder_text(tower).to_published(tower).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
