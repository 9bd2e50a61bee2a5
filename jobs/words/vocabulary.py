"""The warning for words that a prior was never shown."""

from __future__ import annotations

from collections.abc import Iterator

from jobs.events import Message
from jobs.prior_client import PriorClient

__all__ = ["warn_of_unknown_words"]


def warn_of_unknown_words(prior: PriorClient, prompt: str) -> Iterator[Message]:
    """A warning naming the unknown words, what the prior knows, and how to bring another prior; or nothing."""
    unknown = prior.unknown_words([prompt])
    if not unknown:
        return
    info = prior.info()
    words = ", ".join(unknown)
    text = f"The prior {info.name!r} was never shown: {words}. It will guess, and probably ignore them."
    if info.vocabulary:
        text += f" It knows: {', '.join(info.vocabulary)}."
    text += " For free text give another prior: --prior FOLDER with weights in Stable Diffusion's layout."
    yield Message(text=text, level="warning")
