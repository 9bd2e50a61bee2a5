"""The way from rows to pictures: grouped by settings, asked of the prior in chunks, answered in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jobs.batch_images.cells import Failed, Picture, failed, read_row
from jobs.batch_images.spec import BatchImagesSpec
from jobs.batch_images.table import Row, batched
from jobs.errors import InputError, JobFailed
from jobs.images import EditSource, draw_request
from jobs.prior_client import PriorClient, PriorInfo

__all__ = ["Drawn", "LoadSource", "draw_rows"]

LEAST_ROWS_TO_BLAME_THE_PRIOR = 16
CHUNKS_PER_WINDOW = 16

LoadSource = Callable[[Picture, int], EditSource]
"""(a picture with an initial image, pixels per side) -> what it starts from; raises InputError."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A picture that was drawn, uint8 (H, W, 3), and what it started from."""

    picture: Picture
    image: np.ndarray
    source: EditSource | None = None

    @property
    def row(self) -> Row:
        """Where it comes from."""
        return self.picture.row


def draw_rows(
    spec: BatchImagesSpec,
    rows: Iterable[Row],
    prior: PriorClient,
    *,
    info: PriorInfo,
    load_source: LoadSource | None = None,
) -> Iterator[Drawn | Failed]:
    """Draw the rows and yield one answer a row, in their order.

    Rows with the same settings are drawn together, at most `chunk_size` at once, within windows of 16 chunks: what is held
    does not grow with the number of rows. When a forward pass fails, its rows are tried one by one, so that a poisonous
    row fails alone.

    Args:
        info: the prior's; fetched once by the caller.
        load_source: reads initial images and masks; without it such rows fail.

    Raises:
        JobFailed: the prior itself is gone, or failed at every one of many rows.
    """
    drawing = _Drawing(spec, prior, info, load_source)
    reached = num_failed = 0
    for window in batched(rows, spec.chunk_size * CHUNKS_PER_WINDOW):
        for answer in drawing.window(window):
            yield answer
            blamed = isinstance(answer, Failed) and answer.cause == "prior"
            reached += blamed or isinstance(answer, Drawn)
            num_failed += blamed
            if isinstance(answer, Failed) and num_failed == reached >= LEAST_ROWS_TO_BLAME_THE_PRIOR:
                raise JobFailed(f"The prior failed at each of the first {num_failed} rows that reached it; {answer.message}")


@dataclass(frozen=True)
class _Drawing:
    spec: BatchImagesSpec
    prior: PriorClient
    info: PriorInfo
    load_source: LoadSource | None

    def window(self, rows: Sequence[Row]) -> Iterator[Drawn | Failed]:
        """Answers in the order of the rows, each as soon as those before it are there."""
        answers: dict[int, Drawn | Failed] = {}
        groups: dict[object, list[Picture]] = {}
        for row in rows:
            picture = read_row(self.spec, row, self.info)
            if isinstance(picture, Failed):
                answers[row.index] = picture
            else:
                groups.setdefault(picture.together, []).append(picture)
        waiting = deque(row.index for row in rows)
        for pictures in groups.values():
            for chunk in batched(pictures, self.spec.chunk_size):
                for answer in self._chunk(chunk):
                    answers[answer.row.index] = answer
                while waiting and waiting[0] in answers:
                    yield answers.pop(waiting.popleft())
        for index in waiting:
            yield answers[index]

    def _chunk(self, pictures: Sequence[Picture]) -> Iterator[Drawn | Failed]:
        ready: list[tuple[Picture, EditSource | None]] = []
        for picture in pictures:
            try:
                ready.append((picture, self._source(picture)))
            except InputError as error:
                yield failed(picture.row, "initial image", str(error))
        if not ready:
            return
        try:
            yield from self._together(ready)
        except Exception:
            self.prior.info()  # raises where the prior is gone; then no row is to blame
            for picture, source in ready:
                yield self._alone(picture, source)

    def _alone(self, picture: Picture, source: EditSource | None) -> Drawn | Failed:
        try:
            return self._together([(picture, source)])[0]
        except Exception as error:
            self.prior.info()
            words = str(error) if isinstance(error, (JobFailed, InputError)) else f"{type(error).__name__}: {error}"
            return failed(picture.row, "prior", words)

    def _together(self, ready: Sequence[tuple[Picture, EditSource | None]]) -> list[Drawn]:
        request = draw_request([picture.image for picture, _ in ready], [source for _, source in ready])
        images = self.prior.draw(request)
        return [Drawn(picture=one, source=source, image=array) for (one, source), array in zip(ready, images, strict=True)]

    def _source(self, picture: Picture) -> EditSource | None:
        if picture.image.init_image is None:
            return None
        if self.load_source is None:
            raise InputError("The row has an init_image, but initial images cannot be read here.")
        return self.load_source(picture, self.info.image_size)
