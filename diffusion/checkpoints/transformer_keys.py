"""Joint transformers' keys in the folders and in single files <-> ours, as tables in both directions: SD 3's and FLUX.2's.

In a single file queries, keys and values are one matrix, as in ours; in a folder they are three. Two norms, the network's
last and that of SD 3's last block's text, have shift before scale in a single file and scale before shift in a folder and here.
"""

from collections.abc import Iterable

from diffusion.checkpoints.keymap import KeyMap, Pair, module_pairs

TOP = {
    "pos_embed.proj": "x_embedder.proj",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "context_embedder": "context_embedder",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_qkv": "x_block.attn.qkv",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.add_qkv_proj": "context_block.attn.qkv",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_qkv": "x_block.attn2.qkv",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
POSITIONS = Pair("pos_embed.pos_embed", ("pos_embed",))
FUSED = {
    "attn.to_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn2.to_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "attn.add_qkv_proj": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}


def folder_transformer(keys: Iterable[str]) -> KeyMap:
    """The map of a `transformer/` folder: the published names are ours, but for what is one matrix here."""

    def pair(key: str) -> Pair:
        for ours, theirs in FUSED.items():
            if f".{ours}." in key:
                return Pair(key, tuple(key.replace(f".{ours}.", f".{name}.") for name in theirs))
        return Pair(key, (key,))

    return KeyMap(tuple(map(pair, keys)))


def original_transformer(keys: Iterable[str]) -> KeyMap:
    """The map of a network with these keys in a single file."""
    keys = list(keys)
    last = num_blocks(keys) - 1
    table = dict(TOP)
    for i in range(last + 1):
        table |= {f"transformer_blocks.{i}.{a}": f"joint_blocks.{i}.{b}" for a, b in BLOCK.items()}
    swapped = ("norm_out.linear.", f"transformer_blocks.{last}.norm1_context.linear.")
    pairs = []
    for key in keys:
        if key == POSITIONS.ours:
            pairs.append(POSITIONS)
            continue
        (pair,) = module_pairs(table, [key])
        pairs.append(Pair(pair.ours, pair.theirs, "swapped") if key.startswith(swapped) else pair)
    return KeyMap(tuple(pairs))


def num_blocks(keys: Iterable[str]) -> int:
    """Blocks of a network with these keys, in our names."""
    return len({key.split(".")[1] for key in keys if key.startswith("transformer_blocks.")})


FLUX2_TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
FLUX2_DOUBLE = {
    "attn.to_qkv": "img_attn.qkv",
    "attn.to_out.0": "img_attn.proj",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.add_qkv_proj": "txt_attn.qkv",
    "attn.to_add_out": "txt_attn.proj",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
FLUX2_SINGLE = {
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}


def original_flux2(keys: Iterable[str]) -> KeyMap:
    """The map of a FLUX.2 transformer with these keys in a single file, whose norms have a `scale`, in ComfyUI's a `weight`."""
    keys = list(keys)
    table = dict(FLUX2_TOP)
    double, single = ("transformer_blocks", "double_blocks"), ("single_transformer_blocks", "single_blocks")
    for (ours, theirs), names in ((double, FLUX2_DOUBLE), (single, FLUX2_SINGLE)):
        for i in {key.split(".")[1] for key in keys if key.startswith(f"{ours}.")}:
            table |= {f"{ours}.{i}.{a}": f"{theirs}.{i}.{b}" for a, b in names.items()}
    pairs = (pair for key in keys for pair in module_pairs(table, [key]))
    swapped = (Pair(pair.ours, pair.theirs, "swapped") if pair.ours.startswith("norm_out.") else pair for pair in pairs)
    return KeyMap(tuple(swapped), renamed=((r"\.(query|key)_norm\.weight$", r".\1_norm.scale"),))
