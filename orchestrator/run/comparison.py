"""Runs side by side: one HTML page that opens from the disk and needs nothing else, neither a server nor a network."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import InputError
from jobs.fit_figures import BANDS, band_name
from orchestrator.exports.transform import generator_name
from orchestrator.host.atomic import clear_output_errors, write_text
from orchestrator.run.curves import Curve, fit_curves
from orchestrator.run.folder import PROGRESS
from orchestrator.run.manifest import manifest_of_mesh_run

__all__ = ["write_comparison"]

TEMPLATE = Path(__file__).with_name("compare.html")
MEDIA = {
    "turntable.mp4": "video/mp4",
    "turntable.webp": "image/webp",
    "preview.png": "image/png",
    "mesh.glb": "model/gltf-binary",
}
MOST_POINTS = 240
_SMOOTHED_OVER = 0.05
CHARTS = {
    "score": "The prior's score, without truth",
    "opacity": "Opacity of the pictures",
    "occupied": "Occupied share of the grid",
    "loss": "Loss",
    **{band_name(band): f"Guide's gradient, timesteps of quarter {band + 1} (1: least noise)" for band in range(BANDS)},
}
_FIGURES = {"score": "prior_score", "faces": "num_faces"}
_LARGER_IS_BETTER = "score"


@dataclass(frozen=True)
class _Run:
    """What a run folder says of itself."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> _Run:
        manifest = manifest_of_mesh_run(folder)
        return cls(folder, manifest)

    def settings(self) -> dict[str, Any]:
        """Dotted name -> value of everything that shaped the result."""
        return {name: value for name, value in _leaves(self.manifest.get("spec", {})) if name not in ("formats", "recipe")}

    def figures(self) -> dict[str, Any]:
        """What was measured, as it stands in the table."""
        metrics, timings = self.manifest.get("metrics", {}), self.manifest.get("timings", {})
        found = {column: metrics[name] for column, name in _FIGURES.items() if name in metrics}
        if "fit" in timings:
            found["fit seconds"] = round(timings["fit"], 1)
        flags = ", ".join(metrics.get("quality_flags", ()))
        state = self.manifest.get("state", "")
        return {**found, "flags": flags if state == "succeeded" else ", ".join(filter(None, (state, flags)))}

    def embedded(self, name: str) -> str | None:
        """A file of the folder as a data URL; None where it is not there."""
        path = self.folder / name
        if not path.is_file():
            return None
        with clear_output_errors(path):
            return f"data:{MEDIA[name]};base64,{base64.b64encode(path.read_bytes()).decode()}"

    def curves(self) -> dict[str, tuple[list[int], list[float]]]:
        """Chart -> steps and values, few enough to be drawn."""
        found = fit_curves(self.folder / PROGRESS)
        return {name: _thinned(found[name]) for name in CHARTS if name in found}


def write_comparison(folders: Sequence[Path], out: Path, *, viewer: str, title: str | None = None) -> Path:
    """Write the page of some run folders of 3D jobs, finished or not, in the order that they are given in.

    Args:
        viewer: the studio's viewer as a JavaScript module, which exports `Viewer`.
        title: of the page; the runs' common prompt, or how many there are.

    Raises:
        InputError: a folder that holds no run of a 3D job, or one that is named twice.
        OutputError: the page cannot be written, or a file of a run cannot be read.
    """
    runs = [_Run.read(folder) for folder in folders]
    paths = [folder.resolve() for folder in folders]
    if twice := [str(path) for path in paths if paths.count(path) > 1]:
        raise InputError(f"{twice[0]} is named twice; give every run once.")
    changed = _changed([run.settings() for run in runs])
    names = _short_names(paths)
    rows = []
    for run, name, values in zip(runs, names, changed, strict=True):
        rows.append(
            {
                "name": name,
                "state": run.manifest.get("state", ""),
                "changed": ", ".join(f"{setting} {value}" for setting, value in values.items()),
                "values": {**values, **run.figures()},
                "turntable": run.embedded("turntable.mp4") or run.embedded("turntable.webp"),
                "preview": run.embedded("preview.png"),
                "mesh": run.embedded("mesh.glb"),
                "curves": run.curves(),
            }
        )
    columns = _columns([row["values"] for row in rows])
    charts = [{"name": name, "title": text} for name, text in CHARTS.items() if any(name in row["curves"] for row in rows)]
    prompts = {str(run.manifest.get("spec", {}).get("prompt", "")) for run in runs}
    title = title or (prompts.pop() if len(prompts) == 1 else f"{len(runs)} runs")
    page = {
        "__TITLE__": html.escape(title),
        "__FOOTER__": html.escape(f"Written by {generator_name()}; everything is in this file."),
        "__DATA__": _in_script(json.dumps({"runs": rows, "columns": columns, "charts": charts}, ensure_ascii=False)),
        "__VIEWER__": _as_global(viewer),
    }
    text = re.sub("|".join(page), lambda match: page[match[0]], TEMPLATE.read_text(encoding="utf-8"))
    with clear_output_errors(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
    return write_text(out, text)


def _changed(settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each run the settings in which not all agree, as short texts."""
    names = dict.fromkeys(name for one in settings for name in one)
    differing = [name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1]
    return [{name: _short(one[name]) for name in differing if name in one} for one in settings]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of the table: settings first, then figures; the best score is named."""
    figures = (*_FIGURES, "fit seconds", "flags")
    names = dict.fromkeys(name for row in rows for name in row if name not in figures)
    columns = []
    for name in (*names, *(figure for figure in figures if any(figure in row for row in rows))):
        values = [row[name] for row in rows if name in row]
        is_numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)
        best = {"best": max(values)} if name == _LARGER_IS_BETTER and len(values) > 1 else {}
        columns.append({"name": name, "numeric": is_numeric, **best})
    return columns


def _leaves(tree: Mapping[str, Any], prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(value: Any) -> Any:
    if isinstance(value, (bool, list, tuple)) or value is None:
        text = json.dumps(value)
        return text if len(text) <= 60 else text[:59] + "…"
    return value if isinstance(value, (int, float)) else str(value)[:120]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as many as tell all of them apart."""
    for num in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-num:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _thinned(curve: Curve) -> tuple[list[int], list[float]]:
    if len(curve.steps) > MOST_POINTS // 4:
        curve = curve.smoothed(round(_SMOOTHED_OVER * len(curve.values)))
    every = max(1, len(curve.steps) // MOST_POINTS)
    return list(curve.steps[::every]), [float(f"{value:.5g}") for value in curve.values[::every]]


def _in_script(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _as_global(module: str) -> str:
    """The module with its one export as a global name, since a page on the disk may import no files beside it."""
    match = re.search(r"export\s*\{\s*([\w$]+)\s+as\s+Viewer\s*\}\s*;?\s*$", module)
    if match is None or "</script" in module.lower():
        raise ValueError("the studio's viewer does not export `Viewer` as its last statement; build studio/ again.")
    return f"{module[: match.start()]}globalThis.DreamkilnViewer={match[1]};"
