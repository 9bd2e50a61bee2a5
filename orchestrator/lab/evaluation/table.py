"""A report as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from orchestrator.lab.evaluation.r_precision import RPrecision
    from orchestrator.lab.evaluation.report import ImagesReport, MeshesReport, MeshScore

__all__ = ["print_report"]

MAX_MISSES = 24


def print_report(report: ImagesReport | MeshesReport, stream: TextIO) -> None:
    """Means first, then every mesh, or the pictures that were taken for something else."""
    from rich.console import Console

    from orchestrator.lab.evaluation.report import ImagesReport

    console = Console(file=stream, width=None if stream.isatty() else 140)
    console.print(_precision_table(report.precision, report.setting.num_captions))
    if isinstance(report, ImagesReport):
        _print_misses(report, console)
        return
    console.print(_mesh_table(report))
    for means, truth in ((report.geometry, "true object of mean proportions"), (report.nearest, "nearest proportions")):
        if means is None:
            continue
        pose = "" if means.pose_error_degrees is None else f", pose error {means.pose_error_degrees:.0f} degrees"
        figures = [
            f"{word} {getattr(means, name):.3f}{_within(means.intervals.get(name))}"
            for word, name in (("silhouette IoU", "silhouette_iou"), ("volume IoU", "volumetric_iou"), ("F-score", "f_score"))
        ]
        console.print(
            f"Mean of {means.num_objects} against the {truth}: {', '.join(figures)} (at 0.05 of the longest side), Chamfer "
            f"{means.chamfer:.4f}{pose}.",
            highlight=False,
            soft_wrap=True,
        )
    if (means := report.geometry) is not None:
        console.print(
            f"{means.num_sound} of {len(report.items)} watertight and in one piece (or as many as the true object).",
            highlight=False,
        )


def _within(interval: tuple[float, float] | None) -> str:
    """The interval of 95 % confidence in brackets."""
    return "" if interval is None else " [{:.3f}, {:.3f}]".format(*interval)


def _precision_table(precision: Mapping[str, RPrecision], num_captions: int):
    from rich.table import Table

    table = Table(
        title=f"R-Precision among {num_captions} captions (chance {1 / num_captions:.1%}); clay among the kinds in white",
        title_justify="left",
    )
    table.add_column("")
    for name in ("scored", "R@1", "95 %", "R@5", "mean rank", "right kind"):
        table.add_column(name, justify="right")
    for name, value in precision.items():
        interval = "" if value.r_at_1_interval is None else "{:.0%} to {:.0%}".format(*value.r_at_1_interval)
        figures = (f"{value.r_at_1:.1%}", interval, f"{value.r_at_5:.1%}", f"{value.mean_rank:.1f}", f"{value.right_kind:.1%}")
        table.add_row(name, str(value.num_scored), *figures)
    return table


def _print_misses(report: ImagesReport, console) -> None:
    from rich.table import Table

    misses = sorted((item for item in report.items if item.judged.rank > 1), key=lambda item: -item.judged.rank)
    if not misses:
        return
    more = f", the worst {MAX_MISSES}" if len(misses) > MAX_MISSES else ""
    table = Table("prompt", "rank", "taken for", "picture", title=f"Misses: {len(misses)}{more}", title_justify="left")
    for item in misses[:MAX_MISSES]:
        table.add_row(item.prompt, str(item.judged.rank), item.judged.taken_for, item.name)
    console.print(table)


def _mesh_table(report: MeshesReport):
    from rich.table import Table

    table = Table("prompt", "held out", title="Meshes", title_justify="left")
    for name in ("rank", "views", "clay", "sil. IoU", "vol. IoU", "Chamfer", "F", "pose", "pieces", "tight", "s"):
        table.add_column(name, justify="right")
    for item in report.items:
        table.add_row(*_mesh_row(item), style=None if item.coloured.rank == 1 else "red")
    return table


def _mesh_row(item: MeshScore) -> list[str]:
    score = item.geometry
    figures = [""] * 5
    if score is not None:
        figures = [f"{score.silhouette_iou:.3f}", f"{score.volumetric_iou:.3f}", f"{score.chamfer:.4f}", f"{score.f_score:.3f}"]
        figures.append("" if score.pose_error_degrees is None else f"{score.pose_error_degrees:.0f}")
    views = item.coloured.view_ranks
    pieces = str(item.num_components)
    if item.true_components not in (None, item.num_components):
        pieces += f" ({item.true_components})"
    return [
        f"{item.prompt}\n{item.differs_in}" if item.differs_in else item.prompt,
        {True: "yes", False: "no", None: "?"}[item.held_out],
        str(item.coloured.rank),
        f"{sum(rank == 1 for rank in views)}/{len(views)}",
        str(item.textureless.rank),
        *figures,
        pieces,
        "yes" if item.is_watertight else "no",
        "" if item.seconds is None else f"{item.seconds:.0f}",
    ]
