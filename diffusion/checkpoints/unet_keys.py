"""The UNet's keys in the original single files (CompVis / Stability) <-> ours, which are those of the folders."""

from collections.abc import Iterable

from diffusion.checkpoints.keymap import KeyMap, module_pairs
from diffusion.networks.unet import UNetConfig, per_level

TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "camera_embed.0": "camera_embed.0",
    "camera_embed.2": "camera_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.attentions.0": "middle_block.1",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_modules(config: UNetConfig) -> dict[str, str]:
    """Our module names -> the original ones. Blocks are numbered through all levels there, downsamplers included."""
    table = dict(TOP)
    resnets = {"mid_block.resnets.0": "middle_block.0", "mid_block.resnets.1": "middle_block.2"}
    layers = per_level(config.layers_per_block, config.levels)
    number = 1
    for level, kind in enumerate(config.down_block_types):
        for j in range(layers[level]):
            resnets[f"down_blocks.{level}.resnets.{j}"] = f"input_blocks.{number}.0"
            if "CrossAttn" in kind:
                table[f"down_blocks.{level}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if level < config.levels - 1:
            table[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for i, kind in enumerate(config.up_block_types):
        for j in range(layers[config.levels - 1 - i] + 1):
            resnets[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{number}.0"
            if "CrossAttn" in kind:
                table[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
            number += 1
        # The upsampler follows the transformer where there is one.
        place = 2 if "CrossAttn" in kind else 1
        table[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    return table | {f"{ours}.{a}": f"{theirs}.{b}" for ours, theirs in resnets.items() for a, b in RESNET.items()}


def original_unet(config: UNetConfig, keys: Iterable[str]) -> KeyMap:
    """The map of a UNet with these keys."""
    return KeyMap(tuple(module_pairs(original_modules(config), keys)))
