"""Textual inversion (2208.01618): new words for the text tower, each a few learned embeddings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffusion.checkpoints.checkpoint import Checkpoint
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.weights import PICKLES, Weights, read_pickle
from diffusion.networks.longer_embedding import LongerEmbedding, with_module

Model = TypeVar("Model", bound=Checkpoint)

# SDXL's files name the towers; other files have vectors for the only one.
TOWERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}


def add_words(checkpoint: Checkpoint, path: Path, word: str | None = None, *, file_name: str | None = None) -> list[str]:
    """Teaches the text towers the words of a file; a word of several vectors takes as many tokens of the prompt.

    The layouts: `{word: vectors}` (diffusers), `string_to_param` (the original code and AUTOMATIC1111, with the file's field
    "name"), `emb_params` (kohya), `clip_l` and `clip_g` (SDXL). A file of one word answers to its own name too, as in
    AUTOMATIC1111 and ComfyUI. Prompts may write the word in any case, as a whole word.

    Args:
        word: what to call it in prompts, instead of the file's own word; for files with one.
        file_name: what a file of one word answers to besides, its own name by default.

    Returns:
        The words, as they must be written in a prompt.

    Raises:
        PriorError: the file is damaged, holds no embeddings, is for another base, or its word is taken.
    """
    words = read_words(path)
    if word is not None:
        if len(words) != 1:
            raise PriorError(f"{path} holds {len(words)} words and one name was given, {word!r}; leave the name out")
        words = {word: next(iter(words.values()))}
    check_words(checkpoint, words, path)
    teach(checkpoint, words)
    name = file_name or path.stem
    if word is None and len(words) == 1:
        for _, _, tokenizer in checkpoint.towers:
            if not tokenizer.knows(name):
                tokenizer.add(name, tokenizer.encode(next(iter(words))))
    return list(words)


def with_own_words(checkpoint: Model) -> Model:
    """The checkpoint with tokenizers and tables of tokens of its own, which `teach` may extend; it shares all weights."""
    parts: dict[str, Any] = {}
    for name, tower, tokenizer in checkpoint.towers:
        parts[name] = with_module(tower, "tower.token_embedding", LongerEmbedding(tower.tower.token_embedding))
        parts[name.replace("text_encoder", "tokenizer")] = tokenizer.copy()
    return replace(checkpoint, **parts)


def num_bytes_of_words(checkpoint: Checkpoint) -> int:
    """Bytes of the vectors that a checkpoint of `with_own_words` has been taught."""
    return sum(tower.tower.token_embedding.rows.nbytes for _, tower, _ in checkpoint.towers)


def check_words(checkpoint: Checkpoint, words: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Checks that words fit a checkpoint's towers.

    Raises:
        PriorError: a word is taken or empty, or its vectors are for another base.
    """
    towers = {name: (tower, tokenizer) for name, tower, tokenizer in checkpoint.towers}
    for name, vectors in words.items():
        for component, (tower, tokenizer) in towers.items():
            if tokenizer.knows(name) or not name.strip():
                raise PriorError(f"the word {name!r} of {path} is taken or empty; give it another one, '?embedding=FILE:WORD'")
            width = tower.config.width
            if component not in vectors or vectors[component].shape[1] != width:
                found = {part: tensor.shape[1] for part, tensor in vectors.items()}
                raise PriorError(
                    f"the embeddings of {path} are {found} wide, and {checkpoint.card.name}'s {component} is {width} wide; "
                    "use some that were trained for the same base model"
                )
        extra = vectors.keys() - towers.keys()
        if extra:
            raise PriorError(
                f"{path} has embeddings for {sorted(extra)}, which {checkpoint.card.name} lacks; use some that were trained "
                "for the same base model"
            )


def teach(checkpoint: Checkpoint, words: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Adds words that `check_words` has let pass to the towers and their tokenizers."""
    for name, vectors in words.items():
        for component, tower, tokenizer in checkpoint.towers:
            table, rows = tower.tower.token_embedding, vectors[component]
            if isinstance(table, LongerEmbedding):
                first, longer = len(table), table.extended(rows)
            else:
                first = len(table.weight)
                longer = nn.Embedding.from_pretrained(torch.cat([table.weight, rows.to(table.weight)]))
            tokenizer.add(name, range(first, first + len(rows)))
            tower.tower.token_embedding = longer


def read_words(path: Path) -> dict[str, dict[str, Tensor]]:
    """Word -> tower -> vectors (n, width).

    Raises:
        PriorError: the file is damaged or holds no embeddings.
    """
    content: dict[str, Any] = read_pickle(path) if path.suffix in PICKLES and path.is_file() else dict(Weights([path]))
    if TOWERS.keys() & content.keys():
        return {path.stem: {TOWERS[key]: _rows(content[key], path) for key in TOWERS if key in content}}
    if "string_to_param" in content:
        vectors = dict(content["string_to_param"])
        names = [content.get("name") or path.stem] if set(vectors) == {"*"} else list(vectors)
        return {name: {"text_encoder": _rows(tensor, path)} for name, tensor in zip(names, vectors.values(), strict=True)}
    if "emb_params" in content:
        return {path.stem: {"text_encoder": _rows(content["emb_params"], path)}}
    if any("lora_" in name or name.startswith("lora") for name in content):
        raise PriorError(f"{path} is a LoRA and no textual inversion; give it as '?lora=FILE'")
    words = {name: {"text_encoder": _rows(tensor, path)} for name, tensor in content.items()}
    if not words:
        raise PriorError(f"{path} holds no embeddings; give a textual inversion file")
    return words


def _rows(vectors: Any, path: Path) -> Tensor:
    if not isinstance(vectors, Tensor) or vectors.ndim not in (1, 2) or not vectors.is_floating_point():
        raise PriorError(f"{path} is no textual inversion file: expected vectors by word; give one that is")
    return torch.atleast_2d(vectors.detach())
