"""The gallery: 24 prompts, or with --first 64 all 64, half of them held out, through the product itself, with its scores.

The prompts and the seed are fixed below and nothing is picked; all are shown, what fails as failed. An interrupted run goes
on when it is repeated. docs/gallery/ gets one small contact sheet a prompt, meshes.webp (the 24, turning), README.md and
scores.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.machine import describe_machine, one_line
from benchmarks.pictures import write_small_animation, write_small_webp
from jobs.errors import DreamKilnError, JobFailed
from jobs.words.prompts import slug

if TYPE_CHECKING:
    from orchestrator.lab.evaluation.report import GeometryMeans, MeshesReport, MeshScore

HELD_OUT = (
    "a red table",
    "a purple chair",
    "a blue mushroom with a yellow stem",
    "a pink house with a blue roof",
    "a green rocket",
    "a blue car",
    "an orange duck",
    "a yellow lighthouse",
    "a cyan robot",
    "a purple sofa",
    "a red teapot",
    "a blue snowman",
)
"""Colours of a kind that training never drew."""

TAUGHT = (
    "a red mushroom with a white stem",
    "a yellow plane",
    "a green boat with a yellow sail",
    "a red barrel",
    "a pink cactus with a white pot",
    "a black hat with a red band",
    "a blue bottle",
    "a white lamp with a red base",
    "an orange truck",
    "a green pine tree with a brown trunk",
    "a pink donut with brown dough",
    "a gray hammer with a brown handle",
)
PROMPTS = HELD_OUT + TAUGHT
"""The 24 that stand in the README."""

MORE_HELD_OUT = (
    "a cyan cube",
    "a yellow cake",
    "a green apple",
    "a green pyramid",
    "a red penguin",
    "a pink stool with purple legs",
    "a blue ice cream with an orange cone",
    "a gray cylinder",
    "a green bed",
    "a red donut",
    "a gray cactus with a white pot",
    "a white duck with a black beak",
    "a black bottle",
    "a cyan rocket with a red nose",
    "a blue boat with an orange sail",
    "a brown barrel",
    "a yellow egg",
    "a gray umbrella with a black handle",
    "a gray lighthouse with a black roof",
    "a gray vase",
)
MORE_TAUGHT = (
    "a purple cone",
    "a cyan egg",
    "a pink tree",
    "a pink ball",
    "an orange present with a pink ribbon",
    "a black mug",
    "a black vase",
    "a brown umbrella",
    "a purple truck with a white trailer",
    "an orange car",
    "a cyan cake",
    "a gray chair with red legs",
    "a green lamp with a black base",
    "a yellow robot",
    "a white teapot with a black lid",
    "a yellow penguin",
    "a cyan hammer",
    "a brown pyramid",
    "a brown table",
    "a blue sofa",
)
ALL_PROMPTS = PROMPTS + MORE_HELD_OUT + MORE_TAUGHT
"""64 of every kind, half of them held out, the 24 first."""

SEED = 0

COLUMNS = (
    *("prompt", "held out", "rank", "views right", "clay rank"),
    *("silhouette IoU", "volume IoU", "F-score", "pieces", "watertight", "seconds"),
)

MAX_SHEET_BYTES = 60_000
SHEET_WIDTH = 560
MAX_TURN_BYTES = 480_000
TURN_SIZE, TURNS_PER_ROW, TURN_FRAMES = 128, 6, 24


@dataclass(frozen=True)
class Made:
    """One prompt's run folder; failure: why there is no mesh."""

    number: int
    prompt: str
    folder: Path
    failure: str = ""

    @property
    def sheet(self) -> str:
        """File name of its contact sheet in the gallery."""
        return f"{self.number:02d}-{slug(self.prompt)}.webp"


def make(prompts: Sequence[str], *, preset: str, prior: str, runs: Path, overrides: Sequence[str] = ()) -> list[Made]:
    """Runs text-to-3d for every prompt in this process; finished ones are kept.

    Raises:
        InputError: the settings or the prior cannot be used. Interrupted: repeat to go on.
    """
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt
    from orchestrator.run.perform import perform
    from orchestrator.settings.compose import compose

    settings = compose(overrides, options={"preset": preset, "runtime": "inline", "prior.source": prior})
    made = []
    for number, prompt in enumerate(prompts, 1):
        folder = runs / f"{number:02d}-{slug(prompt)}"
        print(f"{number}/{len(prompts)} {prompt}", file=sys.stderr, flush=True)
        spec = settings.text_to_3d(prompt, seed=SEED)
        try:
            with stop_signals_interrupt(), make_display(stream=sys.stderr) as display:
                perform(spec, out=folder, export=settings.export, runtime=settings.runtime, display=display)
            made.append(Made(number, prompt, folder))
        except JobFailed as error:
            made.append(Made(number, prompt, folder, failure=" ".join(str(error).split())))
    return made


def write_gallery(made: Sequence[Made], docs: Path, *, preset: str, prior: str, judge: str = "") -> MeshesReport | None:
    """Contact sheets, overview, scores and index; None where no prompt came to a mesh.

    Raises:
        InputError: the judge cannot be used.
    """
    from PIL import Image

    from orchestrator.host.atomic import write_text
    from orchestrator.host.progress_display import make_display
    from orchestrator.lab.evaluation.meshes import evaluate_meshes
    from orchestrator.lab.evaluation.settings import EvaluationSettings

    docs.mkdir(parents=True, exist_ok=True)
    succeeded = [one for one in made if not one.failure]
    for one in succeeded:
        with Image.open(one.folder / "preview.png") as preview:
            sheet = np.asarray(preview.convert("RGB"))
        write_small_webp(sheet, docs / one.sheet, max_bytes=MAX_SHEET_BYTES, max_width=SHEET_WIDTH)
    report = None
    if succeeded:
        shown = [one for one in succeeded if one.prompt in PROMPTS]
        write_small_animation(turning(shown), docs / "meshes.webp", max_bytes=MAX_TURN_BYTES)
        with make_display(stream=sys.stderr) as display:
            settings = EvaluationSettings(prior=prior, judge=judge)
            report, page = evaluate_meshes([one.folder for one in succeeded], settings, display=display)
        write_small_webp(page, docs / "overview.webp", max_bytes=3 * MAX_SHEET_BYTES)
        write_text(docs / "scores.json", json.dumps(report.to_json(), indent=2) + "\n")
    write_text(docs / "README.md", index(made, report, preset=preset, machine=one_line(describe_machine())))
    return report


def turning(made: Sequence[Made]) -> list[np.ndarray]:
    """TURN_FRAMES pages (H, W, 3) uint8 on which every mesh, with its prompt, turns once round from half left of its front."""
    from orchestrator.exports.turntable import turntable_frames
    from orchestrator.lab.evaluation.mesh_sets import read_mesh
    from orchestrator.lab.evaluation.picture import Tile, labelled_sheet

    turns = [turntable_frames(read_mesh(one.folder).mesh, num_frames=TURN_FRAMES, size=TURN_SIZE) for one in made]
    pages = []
    for images in zip(*turns, strict=True):
        tiles = [Tile(image, (one.prompt,)) for one, image in zip(made, images, strict=True)]
        pages.append(labelled_sheet(tiles, num_columns=TURNS_PER_ROW))
    return pages[TURN_FRAMES // 8 :] + pages[: TURN_FRAMES // 8]


def index(made: Sequence[Made], report: MeshesReport | None, *, preset: str, machine: str) -> str:
    """docs/gallery/README.md."""
    scores = {item.name: item for item in report.items} if report else {}
    lines = [
        "# Gallery",
        "",
        f"`python -m benchmarks.gallery --preset {preset}`: {len(made)} fixed prompts, seed {SEED}, none picked, none left",
        "out. Held-out prompts name colours of a kind that the prior's training never drew. Each sheet shows the mesh from",
        "eight sides, and the last row the same mesh as white clay.",
        "",
        f"Measured on: {machine}. Seconds are of the wall clock, whatever else the machine was doing.",
        "",
        *_summary(made, report),
        "",
        *_table(made, scores),
        "",
    ]
    if report is not None:
        lines += ["![the first 24 turning](meshes.webp)", ""]
        lines += ["What the judge saw, beside the true objects:", "", "![overview](overview.webp)", ""]
    for one in made:
        lines += [f"## {one.number}. {one.prompt}", ""]
        lines += [f"Failed: {one.failure}" if one.failure else f"![{one.prompt}]({one.sheet})", ""]
    return "\n".join(lines)


def _summary(made: Sequence[Made], report: MeshesReport | None) -> list[str]:
    failed = sum(bool(one.failure) for one in made)
    lines = [f"{len(made) - failed} of {len(made)} prompts came to a mesh."]
    if report is None:
        return lines
    lines += [
        "",
        f"| R-Precision among {report.setting.num_captions} captions | scored | R@1 | R@5 | mean rank | right kind |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {p.num_scored} | {p.r_at_1:.1%} | {p.r_at_5:.1%} | {p.mean_rank:.1f} | {p.right_kind:.1%} |"
        for name, p in report.precision.items()
    ]
    lines += [
        "",
        "White clay cannot show the colours that its caption names: read its right kind, not its rank.",
    ]
    if (means := report.geometry) is not None:
        lines += [
            "",
            "| Against the true objects | silhouette IoU | volume IoU | F-score at 0.05 | Chamfer distance | pose error |",
            "|---|---|---|---|---|---|",
            _geometry_row("of mean proportions", means),
        ]
        lines += [_geometry_row("of the nearest proportions", report.nearest)] if report.nearest else []
        lines += [
            "",
            "Means with their 95 % intervals; lengths are shares of the longest side. A sentence leaves the proportions free:",
            "the second row takes, of the objects that training may show under it, the nearest.",
            f"{means.num_sound} of {len(report.items)} are watertight and in one piece (or as many as the true object).",
        ]
    return lines


def _geometry_row(name: str, means: GeometryMeans) -> str:
    cells = []
    for figure in ("silhouette_iou", "volumetric_iou", "f_score", "chamfer"):
        bounds = means.intervals.get(figure)
        within = "" if bounds is None else " ({:.3f} to {:.3f})".format(*bounds)
        cells.append(f"{getattr(means, figure):.3f}{within}")
    pose = "" if means.pose_error_degrees is None else f"{means.pose_error_degrees:.0f} degrees"
    return f"| {name} | {' | '.join(cells)} | {pose} |"


def _table(made: Sequence[Made], scores: Mapping[str, MeshScore]) -> list[str]:
    lines = [
        f"| | {' | '.join(COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for one in made:
        held_out = "yes" if one.prompt in HELD_OUT + MORE_HELD_OUT else "no"
        item = scores.get(one.folder.name)
        if item is None:
            lines.append(f"| {one.number} | {one.prompt} | {held_out} | failed {'| ' * (len(COLUMNS) - 3)}|")
            continue
        ranks, shape = item.coloured.view_ranks, item.geometry
        cells = [
            f"[{one.prompt}]({one.sheet})",
            held_out,
            str(item.coloured.rank) + ("" if item.coloured.rank == 1 else f" ({item.coloured.taken_for})"),
            f"{sum(rank == 1 for rank in ranks)}/{len(ranks)}",
            str(item.textureless.rank),
            *((f"{shape.silhouette_iou:.2f}", f"{shape.volumetric_iou:.2f}", f"{shape.f_score:.2f}") if shape else ("",) * 3),
            str(item.num_components),
            "yes" if item.is_watertight else "no",
            "" if item.seconds is None else f"{item.seconds:.0f}",
        ]
        lines.append(f"| {one.number} | {' | '.join(cells)} |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """1 if a prompt came to no mesh."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="default", help="draft, default or fine")
    parser.add_argument("--prior", default="toybox")
    parser.add_argument("--judge", default="", help="another judge's folder than the prior's")
    count = f"only the first N prompts, at most {len(ALL_PROMPTS)}; {len(PROMPTS)} by default"
    parser.add_argument("--first", type=int, default=len(PROMPTS), metavar="N", help=count)
    parser.add_argument("--runs", type=Path, help="run folders; by default runs/gallery-<preset>")
    parser.add_argument("--docs", type=Path, default=Path("docs/gallery"))
    parser.add_argument("overrides", nargs="*", metavar="GROUP.KEY=VALUE")
    options = parser.parse_args(arguments)
    runs = options.runs or Path("runs") / f"gallery-{options.preset}"
    try:
        made = make(
            ALL_PROMPTS[: max(1, options.first)],
            preset=options.preset,
            prior=options.prior,
            runs=runs,
            overrides=options.overrides,
        )
        report = write_gallery(made, options.docs, preset=options.preset, prior=options.prior, judge=options.judge)
    except DreamKilnError as error:
        print(f"gallery: {error}", file=sys.stderr)
        return error.exit_code
    if report is not None:
        from orchestrator.lab.evaluation.table import print_report

        print_report(report, sys.stdout)
    print(options.docs / "README.md")
    return int(any(one.failure for one in made))


if __name__ == "__main__":
    sys.exit(main())
