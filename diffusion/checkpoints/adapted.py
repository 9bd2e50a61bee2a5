"""LoRAs and words beside a checkpoint that stays as it is: its networks once more, with the same weights and what is changed.

A plain LoRA becomes a low-rank side path of the layer that it changes. DoRA, LoHa, LoKr, Tucker cores and full differences are
no low-rank sums: of them, and where the factors would be no smaller than the weight, the changed weight is kept.
`python -m benchmarks.adapters` measures both ways.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffusion.checkpoints.checkpoint import Checkpoint
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.lora import LoraFile, Module, modules
from diffusion.checkpoints.lora_files import AdapterFile, Embedding, Lora, embedding_hash, lora_hash
from diffusion.checkpoints.textual_inversion import add_words, check_words, num_bytes_of_words, teach, with_own_words
from diffusion.networks.low_rank import (
    Factors,
    add_side_path,
    replace_parameter,
    sharing_copy,
    stacked,
    takes_side_path,
)

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
_Place = tuple[str, str]
"""A network's field of `Checkpoint`, and one of its parameters."""
Model = TypeVar("Model", bound=Checkpoint)


@torch.no_grad()
def adapted(checkpoint: Model, files: Sequence[AdapterFile], *, merged: bool = False) -> tuple[Model, int]:
    """The checkpoint with LoRAs and textual inversions in it.

    It equals up to rounding what `merge_lora` makes of it with one LoRA after the other, and then `add_words` to the bit.
    Without a LoRA that changes the UNet, the UNet is the checkpoint's own.

    Args:
        merged: keep whole weights of plain LoRAs too.

    Returns:
        The changed checkpoint, which shares all other weights, and the bytes of what it does not share.

    Raises:
        PriorError: a file is damaged, was trained for another base, or has changed since it was named.
    """
    changed, num_bytes, words = _with_loras(checkpoint, [file for file in files if isinstance(file, Lora)], merged=merged)
    embeddings = [file for file in files if isinstance(file, Embedding)]
    if words or embeddings:
        changed = with_own_words(changed)
        for path, bundled in words:
            check_words(changed, bundled, path)
            teach(changed, bundled)
        for embedding in embeddings:
            path = Path(embedding.file)
            _require_unchanged("embedding", path, embedding.sha256, embedding_hash(path))
            word = embedding.word if embedding.replaces else None
            add_words(changed, path, word, file_name=embedding.word)
        num_bytes += num_bytes_of_words(changed)
    return changed, num_bytes


def _with_loras(
    checkpoint: Model, loras: Sequence[Lora], *, merged: bool
) -> tuple[Model, int, list[tuple[Path, dict[str, dict[str, Tensor]]]]]:
    """See `adapted`; the words that files bundle are not taught yet."""
    if not loras:
        return checkpoint, 0, []
    words: list[tuple[Path, dict[str, dict[str, Tensor]]]] = []
    networks = {name: network for name in NETWORKS if (network := getattr(checkpoint, name)) is not None}
    copies: dict[str, Any] = {name: sharing_copy(network) for name, network in networks.items()}
    targets = modules(replace(checkpoint, **copies))
    owner = {weight.untyped_storage().data_ptr(): place for place, weight in _parameters(copies)}
    steps: list[tuple[LoraFile, float, str, _Place | None]] = []
    side_paths: dict[_Place, list[tuple[int, Factors]]] = {}
    own: set[_Place] = set()
    for lora in loras:
        path = Path(lora.file)
        _require_unchanged("LoRA", path, lora.sha256, lora_hash(path))
        file = LoraFile.read(path)
        file.check(targets, checkpoint.card.name)
        words.append((path, file.words))
        for name, adapter in file.adapters.items():
            weight, bias = targets[name].weight, targets[name].bias
            place = None if weight is None else owner[weight.untyped_storage().data_ptr()]
            steps.append((file, lora.scale, name, place))
            if bias is not None and adapter.changes_bias:
                own.add(owner[bias.untyped_storage().data_ptr()])
            if weight is None or place is None:
                continue
            part = None if merged else _side_path(file, name, weight, lora.scale, copies[place[0]], place[1])
            if part is None:
                own.add(place)
            else:
                side_paths.setdefault(place, []).append(part)
    for network, parameter in own:
        replace_parameter(copies[network], parameter, copies[network].get_parameter(parameter).clone())
    targets = modules(replace(checkpoint, **copies))
    for file, scale, name, place in steps:
        module = targets[name]
        file.merge(name, module if place in own else Module(None, module.bias), scale)
    num_bytes = sum(copies[network].get_parameter(parameter).nbytes for network, parameter in own)
    for place in side_paths.keys() - own:
        factors = stacked(side_paths[place], num_rows=len(copies[place[0]].get_parameter(place[1])))
        add_side_path(copies[place[0]], place[1], factors)
        num_bytes += factors.nbytes
    touched = {network for network, _ in own | side_paths.keys()}
    changed = {name: copies[name] for name in touched}
    return replace(checkpoint, **changed), num_bytes, [(path, bundled) for path, bundled in words if bundled]


def _parameters(networks: Mapping[str, nn.Module]) -> Iterator[tuple["_Place", Tensor]]:
    for part, network in networks.items():
        for name, weight in network.named_parameters():
            yield (part, name), weight


def _require_unchanged(what: str, path: Path, sha256: str, now: str) -> None:
    """Raises PriorError unless the file is still the one that was named."""
    if now != sha256:
        raise PriorError(
            f"the {what} {path} has changed since the job was begun (sha256 {sha256[:12]}, now {now[:12]}); put the first one "
            "back, or begin a new job"
        )


def _side_path(
    lora: LoraFile, name: str, weight: Tensor, scale: float, network: nn.Module, parameter: str
) -> tuple[int, Factors] | None:
    """The first row of the parameter that changes, and the factors; None where the changed weight is kept instead.

    Args:
        weight: a view of the parameter in the file's shape.
    """
    whole = network.get_parameter(parameter)
    with lora.clear_misfits(name, weight):
        found = lora.adapters[name].factors(weight, scale, **lora.options(name))
    if found is None or not takes_side_path(network, parameter):
        return None
    down, up = found
    if down.numel() + up.numel() >= weight.numel():
        return None
    down = down.reshape(len(down), *whole.shape[1:]).to(whole)
    if down.ndim == 4:
        down = down.contiguous(memory_format=torch.channels_last)
    return (weight.storage_offset() - whole.storage_offset()) // whole.stride(0), Factors(down, up.to(whole))
