"""The model card's grid: what the prior draws for every kind, taught and held out, and two-part colours.

Per kind four pictures: a taught colour, a taught pair of colours, a held-out colour, a held-out pair (plain solids have
only the single colours, twice). Held-out ones have an orange frame. Nothing is picked: picture n is drawn from seed + n.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.pictures import write_small_webp
from jobs.errors import DreamKilnError
from nerf3d.toybox.captions import plain_prompt
from nerf3d.toybox.heldout import held_out_colours, is_held_out
from nerf3d.toybox.kinds import KINDS, Kind
from nerf3d.toybox.words import COLOURS

ORANGE, GRAY = (235, 140, 30), (190, 190, 190)
MAX_BYTES = 480_000
TWO_COLOUR_KINDS = 16


def grid_prompts(kind: Kind) -> list[str]:
    """The four prompts of a kind, always the same ones."""
    rng = np.random.default_rng([0, *kind.name.encode()])
    return [_prompt(kind, rng, held_out=held_out, two=two) for held_out in (False, True) for two in (False, True)]


def two_colour_prompts(kind: Kind) -> list[str]:
    """Two pairs of colours, each both ways round, so that a colour on the wrong part shows."""
    rng = np.random.default_rng([1, *kind.name.encode()])
    a, b, c, d = (list(COLOURS)[k] for k in rng.choice(len(COLOURS), 4, replace=False))
    return [plain_prompt(kind, main, second=(kind.parts[1], other)) for main, other in ((a, b), (b, a), (c, d), (d, c))]


def draw_sheet(prompts: list[str], *, prior: str, seed: int, num_columns: int, tile_size: int) -> np.ndarray:
    """One page (H, W, 3) uint8 with a picture for each prompt and the prompt under it.

    Raises:
        InputError: the prior cannot be loaded.
    """
    from jobs.events import Progress
    from orchestrator.host.progress_display import make_display
    from orchestrator.lab.evaluation.captions import held_out
    from orchestrator.lab.evaluation.image_sets import draw_pictures
    from orchestrator.lab.evaluation.picture import Tile, enlarge, labelled_sheet
    from orchestrator.prior.local import load_prior
    from orchestrator.runtimes.base import resolve_device

    tiles: list[Tile] = []
    client = load_prior(prior, resolve_device("auto"))
    with make_display(stream=sys.stderr) as display:
        for chunk in draw_pictures(client, prompts, source=prior, seed=seed):
            for picture in chunk:
                frame = ORANGE if held_out(picture.prompt) else GRAY
                tiles.append(Tile(enlarge(picture.pixels, tile_size), (picture.prompt,), frame))
            display.event(Progress(stage="draw", step=len(tiles), total=len(prompts)))
    return labelled_sheet(tiles, num_columns=num_columns)


def main(arguments: list[str] | None = None) -> int:
    """Writes prior_grid.webp and prior_two_colours.webp."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prior", default="toybox")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", type=int, default=len(KINDS), metavar="N", help="only the first N kinds")
    parser.add_argument("--tile-size", type=int, default=80, help="pixels per picture on the page")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args(arguments)
    kinds = list(KINDS.values())[: max(1, options.kinds)]
    with_parts = [kind for kind in kinds if len(kind.parts) > 1][:TWO_COLOUR_KINDS]
    sheets = {
        "prior_grid": [prompt for kind in kinds for prompt in grid_prompts(kind)],
        "prior_two_colours": [prompt for kind in with_parts for prompt in two_colour_prompts(kind)],
    }
    try:
        for name, prompts in sheets.items():
            if prompts:
                page = draw_sheet(prompts, prior=options.prior, seed=options.seed, num_columns=8, tile_size=options.tile_size)
                print(write_small_webp(page, options.out / f"{name}.webp", max_bytes=MAX_BYTES))
    except DreamKilnError as error:
        print(f"prior_grid: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _prompt(kind: Kind, rng: np.random.Generator, *, held_out: bool, two: bool) -> str:
    """A prompt of the wanted sort; the next best where a kind has none."""
    candidates = list(_pairs(kind, held_out)) if two and len(kind.parts) > 1 else []
    if candidates:
        main, second = candidates[rng.integers(len(candidates))]
        return plain_prompt(kind, main, second=(kind.parts[1 + rng.integers(len(kind.parts) - 1)], second))
    mains = [colour for colour in COLOURS if (colour in held_out_colours(kind.name)) == held_out]
    return plain_prompt(kind, mains[rng.integers(len(mains))])


def _pairs(kind: Kind, held_out: bool) -> Iterator[tuple[str, str]]:
    """Pairs of colours; held-out ones whose main colour alone is taught, so that only the pair is new."""
    for main in COLOURS:
        for second in COLOURS:
            taught_alone = main not in held_out_colours(kind.name)
            if main != second and taught_alone and is_held_out(kind.name, main, second) == held_out:
                yield main, second


if __name__ == "__main__":
    sys.exit(main())
