"""The text towers' keys in the folders (transformers' CLIPTextModel) and the original files <-> ours, open_clip's."""

from collections.abc import Iterable
from dataclasses import replace

from diffusion.checkpoints.keymap import KeyMap, Pair, identity, module_pairs

TOP = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
}
LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
# What files have beside a tower's weights and no prompt meets.
UNREAD = frozenset(
    {"logit_scale", "attn_mask", "text_model.embeddings.position_ids", "transformer.text_model.embeddings.position_ids"}
)
# transformers 5.6 flattened the class: some files have no "text_model." in front.
FLATTENED = (r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1.")


def folder_text(keys: Iterable[str]) -> KeyMap:
    """The map of a tower with these keys; q, k and v are one matrix in ours, the projection is transposed."""
    keys = list(keys)
    table, special = dict(TOP), {"text_projection": Pair("text_projection", ("text_projection.weight",), "transposed")}
    for i in range(num_layers(keys)):
        ours, theirs = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        table |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in LAYER.items()}
        for kind in ("weight", "bias"):
            name = f"{ours}.attn.in_proj_{kind}"
            special[name] = Pair(name, tuple(f"{theirs}.self_attn.{projection}.{kind}" for projection in PROJECTIONS))
    pairs = [special[key] if key in special else module_pairs(table, [key])[0] for key in keys]
    unread = frozenset() if "text_projection" in keys else frozenset(["text_projection.weight"])
    return KeyMap(tuple(pairs), ignored=UNREAD | unread, renamed=(FLATTENED,))


def original_text(keys: Iterable[str]) -> KeyMap:
    """The map of a tower in a single file of SD 2.x or SDXL: open_clip's names, which are ours."""
    return replace(identity(keys, ignored=UNREAD), transposed={"text_projection.weight": "text_projection"})


def num_layers(keys: Iterable[str]) -> int:
    """Transformer layers of a tower with these keys."""
    return len({key.split(".")[2] for key in keys if key.startswith("transformer.resblocks.")})
