"""Combinations that training never draws: they measure whether the prior composes words it knows.

A held-out pair (kind, main colour) is left out with any second colour; a held-out triple is (kind, main, second).
About 8 % of the combinations, by a hash that never changes, and the ones listed here.
"""

from __future__ import annotations

import functools
import zlib

import numpy as np

from nerf3d.toybox import captions
from nerf3d.toybox.kinds import KINDS
from nerf3d.toybox.words import COLOURS

LISTED = (("table", "red"), ("chair", "purple"), ("mushroom", "blue", "yellow"), ("house", "pink", "blue"))
HELD_OUT_SHARE = 0.08

TAUGHT = (("mushroom", "red"), ("mushroom", "red", "white"))
"""Never held out: the first example of the documentation is an object that training has seen."""

_PERIOD = 100_003


def _rank(*combination: str) -> float:
    """A fixed number in [0, 1) for a combination of words."""
    return zlib.crc32("|".join(combination).encode()) % _PERIOD / _PERIOD


@functools.cache
def held_out_colours(kind: str) -> frozenset[str]:
    """Main colours never drawn for a kind: at least one, so that every kind can be tested."""
    listed = [c[1] for c in LISTED if len(c) == 2 and c[0] == kind]
    reserved = {c[1] for c in LISTED if len(c) == 3 and c[0] == kind} | {c[1] for c in TAUGHT if c[0] == kind}
    ranks = {colour: _rank(kind, colour) for colour in COLOURS if colour not in reserved}
    hashed = [colour for colour, rank in ranks.items() if rank < HELD_OUT_SHARE]
    return frozenset(listed + hashed or [min(ranks, key=lambda colour: ranks[colour])])


@functools.cache
def is_held_out(kind: str, main: str, second: str | None = None) -> bool:
    """Whether a colour combination is kept from training. second: the other named colour, if there is one."""
    if main in held_out_colours(kind):
        return True
    if second is None or second == main or (kind, main, second) in TAUGHT:
        return False
    return (kind, main, second) in LISTED or _rank(kind, main, second) < HELD_OUT_SHARE


def held_out_prompts(num: int, seed: int = 0) -> list[str]:
    """num plain prompts with held-out colours, without view words; every kind once before any comes twice.

    Half of the prompts of kinds with several parts name two colours. The same arguments give the same list.
    """
    rng = np.random.default_rng([seed, 7])
    names = list(KINDS)
    prompts: list[str] = []
    while len(prompts) < num:
        for position in rng.permutation(len(names))[: num - len(prompts)]:
            kind = KINDS[names[position]]
            mains = sorted(held_out_colours(kind.name))
            if len(kind.parts) > 1 and rng.random() < 0.5:
                pairs = [(m, s) for m in COLOURS for s in COLOURS if m != s and is_held_out(kind.name, m, s)]
                pairs = [(m, s) for m, s in pairs if m not in mains] or pairs
                main, colour = pairs[rng.integers(len(pairs))]
                part = kind.parts[1 + rng.integers(len(kind.parts) - 1)]
                prompts.append(captions.plain_prompt(kind, main, second=(part, colour)))
            else:
                prompts.append(captions.plain_prompt(kind, mains[rng.integers(len(mains))]))
    return prompts
