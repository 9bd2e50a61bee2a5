"""The captions that an evaluated picture is ranked against: the true ones and distractors, hard ones first.

Captions are plain toybox sentences without view words. Two captions of one pool never mean the same ("a white table" and
"a white table with white legs" do), because then no ranking between them would be right.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nerf3d.toybox import captions as toybox
from nerf3d.toybox.captions import Meaning, Second, plain_prompt
from nerf3d.toybox.heldout import is_held_out
from nerf3d.toybox.kinds import KINDS, Kind
from nerf3d.toybox.words import COLOURS, vocabulary
from nerf3d.view_words import all_view_phrases

__all__ = ["NUM_CAPTIONS", "CaptionPool", "caption_pool", "clay_pool", "held_out", "is_toybox_prompt", "taught_prompts"]

NUM_CAPTIONS = 256
HARD_SHARE = 0.75
TWO_COLOUR_SHARE = 0.45

_VIEW_PHRASES = sorted(all_view_phrases(), key=len, reverse=True)


@dataclass(frozen=True)
class CaptionPool:
    """captions: P sentences of different meaning. truths: per evaluated prompt, the index of its own caption.

    kinds: the toybox kind that each caption names, or "" where it names none.
    """

    captions: tuple[str, ...]
    truths: tuple[int, ...]
    kinds: tuple[str, ...]

    @property
    def digest(self) -> str:
        """sha256 (hex) of the captions: ranks are comparable where this and the judge's weights are equal."""
        return hashlib.sha256("\n".join(self.captions).encode()).hexdigest()


def caption_pool(prompts: Sequence[str], *, num_captions: int = NUM_CAPTIONS, seed: int = 0) -> CaptionPool:
    """The evaluated prompts and distractors, the same ones for the same arguments.

    Three quarters of the distractors are near misses of the prompts in turn: the same kind in another colour, another kind
    in the same colours, the two colours exchanged. The others are drawn from the whole toybox.

    Args:
        prompts: of the evaluated pictures; repeats and view words are allowed.
        num_captions: size of the pool; grows to twice the number of distinct prompts where that is more.
    """
    found: dict[tuple[str, ...], str] = {}
    for prompt in prompts:
        found.setdefault(_meaning(prompt), without_view_words(prompt))
    places = {meaning: place for place, meaning in enumerate(found)}
    size = max(num_captions, 2 * len(found))
    _fill(
        found, _in_turn([_near_misses(c, seed) for c in found.values()]), len(found) + round(HARD_SHARE * (size - len(found)))
    )
    _fill(found, _any_captions(seed), size)
    captions = tuple(found.values())
    return CaptionPool(captions, tuple(places[_meaning(prompt)] for prompt in prompts), tuple(map(kind_of, captions)))


def clay_pool(prompts: Sequence[str]) -> CaptionPool:
    """The captions that white clay is ranked among: every kind in white, since colours are no part of that question.

    A sentence that names no kind stands for itself.
    """
    captions, kinds, truths = [plain_prompt(kind, "white") for kind in KINDS.values()], list(KINDS), []
    for prompt in prompts:
        if kind := kind_of(prompt):
            truths.append(kinds.index(kind))
            continue
        if (text := without_view_words(prompt)) not in captions:
            captions.append(text)
        truths.append(captions.index(text))
    return CaptionPool(tuple(captions), tuple(truths), tuple(map(kind_of, captions)))


def without_view_words(prompt: str) -> str:
    """ "a red car, back view" -> "a red car"."""
    text = " ".join(prompt.split())
    for phrase in _VIEW_PHRASES:
        if text.lower().endswith(phrase):
            return text[: -len(phrase)].rstrip(" ,")
    return text


def kind_of(prompt: str) -> str:
    """The toybox kind that a sentence names, or ""."""
    meaning = toybox.parse(prompt)
    return meaning.kind.name if meaning else ""


def is_toybox_prompt(prompt: str) -> bool:
    """Whether a sentence names a kind and holds no word that the toybox lacks, so that its true object is known."""
    words = re.findall(r"[^\W_]+", prompt.lower())
    return bool(kind_of(prompt)) and set(words) <= set(vocabulary())


def held_out(prompt: str) -> bool | None:
    """Whether training never drew these colours of this kind; None for a sentence that is not the toybox's."""
    meaning = toybox.parse(prompt)
    if meaning is None or not is_toybox_prompt(prompt):
        return None
    main, *others = meaning.colours
    return is_held_out(meaning.kind.name, main) or any(
        is_held_out(meaning.kind.name, main, other) for other in others if other != main
    )


def taught_prompts(num: int, seed: int = 0) -> list[str]:
    """num plain prompts that training may have drawn; every kind once before any comes twice, half with two colours."""
    rng = np.random.default_rng([seed, 17])
    prompts: list[str] = []
    while len(prompts) < num:
        for place in rng.permutation(len(KINDS))[: num - len(prompts)]:
            kind = list(KINDS.values())[place]
            prompts.append(next(c for c in _captions_of(kind, rng, two_colour_share=0.5) if held_out(c) is False))
    return prompts


def _meaning(prompt: str) -> tuple[str, ...]:
    """Equal for captions that name the same object; sentences that name no kind are equal where their words are."""
    meaning = toybox.parse(prompt)
    if meaning is None:
        return ("", *re.findall(r"[^\W_]+", without_view_words(prompt).lower()))
    return (meaning.kind.name, meaning.proportion, *meaning.colours)


def _fill(found: dict[tuple[str, ...], str], candidates: Iterator[str], size: int) -> None:
    """Adds candidates of new meaning until there are `size`, or no more candidates."""
    while len(found) < size and (caption := next(candidates, None)) is not None:
        found.setdefault(_meaning(caption), caption)


def _in_turn(streams: list[Iterator[str]]) -> Iterator[str]:
    """The first of each stream, then the second of each, until all are empty."""
    while streams:
        heads = [(next(stream, None), stream) for stream in streams]
        yield from (head for head, _ in heads if head is not None)
        streams = [stream for head, stream in heads if head is not None]


def _near_misses(caption: str, seed: int) -> Iterator[str]:
    """Distractors of one caption, its worst first; independent of the other captions of the pool."""
    meaning = toybox.parse(caption)
    if meaning is None:
        return
    rng = np.random.default_rng([seed, zlib.crc32(caption.encode())])
    main, second = _main_and_second(meaning)
    if second:
        yield plain_prompt(meaning.kind, second[1], second=(second[0], main))
    colours = [c for c in rng.permutation(list(COLOURS)).tolist() if c != main]
    kinds = [KINDS[k] for k in rng.permutation(list(KINDS)).tolist() if k != meaning.kind.name]
    for number in range(max(len(colours), len(kinds))):
        if number < len(colours):
            yield _caption(meaning.kind, colours[number], second)
        if number < len(kinds):
            kind = kinds[number]
            moved = (kind.parts[1], second[1]) if second and len(kind.parts) > 1 else None
            yield _caption(kind, main, moved)


def _any_captions(seed: int) -> Iterator[str]:
    """Captions from the whole toybox, without end."""
    rng = np.random.default_rng([seed, 13])
    while True:
        kind = list(KINDS.values())[rng.integers(len(KINDS))]
        yield next(_captions_of(kind, rng, two_colour_share=TWO_COLOUR_SHARE))


def _captions_of(kind: Kind, rng: np.random.Generator, *, two_colour_share: float) -> Iterator[str]:
    names = list(COLOURS)
    while True:
        main, other = (names[k] for k in rng.integers(len(names), size=2))
        two = len(kind.parts) > 1 and rng.random() < two_colour_share
        yield _caption(kind, main, (kind.parts[1 + rng.integers(len(kind.parts) - 1)], other) if two else None)


def _caption(kind: Kind, main: str, second: Second | None) -> str:
    return plain_prompt(kind, main, second=second if second and second[1] != main else None)


def _main_and_second(meaning: Meaning) -> tuple[str, Second | None]:
    main = meaning.colours[0]
    parts = zip(meaning.kind.parts, meaning.colours, strict=True)
    return main, next(((part, colour) for part, colour in parts if colour != main), None)
