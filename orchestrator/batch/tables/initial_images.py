"""Initial images and masks that cells point to, by path or URL."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jobs.batch_images import Picture
from jobs.errors import InputError
from jobs.images import EditSource
from jobs.prior_client import PriorInfo
from orchestrator.batch.storage.urls import clear_url_errors, is_url, open_filesystem
from orchestrator.batch.tables.source import TableSource
from orchestrator.run.edit_pictures import EditPictures

__all__ = ["InitialImages"]


class InitialImages:
    """A `jobs.batch_images.LoadSource`. Relative paths start at the folder of the row's own table file."""

    def __init__(self, source: TableSource) -> None:
        self._source = source

    def __call__(self, picture: Picture, info: PriorInfo) -> EditSource:
        """What the picture starts from, at the size it is drawn in. Raises InputError for what cannot be read."""
        image, mask, file = picture.image.init_image, picture.image.mask, picture.row.file
        if image is None:
            raise InputError("The row has no init_image.")
        with _local(self._source.resolve(image, file)) as image_path:
            if mask is None:
                pictures = EditPictures.read(image_path)
            else:
                with _local(self._source.resolve(mask, file)) as mask_path:
                    pictures = EditPictures.read(image_path, mask_path)
        return pictures.at_size(picture.image, info)


@contextlib.contextmanager
def _local(location: str) -> Iterator[Path]:
    """The file itself, or a copy of what a URL points to."""
    if not is_url(location):
        yield Path(location)
        return
    with tempfile.NamedTemporaryFile(prefix="dreamkiln-") as copy:
        with clear_url_errors(f"{location} could not be read"):
            filesystem, path = open_filesystem(location)
            with filesystem.open(path, "rb") as file:
                shutil.copyfileobj(file, copy)
        copy.flush()
        try:
            yield Path(copy.name)
        except InputError as error:
            raise InputError(str(error).replace(copy.name, location)) from error
