"""The joint transformer's keys in the folders and in Stability's single files <-> ours, as tables in both directions.

In a single file queries, keys and values are one matrix, as in ours; in a folder they are three. Two norms, the network's
last and that of the last block's text, have shift before scale in a single file and scale before shift in a folder and here.
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
