"""Options and habits that the verbs share. Light: no torch, no hydra, no ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.errors import InputError

if TYPE_CHECKING:
    from orchestrator.perform import Outcome

__all__ = ["UsageProblem", "say_outcome"]

current_run_folder: Path | None = None
"""Where an unexpected error leaves its log; set by the verb that knows."""

Prompt = Annotated[str, typer.Argument(help="What to make, in quotes.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[GROUP.KEY=VALUE]...", help="Settings, such as fit.num_steps=200.")
]
Out = Annotated[
    Path | None, typer.Option(help="Run folder. By default runs/<slug>-<hash>, so that a repeated command continues.")
]
Seed = Annotated[int, typer.Option(help="Where all randomness comes from; 0 to 2^63 - 1.")]
PriorName = Annotated[
    str | None,
    typer.Option("--prior", help="'toybox', a Stable Diffusion's folder or file, or OWNER/NAME; see docs/checkpoints.md."),
]
Preset = Annotated[str | None, typer.Option(help="draft, default or fine.")]
RuntimeName = Annotated[str | None, typer.Option("--runtime", help="ray, or inline: everything in this process.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


class UsageProblem(InputError):
    """The command line itself is wrong: an unknown verb or option, a missing argument."""


def set_run_folder(folder: Path | None) -> None:
    """Where `main` writes the log of an unexpected error."""
    global current_run_folder
    current_run_folder = folder


def split_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """key=value texts as a dictionary. Raises InputError for anything else."""
    pairs = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not (equals and key):
            raise InputError(f"{override!r} is neither an option nor a setting such as denoiser.num_steps=200.")
        pairs[key] = value
    return pairs


def refuse(given: Mapping[str, Any], *, because: str) -> None:
    """Raises InputError for the first option that has a value."""
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option} {value} does not go with the rest of the command: {because}.")


def say_outcome(outcome: Outcome, *, as_json: bool) -> None:
    """The last words of a job: what was made, where it is, what to do next."""
    if as_json:
        print(json.dumps({"ok": True, **outcome.to_json()}, ensure_ascii=False))
        return
    total = sum(outcome.seconds.values())
    if outcome.did == "nothing to do":
        print(f"Already finished: {outcome.folder}. Choose another --seed or --out for another one.")
    else:
        print(f"Done in {total:.0f} s: {outcome.folder}")
    shown = outcome.artefacts[:8]
    for name in shown:
        print(f"  {outcome.folder / name}")
    if len(outcome.artefacts) > len(shown):
        print(f"  … and {len(outcome.artefacts) - len(shown)} more files")


def run_job(spec: Any, settings: Any, *, out: Path | None, as_json: bool, **more: Any) -> None:
    """Perform a job with its progress on stderr and its outcome on stdout; `more` goes to `perform`."""
    from orchestrator.perform import perform
    from orchestrator.progress_display import make_display
    from orchestrator.run_folder import default_folder
    from orchestrator.signals import stop_signals_interrupt

    folder = out if out is not None else default_folder(spec)
    set_run_folder(folder)
    with stop_signals_interrupt(), make_display(stream=sys.stderr) as display:
        outcome = perform(spec, out=folder, export=settings.export, runtime=settings.runtime, display=display, **more)
    say_outcome(outcome, as_json=as_json)
