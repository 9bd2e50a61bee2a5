"""What is kept of a row beside its picture."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jobs.batch_images import BatchImagesSpec, Failed, Generated, Picture, Row, extra_columns, extra_values
from jobs.batch_images.cells import ADAPTERS
from orchestrator.batch.scores import score_columns
from orchestrator.run.picture_metadata import adapter_words, encode_picture

__all__ = ["COLUMNS", "Finished", "column_types", "encode", "failed", "stem"]

COLUMNS = {
    "index": "int",
    "status": "text",
    "error": "text",
    "prompt": "text",
    "negative_prompt": "text",
    "seed": "int",
    "sampler": "text",
    "timestep_spacing": "text",
    "num_steps": "int",
    "guidance_scale": "float",
    "guidance_rescale": "float",
    "init_image": "text",
    "mask": "text",
    "strength": "float",
    "width": "int",
    "height": "int",
    "sha256": "text",
    "prior_hash": "text",
    "table_file": "text",
    "table_row": "int",
}
"""Name -> type of what is known of every row; the table's own columns follow. sha256 is the PNG file's."""
NO_SCORES: Mapping[str, Any] = {}
RESERVED = ("image", "file_name")
"""Names that the formats need."""


@dataclass(frozen=True, eq=False)
class Finished:
    """A row as an output format gets it.

    Args:
        record: `column_types` says what it holds.
        png: the picture as a PNG file, None for a row that failed.
        is_new: not taken over from an earlier attempt.
    """

    record: dict[str, Any]
    png: bytes | None
    is_new: bool = True

    @property
    def index(self) -> int:
        """The row's, over the whole table."""
        return self.record["index"]


def stem(index: int) -> str:
    """Picture 7 is called 000000007 everywhere."""
    return f"{index:09d}"


def column_types(spec: BatchImagesSpec) -> dict[str, str]:
    """Column -> type of every record of this job, in order; a column of the table whose name we use becomes table_NAME."""
    return own_columns(spec) | {kept: spec.table.columns[name] for name, kept in kept_names(spec).items()}


def own_columns(spec: BatchImagesSpec) -> dict[str, str]:
    """Name -> type of what is known of every row of this job, the table's own columns apart.

    Files and hashes of LoRAs and textual inversions are among it where the job or its table has some.
    """
    used = [name for name, setting in ADAPTERS.items() if getattr(spec, setting) or name in spec.table.columns]
    files = [column for name in used for column in (name, f"{name}_sha256")]
    return COLUMNS | dict.fromkeys(files, "text") | score_columns(spec)


def encode(
    spec: BatchImagesSpec,
    drawn: Generated,
    *,
    prior_hash: str,
    index: int | None = None,
    scores: Mapping[str, Any] = NO_SCORES,
) -> Finished:
    """A picture that was drawn, as a PNG file with everything in its text chunks that a single prompt's has.

    Args:
        index: of the row, where rows are numbered; it is in the PNG too. scores: see `PictureScores`.
    """
    picture, source = drawn.picture, drawn.source
    image = (
        picture.image
        if source is None
        else replace(picture.image, init_image=source.hashes.get("init_image"), mask=source.hashes.get("mask"))
    )
    png = encode_picture(image, drawn.image, prior_hash=prior_hash, index=index)
    height, width, _ = drawn.image.shape
    return keep(spec, picture, png, (width, height), prior_hash=prior_hash, scores=scores)


def keep(
    spec: BatchImagesSpec,
    picture: Picture,
    png: bytes,
    size: tuple[int, int],
    *,
    prior_hash: str,
    is_new: bool = True,
    scores: Mapping[str, Any] = NO_SCORES,
) -> Finished:
    """A picture that exists as a file's bytes; size is (width, height)."""
    image = picture.image
    record = {
        "index": picture.row.index,
        "status": "succeeded",
        "error": None,
        "prompt": image.prompt,
        "negative_prompt": image.negative_prompt,
        "seed": image.seed,
        "sampler": image.sampler,
        "timestep_spacing": image.timestep_spacing,
        "num_steps": image.num_steps,
        "guidance_scale": image.guidance_scale,
        "guidance_rescale": image.guidance_rescale,
        "init_image": image.init_image,
        "mask": image.mask,
        "strength": image.strength if image.init_image is not None else None,
        "width": size[0],
        "height": size[1],
        "sha256": hashlib.sha256(png).hexdigest(),
        "prior_hash": prior_hash,
        **dict(_place(picture.row)),
        **{name: value for name, value in adapter_words(image).items() if name in own_columns(spec)},
        **scores,
        **_extras(spec, picture.row),
    }
    return Finished(record, png, is_new)


def failed(spec: BatchImagesSpec, failure: Failed) -> Finished:
    """A row without a picture."""
    prompt = failure.row.values.get(spec.prompt_column)
    known = {
        "index": failure.row.index,
        "status": "failed",
        "error": failure.message,
        "prompt": prompt if isinstance(prompt, str) else None,
        **dict(_place(failure.row)),
    }
    return Finished({**dict.fromkeys(own_columns(spec)), **known, **_extras(spec, failure.row)}, None)


def kept_names(spec: BatchImagesSpec) -> dict[str, str]:
    """Column of the table -> what it is called beside ours: its own name, or table_NAME where that is ours.

    A table that has both `index` and `table_index` gives `table_table_index` and `table_index`: none takes another's place.
    """
    return dict(_kept_names(tuple(extra_columns(spec)), frozenset((*own_columns(spec), *RESERVED))))


@functools.lru_cache(maxsize=16)
def _kept_names(columns: tuple[str, ...], reserved: frozenset[str]) -> tuple[tuple[str, str], ...]:
    names = {column: column for column in columns if column not in reserved}
    for column in (column for column in columns if column in reserved):
        name = f"table_{column}"
        while name in reserved or name in names.values():
            name = f"table_{name}"
        names[column] = name
    return tuple((column, names[column]) for column in columns)


def _place(row: Row) -> Iterator[tuple[str, Any]]:
    yield "table_file", row.file
    yield "table_row", row.number


def _extras(spec: BatchImagesSpec, row: Row) -> dict[str, Any]:
    names = kept_names(spec)
    return {names[name]: value for name, value in extra_values(spec, row).items()}
