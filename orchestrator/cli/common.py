"""Options and habits that the verbs share. Light: no torch, no hydra, no ray."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from jobs.errors import InputError
from jobs.words.prompts import check_prompt
from orchestrator.host.user import user_name

if TYPE_CHECKING:
    from orchestrator.client.client import Client
    from orchestrator.client.prepared_job import PreparedJob
    from orchestrator.client.remote import RemoteClient
    from orchestrator.run.perform import Outcome

__all__ = ["UsageProblem", "run_job", "say_outcome", "with_options_of"]

remote_url: str | None = None
"""Of --url or DREAMKILN_URL; set by `main`."""
current_run_folder: Path | None = None
"""Where an unexpected error leaves its log; set by the verb that knows."""

Prompt = Annotated[str, typer.Argument(help="What to make, in quotes.", show_default=False)]
OptionalPrompt = Annotated[str | None, typer.Argument(help="What to make, in quotes.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="GROUP.KEY=VALUE", help="See 'dreamkiln settings'.", show_default=False)
]
Out = Annotated[
    Path | None, typer.Option(help="Run folder. By default runs/<slug>-<hash>, so that a repeated command continues.")
]
Seed = Annotated[int, typer.Option(help="Where all randomness comes from; 0 to 2^63 - 1.")]
PriorName = Annotated[
    str | None,
    typer.Option("--prior", help="'toybox', a Stable Diffusion's folder or file, or OWNER/NAME; see docs/checkpoints.md."),
]
ClipFolder = Annotated[
    str | None,
    typer.Option("--clip", help="Folder of an open_clip model that scores the mesh beside the prior: clip_score."),
]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="FILE[:SCALE]", help="A LoRA for this job alone, on the shared prior; may be repeated."),
]
Embeddings = Annotated[
    list[str] | None,
    typer.Option(
        "--embedding",
        metavar="FILE[:WORD]",
        help="A textual inversion whose word this job's prompts may use, on the shared prior; may be repeated.",
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="The same to the last bit whatever else a shared prior is asked meanwhile; slower.")
]
State = Annotated[Path | None, typer.Option(help="The orchestrator's folder; $DREAMKILN_STATE or ~/.dreamkiln.")]
Local = Annotated[bool, typer.Option("--local", help="Run it here, in this command, even if an orchestrator is running.")]
Formats = Annotated[str | None, typer.Option("--format", help="Mesh files: glb,gltf,obj,ply,stl,3mf,usdz.")]
Preset = Annotated[str | None, typer.Option(help="draft, default or fine.")]
FitSteps = Annotated[int | None, typer.Option("--steps", help="Steps of the fit; the preset's.")]
FitGuidanceScale = Annotated[
    float | None, typer.Option("--guidance-scale", help="s of uncond + s (cond - uncond) in score distillation; the preset's.")
]
FitNegativePrompt = Annotated[str | None, typer.Option("--negative-prompt", help="What the object should keep away from.")]
FitPreviewEvery = Annotated[
    int | None,
    typer.Option("--preview-every", help="Steps between two looks at the unfinished object: preview.png; 0, none."),
]
RuntimeName = Annotated[str | None, typer.Option("--runtime", help="ray, or inline: everything in this process.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]


class UsageProblem(InputError):
    """The command line itself is wrong: an unknown verb or option, a missing argument."""


def set_remote(url: str | None) -> None:
    """The orchestrator that the verbs ask, on another machine; None: one of this machine's."""
    global remote_url
    remote_url = url


def remote_client() -> RemoteClient | None:
    """Of --url or DREAMKILN_URL; None without them. Raises InputError for no token."""
    if remote_url is None:
        return None
    from orchestrator.client.remote import RemoteClient

    return RemoteClient(remote_url, os.environ.get("DREAMKILN_TOKEN"))


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


def needed_prompt(prompt: str | None) -> str:
    """The prompt of a verb that also takes --prompts. Raises InputError for none, or one that cannot be drawn."""
    if prompt is None:
        raise InputError('There is no prompt; give one in quotes, such as "a red mushroom", or a table of them: --prompts.')
    return check_prompt(prompt)


def settings_beside_table(prompts: str, prompt: str | None, overrides: Sequence[str] | None) -> list[str]:
    """The overrides of a command with --prompts, where what stands in the prompt's place is one too. Raises InputError."""
    if prompt is not None and "=" not in prompt:
        raise InputError(f"There is a prompt ({prompt!r}) and a table of them ({prompts}); give one of the two.")
    return [*([prompt] if prompt is not None else []), *(overrides or ())]


def refuse(given: Mapping[str, Any], *, because: str) -> None:
    """Raises InputError for the first option that has a value; a flag that was given is True."""
    for option, value in given.items():
        if value is not None:
            given_as = option if value is True else f"{option} {value}"
            raise InputError(f"{given_as} does not go with the rest of the command: {because}.")


def with_options_of(prepare: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a verb whose first parameter is a function, which calls `prepare` with what was given.

    The verb has the options of `prepare` before its own.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        theirs, (_, *ours) = _parameters(prepare), _parameters(command)
        names = [parameter.name for parameter in theirs]

        def verb(**given: Any) -> Any:
            options = {name: given.pop(name) for name in names}
            return command(lambda: prepare(**options), **given)

        verb.__doc__ = command.__doc__
        both = sorted([*theirs, *ours], key=lambda parameter: parameter.default is not parameter.empty)
        verb.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
        verb.__annotations__ = {parameter.name: parameter.annotation for parameter in both}
        return verb

    return decorate


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """With their annotations as types."""
    hints = get_type_hints(function, localns={"PreparedJob": Any}, include_extras=True)
    return [
        parameter.replace(annotation=hints[parameter.name]) for parameter in inspect.signature(function).parameters.values()
    ]


def say_outcome(outcome: Outcome, *, as_json: bool) -> None:
    """The last words of a job: what was made, where it is, what to do next."""
    if as_json:
        print(json.dumps({"ok": True, **outcome.to_json()}, ensure_ascii=False))
        return
    total = sum(outcome.seconds.values())
    if outcome.did == "nothing to do":
        print(f"Already finished: {outcome.folder}/ holds it. Choose another --seed or --out for another one.")
    else:
        print(f"Done in {total:.0f} s: {outcome.folder}")
    if flags := outcome.metrics.get("quality_flags"):
        print(f"Look at it before you use it: {', '.join(flags)}.")
    shown = outcome.artefacts[:8]
    for name in shown:
        print(f"  {outcome.folder / name}")
    if len(outcome.artefacts) > len(shown):
        print(f"  … and {len(outcome.artefacts) - len(shown)} more files")


def mesh_options(
    formats: Formats = None,
    steps: FitSteps = None,
    guidance_scale: FitGuidanceScale = None,
    negative_prompt: FitNegativePrompt = None,
    preview_every: FitPreviewEvery = None,
    prior: PriorName = None,
    clip: ClipFolder = None,
    lora: Loras = None,
    embedding: Embeddings = None,
    strict: Strict = False,
    preset: Preset = None,
) -> dict[str, Any]:
    """What the options of a mesh set, by the settings' names; `text-to-3d` and `submit text-to-3d` share them."""
    return {
        "preset": preset,
        "prior.source": prior,
        "prior.strict": strict or None,
        "prior.clip": clip,
        "prior.loras": lora,
        "prior.embeddings": embedding,
        "export.formats": chosen_formats(formats),
        "fit.num_steps": steps,
        "distillation.guidance_scale": guidance_scale,
        "distillation.negative_prompt": negative_prompt,
        "runtime.preview_every": preview_every,
    }


def chosen_formats(formats: str | None) -> list[str] | None:
    """--format as a list."""
    return None if formats is None else [name.strip().lower() for name in formats.split(",") if name.strip()]


def running_orchestrator(state: Path | None) -> Client:
    """The client of the running orchestrator. Raises NotRunningError for none."""
    if (remote := remote_client()) is not None:
        return remote
    from orchestrator.client.client import Client
    from orchestrator.host.state_folder import StateFolder

    return Client(StateFolder.find(state))


def orchestrator_in(state: Path | None) -> Client | None:
    """The client of a running orchestrator, or None; one that has died is mentioned on stderr."""
    if (remote := remote_client()) is not None:
        return remote
    from orchestrator.client.client import Client, NotRunningError
    from orchestrator.host.state_folder import StateFolder

    folder = StateFolder.find(state)
    if folder.endpoint() is None:
        return None
    try:
        client = Client(folder, timeout_seconds=10)
        client.get("/health")
        return client
    except NotRunningError as error:
        print(f"{error} This command runs on its own.", file=sys.stderr)
        return None


def run_job(job: PreparedJob, *, runtime: str | None, is_local: bool, state: Path | None, as_json: bool) -> int:
    """Let a running orchestrator do the job, or do it here; progress goes to stderr and the outcome to stdout.

    Args:
        runtime: what --runtime says, which is how to do it here. is_local: --local.

    Returns:
        The exit code.
    """
    job = job.with_runtime(runtime)
    settings = job.settings.runtime
    is_local = is_local or runtime is not None or settings.kind == "inline" or bool(settings.address)
    from orchestrator.host.progress_display import make_display
    from orchestrator.host.signals import stop_signals_interrupt

    client = None if is_local else orchestrator_in(state)
    set_run_folder(Path(job.out))
    with stop_signals_interrupt(), make_display(stream=sys.stderr) as display:
        if client is None:
            outcome = job.perform(display=display)
        else:
            from orchestrator.client.waiting_client import submit_and_wait
            from orchestrator.host.state_folder import StateFolder

            folder = StateFolder.find(state).path
            outcome = submit_and_wait(job, client, state=folder, user=user_name(), display=display)
    from orchestrator.batch.command import say_batch_outcome
    from orchestrator.batch.perform import BatchOutcome

    if isinstance(outcome, BatchOutcome):
        return say_batch_outcome(outcome, as_json=as_json)
    say_outcome(outcome, as_json=as_json)
    return 0
