"""`dreamkiln examples`: the files that the commands of the documentation take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import OutputError

NAME = "examples"
HELP = "Write what the documentation's commands need: strokes, a picture, its mask, tables of prompts."
SIZE = 64
PROMPT = "a red mushroom with a white stem"
PROMPTS = ("a red house", "a blue duck", "a yellow lighthouse", "a green rocket", "an orange mug", "a purple chair")

Folder = Annotated[Path, typer.Argument(help="Where to write them; made if it is not there.")]


def command(folder: Folder = Path("examples")) -> None:
    """Files that are there already are left alone, and refused."""
    from orchestrator.host.atomic import write_bytes

    files = _files()
    taken = [name for name in files if (folder / name).exists()]
    if taken:
        raise OutputError(f"{folder / taken[0]} is there already; give another folder, or remove it.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} could not be made ({error.strerror}); give another folder.") from error
    for name, data in files.items():
        write_bytes(folder / name, data)
    print(f"{len(files)} files in {folder}; try:")
    print(f'  dreamkiln images "{PROMPT}" --init-image {folder}/strokes.png --strength 0.6')
    print(f'  dreamkiln images "a green mushroom" --init-image {folder}/picture.png --mask {folder}/mask.png')
    print(f"  dreamkiln images --prompts {folder}/prompts.csv --out pictures")


def _files() -> dict[str, bytes]:
    """Name -> content."""
    import io

    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": prompt, "seed": seed} for seed, prompt in enumerate(PROMPTS)]
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    csv = "".join(f"{row['prompt']},{row['seed']}\n" for row in rows)
    return {
        "strokes.png": _png(_strokes()),
        "picture.png": _png(_picture()),
        "mask.png": _png(_mask()),
        "prompts.csv": f"prompt,seed\n{csv}".encode(),
        "prompts.txt": "".join(f"{prompt}\n" for prompt in PROMPTS).encode(),
        "table.parquet": table.getvalue(),
    }


def _png(image: object) -> bytes:
    from orchestrator.exports.png_metadata import encode_png

    return encode_png(image, {})  # type: ignore[arg-type]


def _strokes() -> object:
    """A mushroom in two strokes, (64, 64, 3) uint8."""
    import numpy as np
    from PIL import Image, ImageDraw

    page = Image.new("RGB", (SIZE, SIZE), (150, 170, 190))
    pen = ImageDraw.Draw(page)
    pen.rectangle((28, 32, 36, 51), fill=(240, 240, 235))
    pen.ellipse((16, 16, 48, 36), fill=(200, 30, 30))
    return np.asarray(page)


def _picture() -> object:
    """The mushroom as the toybox has it, (64, 64, 3) uint8."""
    from nerf3d.cameras import Cameras
    from nerf3d.toybox.render import render_object
    from nerf3d.toybox.truth import object_from_prompt

    mushroom = object_from_prompt(PROMPT)
    assert mushroom is not None
    rgb, _ = render_object(mushroom.parts, Cameras.orbit([20.0], [15.0]), SIZE, background=(0.6, 0.67, 0.75))
    return (rgb[0].permute(1, 2, 0) * 255 + 0.5).byte().numpy()


def _mask() -> object:
    """White over the mushroom's cap, (64, 64, 3) uint8."""
    import numpy as np

    mask = np.zeros((SIZE, SIZE, 3), np.uint8)
    mask[: round(0.55 * SIZE)] = 255
    return mask
