"""The recipe of an image job: N pictures of one prompt are a table of N rows in memory.

Image i is drawn from seed + i, in chunks that share a forward pass. With a prior that takes cameras they may be views of one
object, which are drawn together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass

from jobs.batch_images import EditSource, Generated, Generation, Picture, Row
from jobs.errors import InputError
from jobs.events import Event, ImageReady, ImagesPreview, Message, Progress
from jobs.late_start import warn_of_late_start
from jobs.pace import Pace
from jobs.prior_client import PriorClient, PriorInfo
from jobs.specs import ImagesSpec
from jobs.words.vocabulary import warn_of_prompts, warn_of_unknown_words

__all__ = ["EditSource", "ImagesResult", "chunks", "images"]


@dataclass(frozen=True)
class ImagesResult:
    """num_drawn: images drawn now (a resumed job draws only what was missing). seconds: stage -> wall-clock seconds."""

    num_drawn: int
    seconds: dict[str, float]


def chunks(spec: ImagesSpec, done: Collection[int] = ()) -> list[range]:
    """Chunks of image indices that still need drawing.

    Chunk borders depend on the spec alone and a chunk with one missing image is drawn whole: the batch an image is
    computed in, and so its last bit, is then the same in a resumed and in an undisturbed job.
    """
    size = _chunk_size(spec)
    borders = [range(start, min(start + size, spec.num_images)) for start in range(0, spec.num_images, size)]
    return [chunk for chunk in borders if any(index not in done for index in chunk)]


def images(
    spec: ImagesSpec,
    prior: PriorClient,
    *,
    source: EditSource | None = None,
    done: Collection[int] = (),
    preview_every: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Event, None, ImagesResult]:
    """Draw the images that are not in `done`; yields each as soon as its chunk is finished.

    Args:
        source: the pictures that spec.init_image and spec.mask name.
        preview_every: sampler steps between two looks at the unfinished images; 0 for none.

    Raises:
        InputError: the spec names a picture and `source` is None.
        PriorFailed: the prior stopped answering.
    """
    begin = clock()
    if spec.init_image is not None and source is None:
        raise InputError(f"The picture with the sha256 {spec.init_image} is not there; start the job with --init-image again.")
    info = prior.info()
    _check_views(spec, info)
    info.size_of(spec.width, spec.height)
    for note in info.notes:
        yield Message(text=note)
    yield from warn_of_late_start(spec, info)
    yield from warn_of_unknown_words(prior, spec.prompt)
    yield from warn_of_prompts(prior, spec.prompt, spec.negative_prompt)
    todo = chunks(spec, done)
    ends = {chunk[-1]: len(chunk) for chunk in todo}
    total, num_left = spec.num_images, sum(map(len, todo))
    yield Progress(stage="draw", step=total - num_left, total=total)
    drawing = Generation(
        prior,
        info,
        _chunk_size(spec),
        None if source is None else lambda picture, info: source,
        group_views=max(1, spec.num_views),
        preview_every=preview_every,
        rows_fail_alone=False,
    )
    pace = Pace(clock=clock)
    for answer in drawing.run(_row(spec, index) for chunk in todo for index in chunk):
        if isinstance(answer, ImagesPreview):
            yield answer
            continue
        assert isinstance(answer, Generated)  # a failure is raised
        index = answer.row.index
        yield ImageReady(index=index, seed=answer.picture.image.seed, image=answer.image)
        if index in ends:
            num_left -= ends[index]
            seconds_left = pace.lap(ends[index], left=num_left)
            yield Progress(stage="draw", step=total - num_left, total=total, seconds_left=seconds_left)
    return ImagesResult(num_drawn=sum(map(len, todo)), seconds={"draw": clock() - begin})


def _row(spec: ImagesSpec, index: int) -> Picture:
    camera = (spec.azimuth_of(index), spec.elevation_degrees) if spec.num_views else None
    row = Row(index=index, file="", number=index + 1, values={"prompt": spec.prompt})
    return Picture(row=row, image=spec.picture(index), camera=camera)


def _chunk_size(spec: ImagesSpec) -> int:
    """Whole objects, where there are views."""
    views = max(1, spec.num_views)
    return max(spec.chunk_size // views, 1) * views


def _check_views(spec: ImagesSpec, info: PriorInfo) -> None:
    """Raises InputError where the prior takes no cameras, or draws another number of views together."""
    if spec.num_views and info.num_views is None:
        raise InputError(
            f"The prior {info.name!r} takes no cameras, so it cannot draw {spec.num_views} views of one object; leave out "
            "--views and name a side in the prompt, such as 'back view', or take a multi-view prior."
        )
    if spec.num_views not in (0, 1, info.num_views):
        raise InputError(
            f"The prior {info.name!r} draws {info.num_views} views of an object together, not {spec.num_views}; give --views "
            f"{info.num_views}, or 1 for single ones."
        )
