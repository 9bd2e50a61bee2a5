"""What a model of `dreamkiln train objective=…` draws, as a sheet of docs/models.md: sixteen pictures, none picked.

python -m benchmarks.family_pictures training/ncsn --out docs/pictures/models/ncsn.webp

The settings are those of `dreamkiln sample`, such as labels=car,mug num_steps=50; the seeds are 0, 1, 2 …
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.pictures import write_small_webp
from jobs.errors import DreamKilnError
from orchestrator.cli.common import split_overrides
from orchestrator.lab.evaluation.picture import Tile, labelled_sheet
from orchestrator.lab.family.folder import load_model
from orchestrator.lab.family.sample import build_request, check_names
from orchestrator.settings.overrides import diffusion_errors_are_input

NUM_COLUMNS, MAX_BYTES = 8, 60_000
TILE_SIZE = 96
"""About; a pixel of a picture becomes a square of whole pixels."""


def tiles(folder: Path, settings: dict[str, str]) -> list[Tile]:
    """Enlarged pictures of the folder's model, with the names of their labels.

    Raises InputError for a folder that is no model, or a setting that it refuses.
    """
    check_names({"model": str(folder), **settings})
    model, card = load_model(folder)
    with diffusion_errors_are_input():
        request = build_request(settings, model, card)
        pictures = model.sample(request)
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    times = max(1, TILE_SIZE // pixels.shape[1])
    names = [""] * len(pixels) if request.labels is None else [card.classes[label] for label in request.labels]
    return [
        Tile(picture, (name,)) for picture, name in zip(pixels.repeat(times, axis=1).repeat(times, axis=2), names, strict=True)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Draws and writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of `dreamkiln train objective=…`")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of `dreamkiln sample`")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_intermixed_args(arguments)
    try:
        sheet = labelled_sheet(tiles(options.model, split_overrides(options.settings)), num_columns=NUM_COLUMNS)
    except DreamKilnError as error:
        print(f"family_pictures: {error}", file=sys.stderr)
        return error.exit_code
    print(write_small_webp(sheet, options.out, max_bytes=MAX_BYTES))
    return 0


if __name__ == "__main__":
    sys.exit(main())
