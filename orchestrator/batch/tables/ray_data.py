"""Pictures inside a Ray Data pipeline, drawn by the same shared prior that jobs use.

For users who have such a pipeline already: reading, writing and resuming are then Ray Data's. A row that fails keeps its
place, with a status and an error. See docs/batch_images.md for an example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs import codec
from jobs.batch_images import BatchImagesSpec, Failed, Generated, Row, Table, TableFile, generate_rows
from jobs.prior_client import PriorClient
from orchestrator.batch.records import encode
from orchestrator.batch.tables.initial_images import InitialImages
from orchestrator.batch.tables.source import TableSource

__all__ = ["GenerateImages"]


class GenerateImages:
    """A callable class for `ray.data.Dataset.map_batches`, in numpy's batch format.

    Takes batches with a column of prompts, and any of the columns in `jobs.batch_images.SETTINGS`. Adds `image` (a PNG file's
    bytes, None for a row that failed), `image_sha256`, `image_seed`, `status` ("succeeded" or "failed") and `error`.

    Ray Data does not number rows, so a row's seed is its own `seed` cell or follows from `seed` and the prompt: it never
    depends on how the rows were cut into blocks. Two rows with one prompt and no seed are the same picture.

    Args:
        prior: a client that travels to the pool's actors, such as `RayRuntime.prior()`.
        prompt_column: the column that holds the prompts.
        settings: fields of `jobs.batch_images.BatchImagesSpec`, such as num_steps or sampler.

    Raises:
        InputError: a setting that is not allowed.
    """

    def __init__(self, prior: PriorClient, *, prompt_column: str = "prompt", **settings: Any) -> None:
        self._prior = prior
        self._info = prior.info()
        file = TableFile(name="batch", num_bytes=0, sha256="", num_rows=1)
        plain = {"table": Table(files=(file,), columns={prompt_column: "text"}), "prompt_column": prompt_column, **settings}
        self._spec = codec.from_plain(BatchImagesSpec, plain)
        self._load_source = InitialImages(TableSource("", ("batch",), prompt_column))

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with the columns added, in the same order."""
        rows = [self._row(batch, position) for position in range(len(batch[self._spec.prompt_column]))]
        answers = generate_rows(self._spec, rows, self._prior, info=self._info, load_source=self._load_source)
        added: dict[str, list[Any]] = {name: [] for name in ("image", "image_sha256", "image_seed", "status", "error")}
        for answer in answers:
            cells: tuple[Any, ...]
            if isinstance(answer, Failed):
                cells = (None, None, None, "failed", answer.message)
            elif isinstance(answer, Generated):
                drawn = encode(self._spec, answer, prior_hash=self._info.weights_hash)
                cells = (drawn.png, drawn.record["sha256"], str(drawn.record["seed"]), "succeeded", None)
            for column, cell in zip(added.values(), cells, strict=True):
                column.append(cell)
        return {**batch, **{name: np.array(cells, dtype=object) for name, cells in added.items()}}

    def _row(self, batch: Mapping[str, np.ndarray], position: int) -> Row:
        values = {name: _plain(column[position]) for name, column in batch.items()}
        if values.get("seed") in (None, ""):
            words = f"{self._spec.seed}|{values[self._spec.prompt_column]}".encode()
            values["seed"] = int.from_bytes(hashlib.sha256(words).digest()[:7], "big")
        return Row(index=position, file="batch", number=position + 1, values=values)


def _plain(cell: Any) -> Any:
    return cell.item() if isinstance(cell, np.generic) else cell
