"""What an evaluation found, as plain frozen dataclasses that go to JSON and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from diffusion.prior import TOYBOX
from diffusion.text.image_text import ImageTextModel
from jobs import codec
from orchestrator.lab.evaluation.captions import CaptionPool
from orchestrator.lab.evaluation.geometry import GeometryScore
from orchestrator.lab.evaluation.r_precision import Retrieval, RPrecision, interval_of_mean

__all__ = [
    "TRUE_OBJECTS",
    "GeometryMeans",
    "ImageScore",
    "ImagesReport",
    "MeshScore",
    "MeshesReport",
    "Ranked",
    "Setting",
    "from_json",
    "geometry_means",
    "is_sound",
]

PACKAGES = TOYBOX.parents[1]
TRUE_OBJECTS = "true objects"
"""Name of the row for renderings of what the prompts mean: how well the judge itself can tell the captions apart."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the ranks depend on: two reports compare where all of this is equal.

    Args:
        judge: its folder; of one that comes with the product, counted from the folder that holds the packages.
        judge_hash: sha256 of its weights.
        num_captions: size of the pool; chance is 1 / num_captions. captions_hash: sha256 of the pool.
        num_views: per mesh, 0 for pictures.
        prior: of pictures drawn for this report, with prior_hash; "" where files were read.
    """

    judge: str
    judge_hash: str
    num_captions: int
    captions_hash: str
    num_views: int = 0
    prior: str = ""
    prior_hash: str = ""

    @classmethod
    def of(cls, judge: ImageTextModel, pool: CaptionPool, **others: Any) -> Setting:
        """The setting of this judge and pool."""
        return cls(
            judge=_portable(judge.folder),
            judge_hash=judge.weights_hash,
            num_captions=len(pool.captions),
            captions_hash=pool.digest,
            **others,
        )


def _portable(folder: Path) -> str:
    """A folder of the product is named alike on every machine; another as it was given."""
    return str(folder.relative_to(PACKAGES)) if folder.is_relative_to(PACKAGES) else str(folder)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One picture or object among the captions.

    Args:
        rank: of the true caption, 1 is best. similarity: cosine with it. taken_for: the caption that came first.
        view_ranks: of an object, the rank that each view has alone; `rank` is of the views' mean embedding.
    """

    rank: int
    similarity: float
    taken_for: str
    view_ranks: tuple[int, ...] = ()

    @classmethod
    def rows(cls, found: Retrieval, pool: CaptionPool, view_ranks: Sequence[Sequence[int]] | None = None) -> list[Ranked]:
        """Every row of a retrieval."""
        columns = zip(found.ranks.tolist(), found.similarities.tolist(), found.best.tolist(), strict=True)
        return [
            cls(
                rank=rank,
                similarity=round(similarity, 4),
                taken_for=pool.captions[best],
                view_ranks=tuple(view_ranks[number]) if view_ranks else (),
            )
            for number, (rank, similarity, best) in enumerate(columns)
        ]


@dataclass(frozen=True, kw_only=True)
class ImageScore:
    """held_out: whether training never drew this combination; None for a sentence that is not the toybox's."""

    name: str
    prompt: str
    held_out: bool | None
    judged: Ranked


@dataclass(frozen=True, kw_only=True)
class MeshScore:
    """One object, coloured and as white clay; clay is ranked among the kinds alone (`captions.clay_pool`).

    Args:
        geometry: against the true object of mean proportions; None for a sentence that is not the toybox's.
        nearest: against the one whose proportions, which the sentence leaves free, are nearest to the mesh's. None in reports
            that were made before it was measured.
        num_components, true_components: pieces that share no edge, of the mesh and of the true object.
        seconds: that the run took, None where unknown.
        differs_in: of runs that share a prompt the folder and the settings that differ; else "".
    """

    name: str
    prompt: str
    held_out: bool | None
    coloured: Ranked
    textureless: Ranked
    geometry: GeometryScore | None
    num_faces: int
    num_components: int
    true_components: int | None
    is_watertight: bool
    seconds: float | None = None
    nearest: GeometryScore | None = None
    differs_in: str = ""


@dataclass(frozen=True, kw_only=True)
class GeometryMeans:
    """Means over the objects with a known truth.

    num_sound: of all objects, how many are watertight with no more pieces than the true object (or one).
    pose_error_degrees: None in reports that were made before it was measured.
    intervals: name -> the mean's bounds of 95 % confidence, by bootstrap over the objects.
    """

    num_objects: int
    volumetric_iou: float
    chamfer: float
    f_score: float
    silhouette_iou: float
    num_sound: int
    pose_error_degrees: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImagesReport:
    """precision: "all", and "all, held out" and "all, taught" where there are both; `TRUE_OBJECTS` for comparison."""

    kind: ClassVar[str] = "images"

    setting: Setting
    precision: Mapping[str, RPrecision]
    items: tuple[ImageScore, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the kind of report beside the fields."""
        return {"kind": self.kind, **codec.to_plain(self)}


@dataclass(frozen=True, kw_only=True)
class MeshesReport:
    """What was found of a set of meshes.

    Args:
        precision: "coloured" and "textureless" of whole objects, the same with ", views" of single views, and the objects'
            with ", held out" and ", taught" where there are both; for comparison `TRUE_OBJECTS` as coloured whole objects,
            and with ", textureless" as clay.
        geometry, nearest: means of those of the items; None without a known truth.
    """

    kind: ClassVar[str] = "meshes"

    setting: Setting
    precision: Mapping[str, RPrecision]
    geometry: GeometryMeans | None
    items: tuple[MeshScore, ...]
    nearest: GeometryMeans | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the kind of report beside the fields."""
        return {"kind": self.kind, **codec.to_plain(self)}


def from_json(data: Mapping[str, Any]) -> ImagesReport | MeshesReport:
    """The inverse of both `to_json`. Raises InputError for anything else, and KeyError for another kind."""
    reports: dict[str, type[ImagesReport] | type[MeshesReport]] = {r.kind: r for r in (ImagesReport, MeshesReport)}
    return codec.from_plain(reports[data["kind"]], {key: value for key, value in data.items() if key != "kind"})


def geometry_means(items: Iterable[MeshScore], truth: Literal["geometry", "nearest"] = "geometry") -> GeometryMeans | None:
    """Means against one of the truths of `MeshScore`; None where no object has it."""
    items = list(items)
    known: list[GeometryScore] = [score for item in items if (score := getattr(item, truth)) is not None]
    if not known:
        return None
    names = ("volumetric_iou", "chamfer", "f_score", "silhouette_iou", "pose_error_degrees")
    values = {name: [getattr(score, name) for score in known] for name in names}
    values = {name: column for name, column in values.items() if None not in column}
    return GeometryMeans(
        num_objects=len(known),
        num_sound=sum(map(is_sound, items)),
        intervals={name: interval_of_mean(column) for name, column in values.items()},
        **{name: sum(column) / len(known) for name, column in values.items()},
    )


def is_sound(item: MeshScore) -> bool:
    """Watertight, and in no more pieces than the true object."""
    return item.is_watertight and item.num_components <= (item.true_components or 1)
