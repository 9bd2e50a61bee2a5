"""The text tower's keys: transformers' CLIPTextModel (as published in `text_encoder/`) <-> open_clip's transformer."""

import torch
from torch import Tensor

TOP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def layer_pairs(layers: int) -> dict[str, str]:
    """Every published key of the layers that maps to one of ours, q, k and v aside."""
    return {
        f"text_model.encoder.layers.{i}.{theirs}.{kind}": f"transformer.resblocks.{i}.{ours}.{kind}"
        for i in range(layers)
        for theirs, ours in LAYER.items()
        for kind in ("weight", "bias")
    }


def from_published(tensors: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Published tensors to ours; `position_ids`, a buffer of old files, is dropped by name."""
    tensors = {(k if k.startswith("text_model.") else f"text_model.{k}"): v for k, v in tensors.items()}
    tensors.pop("text_model.embeddings.position_ids", None)
    ours = {}
    for theirs, name in {**TOP, **layer_pairs(layers)}.items():
        ours[name] = tensors.pop(theirs)
    for i in range(layers):
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"text_model.encoder.layers.{i}.self_attn.{p}.{kind}") for p in PROJECTIONS]
            ours[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] = torch.cat(parts)
    if tensors:
        raise ValueError(f"the text encoder has {len(tensors)} keys that its configuration does not: {sorted(tensors)[:5]}")
    return ours


def to_published(tensors: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Our tensors to the published names."""
    theirs = {name: tensors[ours] for name, ours in {**TOP, **layer_pairs(layers)}.items()}
    for i in range(layers):
        for kind in ("weight", "bias"):
            parts = tensors[f"transformer.resblocks.{i}.attn.in_proj_{kind}"].chunk(3)
            theirs |= {
                f"text_model.encoder.layers.{i}.self_attn.{p}.{kind}": t for p, t in zip(PROJECTIONS, parts, strict=True)
            }
    return theirs
