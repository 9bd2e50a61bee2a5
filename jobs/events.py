"""What a running recipe tells its caller: the whole protocol between a job and whoever watches it.

Events are plain frozen dataclasses so that they cross process borders unchanged. The caller decides what becomes a
progress bar, a file or a database row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Checkpoint", "Event", "Finished", "ImageReady", "ImagesPreview", "Message", "Progress", "ViewsPreview"]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One logged step.

    Args:
        stage: "prepare", "fit", "paint", "mesh", "judge", "views" or "draw".
        step: steps of this stage that are done, 0 to `total`.
        total: steps of this stage in all.
        metrics: named scalars of this step.
        seconds_left: for this stage, or None while unknown.
    """

    stage: str
    step: int
    total: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Message:
    """A sentence for the user; `level` is "info" or "warning"."""

    text: str
    level: str = "info"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Enough to go on from `step` with a bit-equal result (on CUDA: up to rounding).

    Args:
        step: optimisation steps that the state has behind it.
        tensors: name -> numpy array, as safetensors stores them.
        meta: small JSON values beside the tensors.
    """

    step: int
    tensors: Mapping[str, np.ndarray]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImageReady:
    """Image `index` of an image job: uint8 (H, W, 3), drawn from `seed`."""

    index: int
    seed: int
    image: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ImagesPreview:
    """What the images `indices` look like before they are finished: uint8 (n, h, w, 3), after `steps` steps."""

    indices: tuple[int, ...]
    steps: int
    images: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ViewsPreview:
    """How an object looks from a few sides before its fit is finished: uint8 (n, h, w, 3), after `step` steps."""

    step: int
    images: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The last event of a recipe.

    Args:
        result: a `TextTo3DResult` or `ImagesResult`.
        seconds: stage -> wall-clock seconds.
        metrics: named figures of the finished work, for the manifest.
    """

    result: Any
    seconds: Mapping[str, float]
    metrics: Mapping[str, Any] = field(default_factory=dict)


Event = Progress | Message | Checkpoint | ImageReady | ImagesPreview | ViewsPreview | Finished
