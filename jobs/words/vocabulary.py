"""The warning for words that a prior was never shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from jobs.events import Message
from jobs.prior_client import PriorClient

__all__ = ["warn_of_prompts", "warn_of_unknown_words"]


def warn_of_prompts(prior: PriorClient, *prompts: str) -> Iterator[Message]:
    """A warning for each prompt of which the prior cuts something off or takes another program's syntax for words."""
    for sentence in prior.prompt_warnings([prompt for prompt in prompts if prompt]):
        yield Message(text=sentence, level="warning")


def warn_of_unknown_words(prior: PriorClient, prompt: str) -> Iterator[Message]:
    """A warning naming the unknown words, what the prior knows, and how to bring another prior; or nothing."""
    unknown = prior.unknown_words([prompt])
    if not unknown:
        return
    info = prior.info()
    words = ", ".join(f"{word}{_near(word, info.vocabulary or ())}" for word in unknown)
    text = f"The prior {info.name!r} was never shown: {words}. It will guess, and probably ignore them."
    if info.vocabulary:
        text += f" It knows {len(info.vocabulary)} words; its dreamkiln.json lists them."
    text += " For free text give another prior: --prior FOLDER with weights in Stable Diffusion's layout."
    yield Message(text=text, level="warning")


def _near(word: str, vocabulary: Sequence[str]) -> str:
    """Known words that are spelt nearly so, in brackets."""
    found = difflib.get_close_matches(word, vocabulary, n=2, cutoff=0.7)
    return f" (near: {', '.join(found)})" if found else ""
