"""`dreamkiln export`: finished runs are cut again and written in other formats, in seconds and without a prior."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.errors import DreamKilnError, JobFailed
from orchestrator.cli import common

if TYPE_CHECKING:
    from orchestrator.run.perform import Outcome

NAME = "export"
HELP = "Cut finished 3D runs again: other mesh.* and export.* settings, formats, textures, levels of detail."
EPILOG = (
    "Without settings every file is made again as it was. The run's own folder takes the files unless --out names another. "
    "With --url give numbers of finished jobs there; their files come to --out, or to runs/."
)


Runs = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN… [GROUP.KEY=VALUE]…",
        help="Run folders of text-to-3d, then mesh.*, export.* and runtime.* settings.",
        show_default=False,
    ),
]
Out = Annotated[Path | None, typer.Option(help="Another folder; for several runs the folder of their folders.")]


def command(runs_and_settings: Runs, out: Out = None, formats: common.Formats = None, json: common.Json = False) -> int:
    """One run after the other; one that cannot be exported does not keep the others from it."""
    folders, settings = split(runs_and_settings, formats)
    client = common.remote_client()
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt
    from orchestrator.run.export import export_run

    if client is not None:
        from orchestrator.client.waiting_client import export_and_wait

        requests = [client.export_of(job, settings) for job in numbers(folders)]
    outcomes: list[Outcome] = []
    failures: list[DreamKilnError] = []
    with stop_signals_interrupt(), make_display(stream=sys.stderr) as display:
        for index, folder in enumerate(folders):
            target = target_of(folder, out, num=len(folders))
            try:
                if client is not None:
                    outcomes.append(export_and_wait(client, requests[index], target, display))
                    continue
                common.set_run_folder(folder)
                outcomes.append(export_run(folder, settings, out=target, display=display))
            except DreamKilnError as error:
                if len(folders) == 1:
                    raise
                display.message(str(error), "warning")
                failures.append(error)
    _say(outcomes, as_json=json)
    if failures:
        raise JobFailed(f"{len(failures)} of {len(folders)} runs could not be exported, the first because: {failures[0]}")
    return 0


def split(words: list[str], formats: str | None) -> tuple[list[Path], dict[str, str]]:
    """Folders from settings: a setting has a = and is no folder. formats: of --format. Raises UsageProblem without a folder."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    folders = [Path(word) for word in words if word not in settings]
    if not folders:
        raise common.UsageProblem("There is no run to export; give run folders of 'dreamkiln text-to-3d' before the settings.")
    pairs = common.split_overrides(settings)
    if (chosen := common.chosen_formats(formats)) is not None:
        import json

        pairs["export.formats"] = json.dumps(chosen)
    return folders, pairs


def numbers(folders: list[Path]) -> list[int]:
    """Of jobs on another machine, whose folders nobody here has. Raises UsageProblem."""
    for folder in folders:
        if not (str(folder).isascii() and str(folder).isdigit()):
            raise common.UsageProblem(f"Over --url an export names a job there by its number, but {str(folder)!r} was given.")
    return [int(str(folder)) for folder in folders]


def target_of(folder: Path, out: Path | None, *, num: int) -> Path | None:
    """Where one of `num` runs is written; None for the run's own folder."""
    return out if out is None or num == 1 else out / folder.resolve().name


def _say(outcomes: list[Outcome], *, as_json: bool) -> None:
    if not as_json:
        for outcome in outcomes:
            common.say_outcome(outcome, as_json=False)
        return
    import json

    print(json.dumps({"ok": True, "runs": [outcome.to_json() for outcome in outcomes]}, ensure_ascii=False))
