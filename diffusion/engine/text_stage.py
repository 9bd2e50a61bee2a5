"""Encoding prompts, a few new ones a step, so that a request with many of them does not hold up the others."""

from collections.abc import Sequence
from typing import Protocol

from diffusion.engine.ticket import Ticket
from diffusion.requests import Condition
from diffusion.text.row_cache import side_by_side


class EncodesText(Protocol):
    """See `diffusion.prior.Prior`, which keeps what it has encoded."""

    def condition(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Condition:
        """The encoded prompts, one row each, with what the unconditional side is told."""
        ...

    def has_condition(self, prompt: str, negative_prompt: str = "") -> bool:
        """Whether the pair is encoded already."""
        ...


class TextStage:
    """At most `per_step` new pairs (prompt, negative prompt) a step, each encoded by its ticket's own model."""

    def __init__(self, *, per_step: int) -> None:
        self._per_step = self._left = per_step

    def new_step(self) -> None:
        """Prompts may be encoded again."""
        self._left = self._per_step

    def condition(self, ticket: Ticket) -> Condition | None:
        """The ticket's encoded prompts, or None while some are still to be encoded in a later step."""
        pairs = list(zip(ticket.prompts, ticket.negative_prompts, strict=True))
        model: EncodesText = ticket.model
        count = getattr(model, "num_chunks", None)
        more = {} if count is None else {"num_chunks": count([*ticket.prompts, *ticket.negative_prompts])}
        more |= {} if ticket.size is None else {"size": ticket.size}
        for pair in dict.fromkeys(pairs):
            if pair in ticket.texts:
                continue
            if not model.has_condition(*pair, **more):
                if self._left == 0:
                    return None
                self._left -= 1
            ticket.texts[pair] = model.condition([pair[0]], [pair[1]], **more)
        rows = [ticket.texts[pair] for pair in pairs]
        ticket.texts = {}
        negatives = [row.negative[0] for row in rows if row.negative is not None]
        return Condition(side_by_side([row.tokens[0] for row in rows]), side_by_side(negatives) if negatives else None)
