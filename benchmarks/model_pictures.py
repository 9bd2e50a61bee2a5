"""The pictures of docs/models.md that `dreamkiln images` makes: run it again after the prior's weights have changed.

Every tile is what a command drew, from the seeds that the command says; nothing is picked. The two pictures that an
edit starts from are drawn here and kept beside the results.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.pictures import write_small_webp

OUT = Path("docs/pictures/models")
MAX_BYTES = 60_000
TILE_SIZE = 96
MUSHROOM = "a red mushroom with a white stem"
CHAIR = "a blue chair"
FOLLOW_THE_FLOW = ("ddim", "dpmpp_2m", "unipc", "heun", "flow_heun", "euler", "pndm", "pndm_prk")
SAMPLERS = (*FOLLOW_THE_FLOW, "euler_ancestral", "ddpm", "dpmpp_2m_sde", "lcm")


@dataclass(frozen=True)
class Row:
    """arguments: of `dreamkiln images`; STROKES, PICTURE and MASK stand for files. label: under each of its pictures."""

    label: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Sheet:
    """One picture of the page. given: files shown before what the rows draw."""

    rows: tuple[Row, ...]
    num_columns: int
    given: tuple[str, ...] = ()


SHEETS: dict[str, Sheet] = {
    "latent_diffusion": Sheet((Row("", (MUSHROOM, "--num-images", "8")),), 8),
    "classifier_free_guidance": Sheet(
        tuple(Row(f"s = {s}", (CHAIR, "--guidance-scale", str(s), "--num-images", "4")) for s in (0, 1, 3, 7)), 8
    ),
    "samplers": Sheet(
        tuple(Row(f"{name}, 20", (MUSHROOM, "--sampler", name, "--steps", "20", "--num-images", "1")) for name in SAMPLERS), 7
    ),
    "sdedit": Sheet(
        tuple(
            Row(
                f"strength {s}", (MUSHROOM, "--init-image", "STROKES", "--strength", str(s), "--num-images", "1", "--seed", "3")
            )
            for s in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
        ),
        7,
        given=("STROKES",),
    ),
    "inpainting": Sheet(
        tuple(
            Row(prompt, (prompt, "--init-image", "PICTURE", "--mask", "MASK", "--num-images", "2"))
            for prompt in ("a green mushroom with a white stem", "a yellow mushroom with a white stem")
        ),
        6,
        given=("PICTURE", "MASK"),
    ),
}


def strokes(size: int = 64) -> np.ndarray:
    """A mushroom in three strokes, (size, size, 3) uint8."""
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (size, size), (150, 170, 190))
    pen = ImageDraw.Draw(page)
    pen.rectangle((0.44 * size, 0.5 * size, 0.56 * size, 0.8 * size), fill=(240, 240, 235))
    pen.ellipse((0.25 * size, 0.25 * size, 0.75 * size, 0.56 * size), fill=(200, 30, 30))
    return np.asarray(page)


def upper_half(size: int = 64) -> np.ndarray:
    """White where the mushroom's cap is, (size, size, 3) uint8."""
    mask = np.zeros((size, size, 3), np.uint8)
    mask[: round(0.55 * size)] = 255
    return mask


def draw(row: Row, files: dict[str, Path], overrides: Sequence[str]) -> list[np.ndarray]:
    """Run the row's command in this process; returns its pictures (H, W, 3) uint8.

    Raises RuntimeError if the command fails; it has said why on stderr.
    """
    from orchestrator.cli.main import main as dreamkiln
    from orchestrator.lab.evaluation.image_sets import read_pictures

    with tempfile.TemporaryDirectory(prefix="dreamkiln-models-") as folder:
        out = Path(folder) / "run"
        arguments = [str(files.get(argument, argument)) for argument in row.arguments]
        with contextlib.redirect_stdout(sys.stderr):
            code = dreamkiln(["images", *arguments, "--out", str(out), "--runtime", "inline", *overrides])
        if code:
            raise RuntimeError(f"dreamkiln images {' '.join(arguments)} ended with exit code {code}")
        return [picture.pixels for picture in read_pictures(out)]


def draw_sheet(sheet: Sheet, files: dict[str, Path], overrides: Sequence[str]) -> np.ndarray:
    """The page (H, W, 3) uint8 of one sheet."""
    from PIL import Image

    from orchestrator.lab.evaluation.picture import Tile, enlarge, labelled_sheet

    tiles = []
    for name in sheet.given:
        with Image.open(files[name]) as image:
            tiles.append(Tile(enlarge(np.asarray(image.convert("RGB")), TILE_SIZE), (name.lower(),)))
    for row in sheet.rows:
        tiles += [Tile(enlarge(picture, TILE_SIZE), (row.label,)) for picture in draw(row, files, overrides)]
    return labelled_sheet(tiles, num_columns=sheet.num_columns)


def prepare(out: Path, overrides: Sequence[str]) -> dict[str, Path]:
    """Write the files that edits start from."""
    from orchestrator.exports import write_png

    (picture,) = draw(Row("", (MUSHROOM, "--num-images", "1")), {}, overrides)
    out.mkdir(parents=True, exist_ok=True)
    inputs = {"STROKES": strokes(len(picture)), "PICTURE": picture, "MASK": upper_half(len(picture))}
    return {name: write_png(pixels, out / f"{name.lower()}.png") for name, pixels in inputs.items()}


def main(arguments: list[str] | None = None) -> int:
    """Writes one WebP a sheet; 1 if a command failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(SHEETS), default=list(SHEETS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="after --: for every command")
    options = parser.parse_args(arguments)
    try:
        with _one_prior_for_all():
            files = prepare(options.out, options.overrides)
            for name in options.only:
                page = draw_sheet(SHEETS[name], files, options.overrides)
                print(write_small_webp(page, options.out / f"{name}.webp", max_bytes=MAX_BYTES), flush=True)
    except RuntimeError as error:
        print(f"model_pictures: {error}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _one_prior_for_all() -> Iterator[None]:
    """The commands share one loaded prior, so that it is read once instead of two dozen times."""
    from orchestrator.prior import local

    load_prior = local.load_prior
    local.load_prior = functools.cache(load_prior)
    try:
        yield
    finally:
        local.load_prior = load_prior


if __name__ == "__main__":
    sys.exit(main())
