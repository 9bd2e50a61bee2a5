"""`dreamkiln evaluate`: CLIP R-Precision of pictures and meshes, and geometry against the toybox's true objects.

::

    dreamkiln evaluate images                draw one picture per held-out prompt through the prior and score them
    dreamkiln evaluate images RUN [RUN ...]  score the pictures of run folders
    dreamkiln evaluate meshes RUN [RUN ...]  score the meshes of run folders
    dreamkiln evaluate RUN [RUN ...]         the same; the first run's manifest says which

Every way leaves `report.json` and `report.png` in the output folder, and prints a table, or the JSON, on stdout.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jobs import codec
from jobs.errors import InputError
from orchestrator.lab.evaluation.settings import EvaluationSettings

if TYPE_CHECKING:
    import numpy as np

    from orchestrator.lab.evaluation.report import ImagesReport, MeshesReport

__all__ = ["EvaluationSettings", "evaluate", "main"]

Kind = Literal["images", "meshes"]
KINDS: tuple[Kind, ...] = ("images", "meshes")


def main(
    arguments: Sequence[str | Path],
    *,
    out: Path | None = None,
    as_json: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> int:
    """`evaluate`, then the report on stdout, as a table or with `as_json` as JSON and nothing else; returns the exit code 0."""
    report, folder = evaluate(arguments, out=out, overrides=overrides)
    if as_json:
        print(json.dumps({"ok": True, "folder": str(folder), **report.to_json()}, ensure_ascii=False, allow_nan=False))
        return 0
    from orchestrator.lab.evaluation.table import print_report

    print_report(report, sys.stdout)
    print(f"{folder / 'report.json'}\n{folder / 'report.png'}")
    return 0


def evaluate(
    arguments: Sequence[str | Path], *, out: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[ImagesReport | MeshesReport, Path]:
    """Score, and write report.json and report.png; returns the report and the folder that has them.

    Args:
        arguments: "images" or "meshes", then run folders; or run folders alone.
        out: the report's folder; by default runs/evaluation-<kind>-<hash of what was asked>.
        overrides: fields of `EvaluationSettings`; texts are read as JSON values where they are such. None is skipped.

    Raises:
        InputError: a setting, a run folder, the prior or the judge cannot be used.
        OutputError: `out` cannot be written.
    """
    kind, runs = _what(arguments)
    given = {key: _value(value) for key, value in (overrides or {}).items() if value is not None}
    settings = codec.from_plain(EvaluationSettings, given)
    folder = out if out is not None else _default_folder(kind, runs, settings)
    report, page = _evaluate(kind, runs, settings, folder)
    _write(report, page, folder)
    return report, folder


def _evaluate(
    kind: Kind, runs: Sequence[Path], settings: EvaluationSettings, folder: Path
) -> tuple[ImagesReport | MeshesReport, np.ndarray]:
    from orchestrator.host.atomic import clear_output_errors
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt
    from orchestrator.host.threads import use_threads
    from orchestrator.lab.evaluation.images import evaluate_images
    from orchestrator.lab.evaluation.meshes import evaluate_meshes

    with clear_output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    use_threads(settings.num_threads)
    with stop_signals_interrupt(), make_display(stream=sys.stderr) as display:
        if kind == "images":
            return evaluate_images(runs, settings, display=display, keep=folder)
        return evaluate_meshes(runs, settings, display=display)


def _what(arguments: Sequence[str | Path]) -> tuple[Kind, list[Path]]:
    """The kind of evaluation and its run folders."""
    for kind in KINDS:
        if arguments and str(arguments[0]) == kind:
            return kind, [Path(run) for run in arguments[1:]]
    runs = [Path(run) for run in arguments]
    if not runs:
        raise InputError("There is nothing to score; say 'images' or 'meshes', or give run folders.")
    if not runs[0].is_dir():
        raise InputError(f"{runs[0]} is neither 'images' nor 'meshes' nor a folder; give run folders.")
    try:
        manifest = json.loads((runs[0] / "manifest.json").read_text(encoding="utf-8"))
        return ("meshes" if manifest["kind"] == "text-to-3d" else "images"), runs
    except (OSError, ValueError, LookupError, TypeError):
        return "images", runs  # a folder of PNG files needs no manifest


def _value(value: Any) -> Any:
    """A text from the command line as the JSON value that it spells, or else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _default_folder(kind: Kind, runs: Sequence[Path], settings: EvaluationSettings) -> Path:
    asked = json.dumps([kind, *map(str, runs), codec.to_plain(settings)])
    return Path("runs") / f"evaluation-{kind}-{hashlib.sha256(asked.encode()).hexdigest()[:8]}"


def _write(report: ImagesReport | MeshesReport, page: np.ndarray, folder: Path) -> None:
    from orchestrator.exports.png_metadata import write_png
    from orchestrator.host.atomic import write_text

    write_png(page, folder / "report.png", {"judge_hash": report.setting.judge_hash})
    text = json.dumps(report.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(folder / "report.json", text + "\n")
