"""The autoencoders' keys in the original files <-> ours, which are those of the folders."""

from collections.abc import Iterable
from dataclasses import replace

from diffusion.checkpoints.keymap import KeyMap, identity, module_pairs
from diffusion.networks.autoencoder_kl import AutoencoderKLConfig

ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
# What folders of 2022 call the attention's layers.
OLD_ATTENTION = (
    (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
)
UNREAD = frozenset({"bn.num_batches_tracked"})
"""Training's count of FLUX.2's statistics."""


def original_modules(config: AutoencoderKLConfig) -> dict[str, str]:
    """Our module names -> the original ones. The decoder's levels are counted from the finest there."""
    levels = len(config.block_out_channels)
    table = {name: name for name in ("quant_conv", "post_quant_conv", "bn")}
    for half in ("encoder", "decoder"):
        table |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        table[f"{half}.conv_norm_out"] = f"{half}.norm_out"
        for i in range(2):
            table[f"{half}.mid_block.resnets.{i}"] = f"{half}.mid.block_{i + 1}"
        for ours, theirs in ATTENTION.items():
            table[f"{half}.mid_block.attentions.0.{ours}"] = f"{half}.mid.attn_1.{theirs}"
    for i in range(levels):
        blocks = {f"encoder.down_blocks.{i}": f"encoder.down.{i}", f"decoder.up_blocks.{i}": f"decoder.up.{levels - 1 - i}"}
        for ours, theirs in blocks.items():
            for j in range(config.layers_per_block + 1):
                table[f"{ours}.resnets.{j}"] = f"{theirs}.block.{j}"
                table[f"{ours}.resnets.{j}.conv_shortcut"] = f"{theirs}.block.{j}.nin_shortcut"
            table[f"{ours}.downsamplers.0.conv"] = f"{theirs}.downsample.conv"
            table[f"{ours}.upsamplers.0.conv"] = f"{theirs}.upsample.conv"
    return table


def original_autoencoder_kl(config: AutoencoderKLConfig, keys: Iterable[str]) -> KeyMap:
    """The map of an AutoencoderKL with these keys; the attention's matrices are 1x1 convolutions there."""
    pairs = module_pairs(original_modules(config), keys)
    matrices = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
    return KeyMap(tuple(replace(pair, form="matrix") if pair.ours.endswith(matrices) else pair for pair in pairs), UNREAD)


def folder_autoencoder_kl(keys: Iterable[str]) -> KeyMap:
    """The map of a folder's AutoencoderKL, whatever its age."""
    return identity(keys, ignored=UNREAD, renamed=OLD_ATTENTION)


def original_autoencoder_tiny(keys: Iterable[str]) -> KeyMap:
    """The map of TAESD's two original files joined, their keys after "encoder." and "decoder.".

    There each half is a plain sequence, and the decoder's begins with the clamp of its input.
    """
    numbers = {int(key.split(".")[2]) for key in keys}
    table = {f"encoder.layers.{i}": f"encoder.{i}" for i in numbers}
    table |= {f"decoder.layers.{i}": f"decoder.{i + 1}" for i in numbers}
    return KeyMap(tuple(module_pairs(table, keys)))
