"""The denoising network's weights: of its folder, or a file of them alone, as GGUF and ComfyUI's models are published."""

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import nn

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.keymap import KeyMap
from diffusion.checkpoints.weights import Weights, fill, weight_files

STEMS = ("diffusion_pytorch_model",)
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
"""Of the network's names in such files."""
Layout = Callable[[Iterable[str]], KeyMap]


def fill_network(
    network: nn.Module, place: Path, file: Path | None, *, folder: Layout, original: Layout, dtype: torch.dtype
) -> list[Path]:
    """Gives a skeleton its weights and returns the files that they came from.

    Args:
        place: the network's own folder. file: with the weights instead of the folder's, in either layout; other parts of a
            model in it are not read. folder, original: layouts of folders, and of single files.

    Raises:
        PriorError: a file is missing or damaged, or is of another network.
    """
    if file is None:
        files = weight_files(place, *STEMS)
        fill(network, folder, Weights(files), place, dtype=dtype)
        return files
    weights = Weights([file])
    prefix = network_prefix(weights)
    # At once in the precision that is kept: dequantised, all of a file would be twice as large.
    tensors = {name.removeprefix(prefix): weights[name].to(dtype) for name in weights if name.startswith(prefix)}
    like = network.state_dict()
    known = {layout: len(layout(like).to_published(like).keys() & tensors.keys()) for layout in (original, folder)}
    layout = max(known, key=lambda one: known[one])
    if 2 * known[layout] < len(like):
        raise PriorError(
            f"{file} is not the network of {place.parent}: of {len(like)} tensors it has {known[layout]}, and others such as "
            f"{prefix}{next(iter(tensors), '')}; give weights of the same architecture with '?unet=FILE'"
        )
    fill(network, layout, tensors, file, prefix=prefix, dtype=dtype)
    return [file]


def network_prefix(names: Iterable[str]) -> str:
    """What the network's names begin with in a file with these."""
    names = list(names)
    return next(prefix for prefix in PREFIXES if not prefix or any(name.startswith(prefix) for name in names))
