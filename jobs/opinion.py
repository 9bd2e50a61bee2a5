"""What a prior makes of a finished object, where nobody knows the truth: a score, which way it faces, whether it has two faces.

The prior denoises views of the object under its sentence, told to stand where they were taken from or somewhere else. What it
denoises best is what it takes the views for (a denoising classifier, Li et al. 2023, arXiv:2303.16203).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.checkpoints.errors import PriorError
from diffusion.seeding import Key
from diffusion.text.image_text import ImageTextModel
from jobs.errors import InputError
from jobs.prior_client import LossQuery, PriorClient, PriorInfo
from nerf3d.cameras import Cameras
from nerf3d.mesh import Mesh, draw_mesh
from nerf3d.view_words import view_phrase

__all__ = [
    "NUM_TURNS",
    "Asking",
    "Opinion",
    "cameras_of_opinion",
    "clip_score",
    "lit_views",
    "opinion_from",
    "opinion_of",
    "score_of_views",
    "turned_losses",
]

NUM_TURNS = 8
"""Directions that are considered, and views that are taken, evenly spaced around the object."""

ELEVATION_DEGREES = 15.0
LEVELS = (0.5, 0.7, 0.85)
"""Noise levels as fractions of the schedule: where shape and pose are decided."""

BACKGROUND, AMBIENT = (0.6, 0.6, 0.6), 0.5


@dataclasses.dataclass(frozen=True)
class Opinion:
    """What a prior thinks of an object.

    Args:
        score: share of the denoising loss that the sentence explains, in the mean over the views; larger is better, 0 is
            what an object scores of which the sentence says nothing.
        facing_degrees: azimuth to which the object's front points, where the prior is clear about it; else 0.
        has_two_faces: whether its back is taken for a front (the Janus problem, DreamFusion's 2209.14988 section 5).
    """

    score: float
    facing_degrees: float = 0.0
    has_two_faces: bool = False

    def metrics(self) -> dict[str, float | bool]:
        """Figures for the manifest."""
        return {
            "prior_score": round(self.score, 4),
            "facing_degrees": self.facing_degrees,
            "has_two_faces": self.has_two_faces,
        }

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, Any]) -> Opinion | None:
        """The opinion in a manifest's figures, rounded as there; None where there is none."""
        if "prior_score" not in metrics:
            return None
        return cls(metrics["prior_score"], metrics.get("facing_degrees", 0.0), metrics.get("has_two_faces", False))


FACING_MARGIN = 0.02
"""Share of the loss by which another side must be ahead before an object is turned to it."""

TWO_FACES_MARGIN = 0.02
"""Share of the loss by which views from behind must be likelier as views of the front."""


def opinion_of(mesh: Mesh, prior: PriorClient, info: PriorInfo, prompt: str, *, seed: int = 0, strict: bool = False) -> Opinion:
    """The prior's opinion of a mesh in the scene frame, seen from `NUM_TURNS` sides.

    Of a prior that does not tell the sides apart it is the score alone.

    Args:
        strict: see `jobs.prior_client.LossQuery`.

    Raises:
        PriorFailed: the prior stopped answering.
    """
    images = lit_views(mesh, info.image_size)
    ask = Asking(prior, info, seed, strict)
    without = float(ask.losses(images, ("",) * len(images), None).mean())
    if not info.tells_sides_apart:
        with_prompt = float(ask.losses(images, (prompt,) * len(images), None).mean())
        return Opinion((without - with_prompt) / without)
    return opinion_from(turned_losses(images, ask, prompt), without)


def score_of_views(
    images: Tensor, cameras: Cameras, prior: PriorClient, info: PriorInfo, prompt: str, *, seed: int = 0, strict: bool = False
) -> float:
    """Share of the denoising loss that the sentence explains in views of an object that is not finished, as it stands.

    The score of an `Opinion` at a ninth of its price: no other direction is considered.

    Args:
        images: (V, 3, H, W) in [0, 1], at the prior's size. cameras: V, from where they were seen.
        strict: see `jobs.prior_client.LossQuery`.

    Raises:
        PriorFailed: the prior stopped answering.
    """
    ask = Asking(prior, info, seed, strict)
    without = float(ask.losses(images, ("",) * len(images), None).mean())
    return (without - float(ask.as_seen(images, prompt, cameras).mean())) / without


def clip_score(mesh: Mesh, folder: str, prompt: str) -> float:
    """The CLIP score of a mesh: mean cosine similarity of its `NUM_TURNS` views with the sentence (arXiv:2104.08718).

    Args:
        folder: of the model, see `diffusion.text.image_text.ImageTextModel.read`.

    Raises:
        InputError: it cannot be read.
    """
    try:
        model = ImageTextModel.read(Path(folder))
    except PriorError as error:
        raise InputError(f"--clip: {error}.") from error
    return model.score(lit_views(mesh, model.image_size), prompt)


def opinion_from(losses: Tensor, without: float) -> Opinion:
    """The opinion that follows from losses.

    Args:
        losses: (NUM_TURNS, NUM_TURNS), entry [k, v] of view v where the object's front is taken to point to azimuth
            k * 360 / NUM_TURNS. without: mean loss of the views without a sentence.
    """
    turns = losses.mean(dim=1)
    best = int(turns.argmin())
    front, back = (_as_itself_and_from_behind(losses, best, middle) for middle in (0, NUM_TURNS // 2))
    is_clear = float((turns[0] - turns[best]) / turns[0]) > FACING_MARGIN
    return Opinion(
        score=float((without - turns.min()) / without),
        facing_degrees=best * 360 / NUM_TURNS if is_clear else 0.0,
        has_two_faces=front[0] < front[1] and (back[0] - back[1]) / back[0] > TWO_FACES_MARGIN,
    )


def _as_itself_and_from_behind(losses: Tensor, facing: int, middle: int) -> tuple[float, float]:
    """Mean loss of three neighbouring views as what they are, and as their mirror images on the object's other end.

    Args:
        facing: where the object's front points, in turns. middle: of the views, in turns from the front.
    """
    offsets = torch.tensor([middle - 1, middle, middle + 1])
    views = (facing + offsets) % NUM_TURNS
    mirrored = (views - (NUM_TURNS // 2 - offsets)) % NUM_TURNS
    return float(losses[facing, views].mean()), float(losses[mirrored, views].mean())


@dataclasses.dataclass(frozen=True)
class Asking:
    """Losses that can be compared: of each view under noise that follows from the seed, the level and the view alone."""

    prior: PriorClient
    info: PriorInfo
    seed: int = 0
    strict: bool = False

    def losses(self, images: Tensor, prompts: tuple[str, ...], cameras: Tensor | None) -> Tensor:
        """Mean loss of each view (V, 3, H, W) over `LEVELS`, (V,)."""
        of_levels = []
        for level in LEVELS:
            name = f"{level:g}"
            keys: tuple[tuple[Key, ...], ...] = tuple((self.seed, "opinion", name, view) for view in range(len(images)))
            t = torch.full((len(images),), int(level * self.info.schedule.num_train_timesteps))
            query = LossQuery(images=images, prompts=prompts, t=t, noise_keys=keys, cameras=cameras, strict=self.strict)
            of_levels.append(self.prior.losses(query))
        return torch.stack(of_levels).mean(dim=0)

    def as_seen(self, images: Tensor, prompt: str, cameras: Cameras) -> Tensor:
        """`losses` of views that are said to be taken from these cameras, in the way that the prior hears it."""
        if self.info.num_views is not None:
            return self.losses(images, (prompt,) * len(images), cameras.pose_vectors())
        if not self.info.tells_sides_apart:
            return self.losses(images, (prompt,) * len(images), None)
        directions = zip(cameras.azimuth_degrees.tolist(), cameras.elevation_degrees.tolist(), strict=True)
        return self.losses(images, tuple(f"{prompt}, {view_phrase(*direction)}" for direction in directions), None)


def turned_losses(images: Tensor, ask: Asking, prompt: str) -> Tensor:
    """(NUM_TURNS, NUM_TURNS) losses of views (NUM_TURNS, 3, H, W) for each direction that the object may face."""
    rows = []
    for turn in range(NUM_TURNS):
        azimuths = [(azimuth - turn * 360 / NUM_TURNS) % 360 for azimuth in _azimuths()]
        rows.append(ask.as_seen(images, prompt, Cameras.orbit(azimuths, ELEVATION_DEGREES)))
    return torch.stack(rows)


def _azimuths() -> list[float]:
    return [view * 360 / NUM_TURNS for view in range(NUM_TURNS)]


def cameras_of_opinion() -> Cameras:
    """From where an object is seen, the front first."""
    return Cameras.orbit(_azimuths(), ELEVATION_DEGREES)


def lit_views(mesh: Mesh, size: int) -> Tensor:
    """(NUM_TURNS, 3, size, size): a mesh in the scene frame from `cameras_of_opinion`."""
    return torch.cat([_view(mesh, azimuth, size) for azimuth in _azimuths()])


def _view(mesh: Mesh, azimuth: float, size: int) -> Tensor:
    """(1, 3, size, size): the mesh as the fit's cameras see it, lit from beside and above the camera."""
    camera = Cameras.orbit(azimuth, ELEVATION_DEGREES)
    light = camera.camera_to_world[0, :3, :3] @ torch.tensor([-0.55, 0.7, 1.0])
    return draw_mesh(mesh, camera, size, background=BACKGROUND, ambient=AMBIENT, light=light.tolist())[0]
