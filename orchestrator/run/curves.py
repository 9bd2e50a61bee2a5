"""How a fit went, step by step: read from progress.jsonl, drawn as progress.png, written as TensorBoard's events."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.events import Progress
from jobs.fit_figures import BANDS, band_name
from orchestrator.host.atomic import atomic_path

__all__ = ["PICTURE", "Curve", "TensorBoard", "fit_curves", "write_progress_picture"]

PICTURE = "progress.png"
TENSORBOARD = "tensorboard"
_BESIDE = ("attempt", "seconds", "stage", "step", "total")
_SMOOTHED_OVER = 0.05
"""Share of the fit over which drawn curves are averaged."""


@dataclass(frozen=True)
class Curve:
    """One metric: its value at each step that has one."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def smoothed(self, width: int) -> Curve:
        """The running mean over `width` values, at the step in its middle."""
        width = max(1, min(width, len(self.values)))
        sums = [0.0]
        for value in self.values:
            sums.append(sums[-1] + value)
        means = tuple((sums[end] - sums[end - width]) / width for end in range(width, len(sums)))
        return Curve(self.steps[(width - 1) // 2 :][: len(means)], means)


def fit_curves(path: Path) -> dict[str, Curve]:
    """Metric -> its curve, of a progress.jsonl; of steps that were made again after a kill the last value counts.

    Empty where there is no such file. Lines that a killed process left half-written are passed over.
    """
    points: dict[str, dict[int, float]] = {}
    with contextlib.suppress(FileNotFoundError):
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                line: Any = json.loads(text)
            except ValueError:
                continue
            if not isinstance(line, dict) or line.get("stage") != "fit" or not isinstance(line.get("step"), int):
                continue
            for name, value in line.items():
                if name not in _BESIDE and isinstance(value, (int, float)) and math.isfinite(value):
                    points.setdefault(name, {})[line["step"]] = float(value)
    return {name: Curve(tuple(sorted(found)), tuple(found[step] for step in sorted(found))) for name, found in points.items()}


def write_progress_picture(curves: Mapping[str, Curve], path: Path, *, title: str) -> Path | None:
    """progress.png: score, opacity, the guide's gradients by timestep, and the loss; None where there are no curves.

    Raises:
        OutputError: it cannot be written.
    """
    if not curves:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), dpi=100, layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    _draw(axes[0], curves, ["score"], "The prior's score, without truth", marker="o")
    _draw(axes[1], curves, ["opacity", "occupied"], "Opacity of the pictures, occupied share of the grid", low=0)
    names = [band_name(band) for band in range(BANDS)]
    _draw(axes[2], curves, names, "Norm of the guide's gradient by timestep (% of the schedule)", low=0)
    _draw(axes[3], curves, ["loss", "guide"], "Loss, and the guide's part of it", low=0)
    figure.suptitle(title if len(title) <= 90 else title[:89] + "…", parse_math=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _draw(axes: Any, curves: Mapping[str, Curve], names: Sequence[str], title: str, *, low: float | None = None, **line: Any):
    for name in names:
        if (curve := curves.get(name)) is None:
            continue
        drawn = curve if line else curve.smoothed(round(_SMOOTHED_OVER * len(curve.values)))
        label = name.removeprefix("gradient_t").replace("_", " to ") if name.startswith("gradient_t") else name
        axes.plot(drawn.steps, drawn.values, label=label, linewidth=1.4, **line)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8, frameon=False)
        axes.set_xlabel("step", fontsize=8)
        if low is not None:
            axes.set_ylim(bottom=low)
    else:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="gray")


class TensorBoard:
    """The events of an attempt at a fit, in the folder `tensorboard`; one that goes on hides the steps that it repeats."""

    def __init__(self, folder: Path, *, begun_at: int) -> None:
        """begun_at: steps that an earlier attempt left behind it. Raises OSError where the folder cannot be written."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / TENSORBOARD), purge_step=begun_at + 1 if begun_at else None)

    def log(self, event: Progress) -> None:
        """The metrics of a step of the fit; other stages have none."""
        if event.stage != "fit":
            return
        for name, value in event.metrics.items():
            kind = "seconds" if name.startswith("seconds_") else "gradient" if name.startswith("gradient_t") else "fit"
            self._writer.add_scalar(f"{kind}/{name.removeprefix(f'{kind}_')}", value, event.step)

    def close(self) -> None:
        """Nothing is lost after this."""
        self._writer.close()
