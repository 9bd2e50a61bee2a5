"""What each part of the multi-view prior and of the last stages brings: twelve objects whose sides differ, draft preset.

    python -m benchmarks.ablation [--first N] [group.key=value …]

The shipped prior is taken apart: words alone (`unet/` without `multi_view/`), with the camera, with the position features too,
with its views together. These are fits of their own; what follows cuts the last ones again: with small pieces joined, and
turned as the vote says. Everything is one network, trained as a whole, so that a row says what the network makes of a part,
not what a training without it would have come to. An interrupted run goes on when it is repeated.

The four fits of a sentence, of which some have come out and some not, are tries too: the shipped prior scores them, and what
its pick agrees better with the truth than their mean says what the score without truth is worth.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.best_of import PROMPTS
from benchmarks.machine import describe_machine, one_line
from benchmarks.pictures import write_small_webp
from benchmarks.saving import save_run
from jobs.errors import DreamKilnError
from jobs.texture.recipe import SCENE_RADIUS
from jobs.words.prompts import slug

RESULTS = Path(__file__).parent / "results" / "ablation.json"
PICTURE = Path("docs/pictures/ablation.webp")
SHOWN = ("teapot", "plane", "duck", "robot", "house", "car")

PRIORS = {
    "words": None,
    "camera": {"num_views": 1, "position_levels": []},
    "camera, map": {"num_views": 1},
    "camera, map, views together": {},
}
"""By row: the changed settings of `multi_view/`; None leaves it out."""

CUTS = {
    "+ small pieces": {"mesh.bridge_gap": "0.06"},
    "+ facing vote": {"mesh.bridge_gap": "0.06", "mesh.face_front": "true"},
}
"""By row: how the last prior's fits are cut again."""


def taken_apart(changes: dict[str, object] | None, folder: Path) -> str:
    """The source of the shipped prior with these settings of its multi-view part; weights without a place are left out."""
    from safetensors.torch import load_file, save_file

    from diffusion.checkpoints.source import TOYBOX

    if changes == {}:
        return "toybox"
    if folder.exists():
        return str(folder)
    making = folder.with_name(folder.name + ".part")
    shutil.rmtree(making, ignore_errors=True)
    shutil.copytree(TOYBOX, making)
    views = making / "multi_view"
    if changes is None:
        shutil.rmtree(views)
    else:
        settings = {**json.loads((views / "config.json").read_text(encoding="utf-8")), **changes}
        (views / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        weights = views / "diffusion_pytorch_model.safetensors"
        kept = {
            name: value
            for name, value in load_file(weights).items()
            if settings["position_levels"] or "to_position" not in name
        }
        save_file(kept, weights)
    return str(making.rename(folder))


def fit(prompt: str, prior: str, folder: Path, overrides: Sequence[str]) -> Path:
    """One draft, cut plainly; a finished one is kept."""
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt
    from orchestrator.run.perform import perform
    from orchestrator.settings.compose import compose

    plain = ("mesh.bridge_gap=0", "mesh.face_front=false", "export.formats=[glb]", *overrides)
    settings = compose(plain, options={"preset": "draft", "runtime": "inline", "prior.source": prior, "recipe": "toybox"})
    with stop_signals_interrupt(), make_display(stream=sys.stderr) as display:
        spec = settings.text_to_3d(prompt, seed=0)
        perform(spec, out=folder, export=settings.export, runtime=settings.runtime, display=display)
    return folder


def rows(prompts: Sequence[str], runs: Path, overrides: Sequence[str]) -> dict[str, list[Path]]:
    """By row the run folders of its meshes."""
    from orchestrator.run.export import export_run

    found: dict[str, list[Path]] = {}
    for number, (name, changes) in enumerate(PRIORS.items()):
        prior = taken_apart(changes, runs / f"prior-{number}")
        found[name] = [fit(prompt, prior, runs / str(number) / slug(prompt), overrides) for prompt in prompts]
    last = list(found.values())[-1]
    for number, (name, cut) in enumerate(CUTS.items(), len(PRIORS)):
        found[name] = [runs / str(number) / folder.name for folder in last]
        for fitted, again in zip(last, found[name], strict=True):
            export_run(fitted, cut, out=again)
    return found


def figures_of(folders: Sequence[Path]) -> tuple[dict[str, object], list[dict[str, float]]]:
    """Means and intervals of a row, and each object's own figures."""
    from orchestrator.host.progress_display import make_display
    from orchestrator.lab.evaluation.meshes import evaluate_meshes
    from orchestrator.lab.evaluation.settings import EvaluationSettings

    with make_display(stream=sys.stderr) as display:
        report, _ = evaluate_meshes(folders, EvaluationSettings(), display=display)
    means = report.nearest
    assert means is not None
    each = [
        {
            "silhouette_iou": round(item.nearest.silhouette_iou, 3),
            "volumetric_iou": round(item.nearest.volumetric_iou, 3),
            "f_score": round(item.nearest.f_score, 3),
            "pose_error_degrees": item.nearest.pose_error_degrees or 0.0,
        }
        for item in report.items
        if item.nearest is not None
    ]
    row = {name: round(statistics.mean(one[name] for one in each), 3) for name in each[0]}
    interval = [round(bound, 3) for bound in means.intervals["silhouette_iou"]]
    clay = report.precision["textureless"].right_kind
    return {
        **row,
        "silhouette_interval": interval,
        "clay_right_kind": round(clay, 3),
    }, each


def scored(folders: Sequence[Path]) -> list[float]:
    """What the shipped prior sees of the sentence in each mesh, all framed alike."""
    from jobs.opinion import opinion_of
    from orchestrator.exports.transform import fill_frame
    from orchestrator.lab.evaluation.mesh_sets import read_mesh
    from orchestrator.prior.local import load_prior

    prior = load_prior("toybox")
    meshes = [read_mesh(folder) for folder in folders]
    opinions = [opinion_of(fill_frame(made.mesh, radius=SCENE_RADIUS), prior, prior.info(), made.prompt) for made in meshes]
    return [opinion.score for opinion in opinions]


def picked(ious: np.ndarray, scores: np.ndarray) -> dict[str, object]:
    """Of tries (tries, prompts): how much better the best scored ones agree with the truth than the mean of the tries."""
    from orchestrator.lab.evaluation.r_precision import interval_of_mean

    gains = np.take_along_axis(ious, scores.argmax(0)[None], 0)[0] - ious.mean(0)
    return {
        "gain": round(float(gains.mean()), 3),
        "interval": interval_of_mean(gains.tolist()),
        "possible": round(float((ious.max(0) - ious.mean(0)).mean()), 3),
    }


def sheet(found: dict[str, list[Path]], path: Path) -> Path:
    """The shown objects of each row, seen from half left of their front and of their back."""
    from orchestrator.exports.turntable import turntable_frames
    from orchestrator.lab.evaluation.mesh_sets import read_mesh
    from orchestrator.lab.evaluation.picture import Tile, labelled_sheet

    tiles = []
    for name, folders in found.items():
        for made in (read_mesh(folder) for kind in SHOWN for folder in folders if kind in folder.name):
            views = list(turntable_frames(made.mesh, num_frames=8, size=144))
            tiles.append(Tile(np.concatenate([views[1], views[5]], axis=1), (name, made.prompt)))
    return write_small_webp(labelled_sheet(tiles, num_columns=len(SHOWN)), path, max_bytes=200_000)


def main(arguments: list[str] | None = None) -> int:
    """Prints a line a row, saves them, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=len(PROMPTS), metavar="N", help="only the first N prompts")
    parser.add_argument("--runs", type=Path, default=Path("runs") / "ablation")
    parser.add_argument("overrides", nargs="*", metavar="GROUP.KEY=VALUE")
    options = parser.parse_args(arguments)
    try:
        found = rows(PROMPTS[: options.first], options.runs, options.overrides)
        figures, of_prompts = {}, {}
        for name, folders in found.items():
            figures[name], of_prompts[name] = figures_of(folders)
            print(f"{name}: {figures[name]}", flush=True)
        ious = np.array([[one["silhouette_iou"] for one in of_prompts[name]] for name in PRIORS])
        scores = np.array([scored(found[name]) for name in PRIORS])
        print("the score's pick:", pick := picked(ious, scores), flush=True)
        print(sheet(found, PICTURE))
    except DreamKilnError as error:
        print(f"ablation: {error}", file=sys.stderr)
        return error.exit_code
    machine = describe_machine()
    print(one_line(machine))
    save_run(
        RESULTS,
        machine,
        {"preset": "draft", "prompts": options.first},
        {"rows": figures, "pick": pick, "of_prompts": of_prompts},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
