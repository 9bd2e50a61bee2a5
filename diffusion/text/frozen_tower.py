"""The toybox prior's text tower, as it ships: what the family's small text-conditional models read captions with.

It is not trained further and not saved with a model; a model keeps its hash, so that one trained with another tower is
noticed when it is loaded.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.errors import DiffusionError
from diffusion.prior import TOYBOX, Prior, hash_files
from diffusion.text.clip import TextEncoder, end_of_text
from diffusion.text.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class TextStates:
    """Captions as the tower reads them: tokens (B, S, D) after its last layer, pooled (B, D) at the end of the text."""

    tokens: Tensor
    pooled: Tensor


class FrozenTower(nn.Module):
    """Captions to states, without gradient. It has no parameters, only the buffer with the tower's hash."""

    fingerprint: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fingerprint", _fingerprint())

    @property
    def width(self) -> int:
        """D, the length of a state."""
        return _tower("cpu")[0].config.width

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> TextStates:
        """B captions -> their states on the device of this module; each distinct caption is read once."""
        device = self.fingerprint.device
        encoder, tokenizer = _tower(str(device))
        distinct = list(dict.fromkeys(captions))
        ids = tokenizer(distinct).to(device)
        # Autocast off: the states are the same in training and in sampling.
        with torch.autocast(device.type, enabled=False):
            states = encoder(ids)
        pooled = end_of_text(states, ids)
        place = {caption: row for row, caption in enumerate(distinct)}
        rows = torch.tensor([place[caption] for caption in captions], device=device)
        return TextStates(states[rows], pooled[rows])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        saved = state_dict.get(prefix + "fingerprint")
        if saved is not None and not torch.equal(saved.to("cpu", torch.uint8), _fingerprint()):
            raise DiffusionError.explained(
                f"the model was trained with another text tower ({_hex(saved)}...)",
                expected=f"the toybox prior's of this version ({_hex(_fingerprint())}...)",
                fix="train it again, or use the version that it was trained with",
                why="the same words would mean other numbers to it",
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)


@functools.cache
def toybox(device: str) -> Prior:
    """The toybox prior, whose tower and autoencoder the small models read and draw with."""
    return Prior.load("toybox", device=device)


def _tower(device: str) -> tuple[TextEncoder, Tokenizer]:
    ((_, encoder, tokenizer),) = toybox(device).towers
    return encoder, tokenizer


@functools.cache
def _digest() -> bytes:
    weights = sorted((TOYBOX / "text_encoder").glob("*.safetensors"))
    return bytes.fromhex(hash_files([*weights, TOYBOX / "tokenizer/merges.txt"]))


def _fingerprint() -> Tensor:
    """(32,) uint8: sha256 of the tower's weights and of the tokenizer's merges."""
    return torch.tensor(list(_digest()), dtype=torch.uint8)


def _hex(fingerprint: Tensor) -> str:
    return bytes(fingerprint.to("cpu", torch.uint8).tolist()).hex()[:8]
