"""The way from rows to pictures: grouped by settings, asked of the prior in chunks, answered in order.

The pictures of one prompt (`jobs.images`) and those of a table go this way, so a picture is the same from either.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffusion.requests import Guidance
from jobs.batch_images.cells import Cause, Failed, FindAdapters, Picture, failed, read_row
from jobs.batch_images.spec import BatchImagesSpec
from jobs.batch_images.table import Row, batched
from jobs.errors import InputError, JobFailed
from jobs.events import ImagesPreview
from jobs.prior_client import GenerateRequest, PriorClient, PriorInfo
from nerf3d.cameras import Cameras

__all__ = ["EditSource", "Generated", "Generation", "LoadSource", "generate_rows"]

LEAST_ROWS_TO_BLAME_THE_PRIOR = 16
CHUNKS_PER_WINDOW = 16


@dataclass(frozen=True, eq=False)
class EditSource:
    """What an edited picture starts from, at the size that it is drawn in.

    Args:
        image: (3, H, W) in [0, 1].
        mask: (1, H, W) in [0, 1], 1 where the image is repainted, 0 where it stays to the last bit; None repaints all.
        hashes: sha256 of the pixels as they were given, as `ImagesSpec.init_image` and `mask` have them.
    """

    image: Tensor
    mask: Tensor | None = None
    hashes: Mapping[str, str | None] = field(default_factory=dict)


LoadSource = Callable[[Picture, PriorInfo], EditSource]
"""(a picture with an initial image, who draws it) -> what it starts from; raises InputError."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Generated:
    """A picture that was drawn, uint8 (H, W, 3), and what it started from."""

    picture: Picture
    image: np.ndarray
    source: EditSource | None = None

    @property
    def row(self) -> Row:
        """Where it comes from."""
        return self.picture.row


_Ready = tuple[Picture, EditSource | None]


@dataclass(frozen=True)
class Generation:
    """How pictures are drawn.

    Args:
        prior: who draws. info: its own, fetched once by the caller.
        chunk_size: pictures that are asked for at once, at most.
        load_source: reads initial images and masks; without it such rows fail.
        group_views: so many neighbouring pictures are views of one object.
        preview_every: sampler steps between two looks at the unfinished pictures; 0 for none.
        rows_fail_alone: when a forward pass fails its rows are tried one by one, so that a poisonous row fails alone;
            otherwise the error is raised.
    """

    prior: PriorClient
    info: PriorInfo
    chunk_size: int
    load_source: LoadSource | None = None
    group_views: int = 1
    preview_every: int = 0
    rows_fail_alone: bool = True

    def run(self, pictures: Iterable[Picture | Failed]) -> Iterator[Generated | Failed | ImagesPreview]:
        """One answer a picture, in their order.

        Pictures with the same settings are drawn together, at most `chunk_size` at once, within windows of 16 chunks: what is
        held does not grow with their number.

        Raises:
            JobFailed: the prior itself is gone, or failed at every one of many rows.
        """
        reached = num_failed = 0
        for window in batched(pictures, self.chunk_size * CHUNKS_PER_WINDOW):
            for answer in self._window(window):
                yield answer
                blamed = isinstance(answer, Failed) and answer.cause == "prior"
                reached += blamed or isinstance(answer, Generated)
                num_failed += blamed
                if isinstance(answer, Failed) and num_failed == reached >= LEAST_ROWS_TO_BLAME_THE_PRIOR:
                    raise JobFailed(
                        f"The prior failed at each of the first {num_failed} rows that reached it; {answer.message}"
                    )

    def _window(self, pictures: Sequence[Picture | Failed]) -> Iterator[Generated | Failed | ImagesPreview]:
        """Answers in the order of the pictures, each as soon as those before it are there."""
        answers: dict[int, Generated | Failed] = {}
        groups: dict[object, list[Picture]] = {}
        for picture in pictures:
            if isinstance(picture, Failed):
                answers[picture.row.index] = picture
            else:
                groups.setdefault(picture.together, []).append(picture)
        waiting = deque(picture.row.index for picture in pictures)
        for group in groups.values():
            for chunk in batched(group, self.chunk_size):
                for answer in self._chunk(chunk):
                    if isinstance(answer, ImagesPreview):
                        yield answer
                    else:
                        answers[answer.row.index] = answer
                while waiting and waiting[0] in answers:
                    yield answers.pop(waiting.popleft())
        for index in waiting:
            yield answers[index]

    def _chunk(self, pictures: Sequence[Picture]) -> Iterator[Generated | Failed | ImagesPreview]:
        ready: list[_Ready] = []
        for picture in pictures:
            try:
                ready.append((picture, self._source(picture)))
            except InputError as error:
                if not self.rows_fail_alone:
                    raise
                yield failed(picture.row, "initial image", str(error))
        sizes: dict[object, list[_Ready]] = {}
        for one in ready:
            sizes.setdefault(None if one[1] is None else one[1].image.shape, []).append(one)
        for group in sizes.values():
            try:
                yield from self._together(group)
            except Exception as error:
                if not self.rows_fail_alone:
                    raise
                if isinstance(error, InputError) and (image := group[0][0].image).adapters:
                    cause: Cause = "lora" if image.loras else "textual_inversion"
                    yield from (failed(picture.row, cause, str(error)) for picture, _ in group)
                    continue
                self.prior.info()  # raises where the prior is gone; then no row is to blame
                for one in group:
                    yield self._alone(one)

    def _alone(self, one: _Ready) -> Generated | Failed:
        try:
            (drawn,) = (answer for answer in self._together([one]) if isinstance(answer, Generated))
        except Exception as error:
            self.prior.info()
            words = str(error) if isinstance(error, (JobFailed, InputError)) else f"{type(error).__name__}: {error}"
            return failed(one[0].row, "prior", words)
        return drawn

    def _together(self, ready: Sequence[_Ready]) -> Iterator[Generated | ImagesPreview]:
        request = self._request(ready)
        if self.preview_every:
            images = yield from self._watched(request, ready)
        else:
            images = self.prior.generate(request)
        for (picture, source), image in zip(ready, images, strict=True):
            yield Generated(picture=picture, source=source, image=image)

    def _watched(self, request: GenerateRequest, ready: Sequence[_Ready]) -> Generator[ImagesPreview, None, np.ndarray]:
        drawing = self.prior.generate_with_previews(request, every=self.preview_every)
        while True:
            try:
                preview = next(drawing)
            except StopIteration as finished:
                return finished.value
            indices = [picture.row.index for picture, _ in ready[preview.first : preview.first + len(preview.images)]]
            yield ImagesPreview(indices=tuple(indices), steps=preview.steps, images=preview.images)

    def _request(self, ready: Sequence[_Ready]) -> GenerateRequest:
        """One request for pictures that differ in prompt, seed, camera and initial picture alone."""
        first = ready[0][0].image
        given = [source for _, source in ready if source is not None]
        masks = [source.mask for source in given if source.mask is not None]
        cameras = [picture.camera for picture, _ in ready if picture.camera is not None]
        suffix = self.info.picture_suffix if cameras else ""
        width, height = (first.width, first.height) if not given else (given[0].image.shape[2], given[0].image.shape[1])
        return GenerateRequest(
            prompts=tuple(picture.image.prompt + suffix for picture, _ in ready),
            seeds=tuple(picture.image.seed for picture, _ in ready),
            cameras=Cameras.orbit(*map(list, zip(*cameras, strict=True))).pose_vectors() if cameras else None,
            group_views=self.group_views,
            num_steps=first.num_steps,
            sampler=first.sampler,
            timestep_spacing=first.timestep_spacing,
            guidance=Guidance(scale=first.guidance_scale, rescale=first.guidance_rescale, interval=first.guidance_interval),
            negative_prompt=first.negative_prompt,
            size=self.info.size_of(width, height),
            init_images=torch.stack([source.image for source in given]) if given else None,
            masks=torch.stack(masks) if masks else None,
            strength=1.0 if first.strength is None else first.strength,
            strict=first.strict,
            adapters=first.adapters,
        )

    def _source(self, picture: Picture) -> EditSource | None:
        if picture.image.init_image is None:
            return None
        if self.load_source is None:
            raise InputError("The row has an init_image, but initial images cannot be read here.")
        return self.load_source(picture, self.info)


def generate_rows(
    spec: BatchImagesSpec,
    rows: Iterable[Row],
    prior: PriorClient,
    *,
    info: PriorInfo,
    load_source: LoadSource | None = None,
    find_adapters: FindAdapters | None = None,
    preview_every: int = 0,
) -> Iterator[Generated | Failed | ImagesPreview]:
    """Draw the rows of a table: one answer a row, in their order.

    Arguments and errors are those of `Generation`, find_adapters is `read_row`'s.
    """
    drawing = Generation(prior, info, spec.chunk_size, load_source, preview_every=preview_every)
    return drawing.run(read_row(spec, row, info, find_adapters) for row in rows)
