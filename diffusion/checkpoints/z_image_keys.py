"""Z-Image's keys in the folders of diffusers <-> ours, which are the original ones of the single files, in both directions.

A folder has queries, keys and values as three matrices. Single files may hold a `norm_final.weight` that nothing reads.
"""

import functools
from collections.abc import Iterable

from diffusion.checkpoints.keymap import KeyMap, Pair, identity

# Modules: the first one or more parts of a key, and those within a block.
TOP = {"x_embedder": "all_x_embedder.2-1", "final_layer": "all_final_layer.2-1"}
ATTENTION = {
    "qkv": ("to_q", "to_k", "to_v"),
    "out": ("to_out.0",),
    "q_norm": ("norm_q",),
    "k_norm": ("norm_k",),
}
UNREAD = frozenset({"norm_final.weight"})

original_z_image = functools.partial(identity, ignored=UNREAD)
"""The map of a single file with these keys."""


def folder_z_image(keys: Iterable[str]) -> KeyMap:
    """The map of a `transformer/` folder."""

    def pair(key: str) -> Pair:
        top, _, rest = key.partition(".")
        if top in TOP:
            return Pair(key, (f"{TOP[top]}.{rest}",))
        block, attention, rest = key.partition(".attention.")
        if not attention:
            return Pair(key, (key,))
        module, _, leaf = rest.partition(".")
        return Pair(key, tuple(f"{block}.attention.{name}.{leaf}" for name in ATTENTION[module]))

    return KeyMap(tuple(map(pair, keys)))
