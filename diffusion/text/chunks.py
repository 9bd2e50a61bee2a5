"""Prompts of any length for towers of 77 tokens: chunks side by side, each token's state weighted, as AUTOMATIC1111 does it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.text.prompt_syntax import parse
from diffusion.text.tokenizer import Tokenizer

SMALLEST_MEAN = 1e-5
"""Of states, as a share of their mean size; below it float32 gives no digit of it."""


@dataclass(frozen=True)
class Chunks:
    """A prompt as its tower reads it.

    Args:
        ids: (N, S) int64, each row from start to end token and padding. weights: (N, S), 1 where nothing else was said.
    """

    ids: Tensor
    weights: Tensor


def chunks_of(tokenizer: Tokenizer, prompt: str, *, num_chunks: int = 1) -> Chunks:
    """The chunks of a prompt, filled up to `num_chunks` with empty ones.

    Words fill one chunk after the other, S - 2 tokens each; BREAK begins a new one.
    """
    room = tokenizer.context_length - 2
    rows: list[list[tuple[int, float]]] = []
    for part in parse(prompt):
        tokens = [(id, piece.weight) for piece in part for id in tokenizer.encode(piece.text)]
        rows += [tokens[start : start + room] for start in range(0, max(len(tokens), 1), room)]
    rows += [[] for _ in range(num_chunks - len(rows))]
    ids = torch.full((len(rows), tokenizer.context_length), tokenizer.pad_id, dtype=torch.int64)
    weights = torch.ones(len(rows), tokenizer.context_length)
    for row, row_weights, tokens in zip(ids, weights, rows, strict=True):
        row[: len(tokens) + 2] = torch.tensor(
            [tokenizer.bpe.sot_token_id, *(id for id, _ in tokens), tokenizer.bpe.eot_token_id]
        )
        row_weights[1 : len(tokens) + 1] = torch.tensor([weight for _, weight in tokens])
    return Chunks(ids, weights)


def weighted(states_NSD: Tensor, weights_NS: Tensor) -> Tensor:
    """States times their weights, brought back to the mean that each chunk had; (N, S, D) as they are where all are 1.

    A mean that is nothing but rounding, as of a tower that ends in a plain layer norm, is left alone.
    """
    if bool((weights_NS == 1).all()):
        return states_NSD
    changed = states_NSD * weights_NS[..., None].to(states_NSD)
    before, after = (states.mean(dim=(1, 2), keepdim=True) for states in (states_NSD, changed))
    is_rounding = torch.minimum(before.abs(), after.abs()) < SMALLEST_MEAN * states_NSD.abs().mean(dim=(1, 2), keepdim=True)
    changed = torch.where(is_rounding, changed, changed * (before / after))
    return torch.where((weights_NS == 1).all(dim=1)[:, None, None].to(states_NSD.device), states_NSD, changed)


def joined(states_NSD: Tensor) -> Tensor:
    """(N, S, D) chunks to one text of N S tokens, (1, N S, D)."""
    return states_NSD.reshape(1, -1, states_NSD.shape[-1])


def most_chunks(tokenizers: Sequence[Tokenizer], prompts: Sequence[str]) -> int:
    """The chunks of the longest of some prompts; all towers take as many."""
    return max(len(chunks_of(tokenizer, prompt).ids) for tokenizer in tokenizers for prompt in prompts)
