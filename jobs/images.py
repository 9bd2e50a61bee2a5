"""The recipe of an image job: N pictures of one prompt, image i from seed + i, in chunks that share a forward pass.

With a prior that takes cameras they may be views of one object, which are drawn together.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffusion.requests import Guidance
from jobs.errors import InputError
from jobs.events import Event, ImageReady, ImagesUnderWay, Message, Progress
from jobs.late_start import warn_of_late_start
from jobs.pace import Pace
from jobs.prior_client import DrawRequest, PriorClient, PriorInfo
from jobs.specs import ImagesSpec
from jobs.words.vocabulary import warn_of_prompts, warn_of_unknown_words
from nerf3d.cameras import Cameras

__all__ = ["EditSource", "ImagesResult", "chunks", "draw_request", "image_seed", "images"]


@dataclass(frozen=True, eq=False)
class EditSource:
    """What an editing job starts from, at the prior's image size.

    Args:
        image: (3, S, S) in [0, 1].
        mask: (1, S, S) in [0, 1], 1 where the image is repainted, 0 where it stays to the last bit; None repaints all.
        hashes: sha256 of the pixels as they were given, as `ImagesSpec.init_image` and `mask` have them.
    """

    image: Tensor
    mask: Tensor | None = None
    hashes: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class ImagesResult:
    """num_drawn: images drawn now (a resumed job draws only what was missing). seconds: stage -> wall-clock seconds."""

    num_drawn: int
    seconds: dict[str, float]


def image_seed(spec: ImagesSpec, index: int) -> int:
    """Image i of seed s is image 0 of seed s + i, so any picture of a grid can be drawn again alone.

    Views of one object share its seed.
    """
    return spec.seed + index // max(1, spec.num_views)


def chunks(spec: ImagesSpec, done: Collection[int] = ()) -> list[range]:
    """Chunks of image indices that still need drawing.

    Chunk borders depend on the spec alone and a chunk with one missing image is drawn whole: the batch an image is
    computed in, and so its last bit, is then the same in a resumed and in an undisturbed job.
    """
    views = max(1, spec.num_views)
    size = max(spec.chunk_size // views, 1) * views
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
    for note in info.notes:
        yield Message(text=note)
    yield from warn_of_late_start(spec, info)
    yield from warn_of_unknown_words(prior, spec.prompt)
    yield from warn_of_prompts(prior, spec.prompt, spec.negative_prompt)
    todo = chunks(spec, done)
    total = spec.num_images
    num_done = total - sum(map(len, todo))
    yield Progress(stage="draw", step=num_done, total=total)
    pace = Pace(clock=clock)
    for chunk in todo:
        request = _request(spec, info, chunk, source)
        pictures = (yield from _watched(prior, request, chunk, preview_every)) if preview_every else prior.draw(request)
        for index, seed, picture in zip(chunk, request.seeds, pictures, strict=True):
            yield ImageReady(index=index, seed=seed, image=picture)
        num_done += len(chunk)
        yield Progress(stage="draw", step=num_done, total=total, seconds_left=pace.lap(len(chunk), left=total - num_done))
    return ImagesResult(num_drawn=sum(map(len, todo)), seconds={"draw": clock() - begin})


def _watched(prior: PriorClient, request: DrawRequest, chunk: range, every: int) -> Generator[ImagesUnderWay, None, np.ndarray]:
    drawing = prior.draw_watched(request, every=every)
    while True:
        try:
            glimpse = next(drawing)
        except StopIteration as finished:
            return finished.value
        yield ImagesUnderWay(index=chunk[glimpse.first], steps=glimpse.steps, images=glimpse.images)


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


def _request(spec: ImagesSpec, info: PriorInfo, chunk: range, source: EditSource | None) -> DrawRequest:
    one = dataclasses.replace(spec, num_images=1, num_views=0)
    request = draw_request([dataclasses.replace(one, seed=image_seed(spec, index)) for index in chunk], [source] * len(chunk))
    if not spec.num_views:
        return request
    azimuths = [spec.azimuth_of(index) for index in range(len(chunk))]  # a chunk begins with an object
    cameras = Cameras.orbit(azimuths, spec.elevation_degrees).pose_vectors()
    prompts = (spec.prompt + info.picture_suffix,) * len(chunk)
    return dataclasses.replace(request, prompts=prompts, cameras=cameras, group_views=spec.num_views)


def draw_request(pictures: Sequence[ImagesSpec], sources: Sequence[EditSource | None]) -> DrawRequest:
    """One request for pictures that differ in prompt, seed and initial picture alone; of each spec, its image 0.

    Whatever draws pictures asks with it, so that a picture is the same from a prompt and from a row of a table.

    Args:
        sources: one a picture, all of them None or none of them.
    """
    first = pictures[0]
    given = [source for source in sources if source is not None]
    masks = [source.mask for source in given if source.mask is not None]
    return DrawRequest(
        prompts=tuple(picture.prompt for picture in pictures),
        seeds=tuple(picture.seed for picture in pictures),
        num_steps=first.num_steps,
        sampler=first.sampler,
        timestep_spacing=first.timestep_spacing,
        guidance=Guidance(scale=first.guidance_scale, rescale=first.guidance_rescale, interval=first.guidance_interval),
        negative_prompt=first.negative_prompt,
        init_images=torch.stack([source.image for source in given]) if given else None,
        masks=torch.stack(masks) if masks else None,
        strength=1.0 if first.strength is None else first.strength,
        strict=first.strict,
    )
