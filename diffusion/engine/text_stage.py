"""Encoding prompts: each once, alone, so that neighbours never matter; the latest used ones are kept."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from diffusion.engine.ticket import Ticket, missing_texts
from diffusion.requests import Condition


class EncodesText(Protocol):
    """(B prompts) -> (B, L, D)."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor: ...


class TextStage:
    """At most `per_step` new prompts a step; `kept` encoded prompts stay, the least recently used goes first."""

    def __init__(self, model: EncodesText, *, per_step: int, kept: int) -> None:
        self._model = model
        self._per_step = self._left = per_step
        self._kept = kept
        self._cache: OrderedDict[str, Tensor] = OrderedDict()

    def new_step(self) -> None:
        """Prompts may be encoded again."""
        self._left = self._per_step

    def condition(self, ticket: Ticket) -> Condition | None:
        """The ticket's encoded prompts, or None while some are still to be encoded in a later step."""
        for text in missing_texts(ticket):
            if text in self._cache:
                self._cache.move_to_end(text)
            elif self._left > 0:
                self._left -= 1
                self._cache[text] = self._model.encode_text([text])[0]
            else:
                return None
            ticket.texts[text] = self._cache[text]
            if len(self._cache) > self._kept:
                self._cache.popitem(last=False)
        tokens, negative = (
            torch.stack([ticket.texts[text] for text in texts]) for texts in (ticket.prompts, ticket.negative_prompts)
        )
        return Condition(tokens, negative)
