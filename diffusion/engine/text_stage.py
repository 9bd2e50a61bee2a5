"""Encoding prompts: each pair once, alone, so that neighbours never matter; the latest used ones are kept."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import torch

from diffusion.engine.ticket import Ticket
from diffusion.requests import Condition


class EncodesText(Protocol):
    """See `diffusion.prior.Prior.condition`."""

    def condition(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Condition: ...


class TextStage:
    """At most `per_step` new pairs (prompt, negative prompt) a step; `kept` of them stay, the least recently used goes."""

    def __init__(self, model: EncodesText, *, per_step: int, kept: int) -> None:
        self._model = model
        self._per_step = self._left = per_step
        self._kept = kept
        self._cache: OrderedDict[tuple[str, str], Condition] = OrderedDict()

    def new_step(self) -> None:
        """Prompts may be encoded again."""
        self._left = self._per_step

    def condition(self, ticket: Ticket) -> Condition | None:
        """The ticket's encoded prompts, or None while some are still to be encoded in a later step."""
        pairs = list(zip(ticket.prompts, ticket.negative_prompts, strict=True))
        for pair in dict.fromkeys(pairs):
            if pair in ticket.texts:
                continue
            if pair in self._cache:
                self._cache.move_to_end(pair)
            elif self._left > 0:
                self._left -= 1
                self._cache[pair] = self._model.condition([pair[0]], [pair[1]])
            else:
                return None
            ticket.texts[pair] = self._cache[pair]
            if len(self._cache) > self._kept:
                self._cache.popitem(last=False)
        rows = [ticket.texts[pair] for pair in pairs]
        negatives = [row.negative for row in rows if row.negative is not None]
        return Condition(torch.cat([row.tokens for row in rows]), torch.cat(negatives) if negatives else None)
