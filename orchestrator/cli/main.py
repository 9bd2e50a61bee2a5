"""`dreamkiln`: the command line. Every verb is a file beside this one; what is heavy is imported inside the verbs.

Exit codes: 0 done, 1 the job failed, 2 bad usage or bad input, 130 interrupted and resumable. An error is one sentence on
stderr; `--debug` (anywhere on the line) or DREAMKILN_DEBUG=1 shows the traceback as well.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.errors import DreamKilnError, InputError, Interrupted, OutputError, UnexpectedError
from jobs.words.safe_text import shown
from orchestrator.cli import common
from orchestrator.cli.verb_settings import as_options
from orchestrator.cli.verbs import (
    compare,
    doctor,
    evaluate,
    examples,
    export,
    images,
    sample,
    settings,
    sweep,
    text_to_3d,
    texture,
    toybox,
    train,
)
from orchestrator.cli.verbs.queue import down, jobs, status, submit, token, up, users
from orchestrator.host import signals
from orchestrator.host.first_words import first_words

__all__ = ["app", "main"]

app = typer.Typer(
    name="dreamkiln",
    help="Turn sentences into 3D meshes and into sets of images.",
    epilog="Settings stand at a verb's end, group.key=value, such as fit.num_steps=200 or field=hash_grid; see 'settings'.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _say_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        print(f"dreamkiln {importlib.metadata.version('dreamkiln')}")
        raise typer.Exit


@app.callback()
def dreamkiln(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_say_version, is_eager=True)
    ] = False,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            help="An orchestrator elsewhere, anywhere on the line; DREAMKILN_URL. Its token: DREAMKILN_TOKEN.",
        ),
    ] = None,
) -> None:
    """What holds for every verb."""


for verb in (
    text_to_3d,
    images,
    texture,
    export,
    sweep,
    compare,
    train,
    sample,
    evaluate,
    settings,
    examples,
    doctor,
    up,
    down,
    status,
):
    app.command(name=verb.NAME, help=verb.HELP, epilog=getattr(verb, "EPILOG", None))(verb.command)
for group in (toybox, submit, jobs, users, token):
    app.add_typer(group.app, name=group.NAME, help=group.HELP)

_IMPORTING = "one moment: loading torch and the settings"
FIRST_WORDS = {
    **dict.fromkeys(
        ("text-to-3d", "images", "texture", "export", "sweep", "compare", "train", "sample", "evaluate", "toybox", "submit"),
        _IMPORTING,
    ),
    "doctor": "one moment: looking at this machine",
    "up": "starting the orchestrator, and Ray for it",
    "down": "waiting for running jobs to stop",
}
MAY_BE_EMPTY = {"--negative-prompt"}

UsageError: Any = typer.BadParameter.__bases__[0]
"""click's; typer brings its own copy of click in some versions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; never a traceback unless asked for."""
    if arguments is None:
        _print_whatever_the_terminal_can_show()
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        print(end="", flush=True)
        return code
    except (BrokenPipeError, SystemExit) as end:
        if isinstance(end, SystemExit) and not isinstance(end.__context__, BrokenPipeError):  # click makes one of the other
            raise
        # The reader of our output has gone (`dreamkiln … | head`): nothing left to say.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(nowhere, number)
        return 0


def _run(given: list[str]) -> int:
    """The command's exit code; what it raised has been said."""
    debug = bool(os.environ.get("DREAMKILN_DEBUG")) or "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    given, url = _without_url(given)
    common.set_remote(url)
    as_json = "--json" in given
    given = [_at_home(argument) for argument in given]
    common.set_run_folder(None)
    signals.forget_stop_signal()
    try:
        _refuse_empty_options(given)
        command = typer.main.get_command(app)
        with _first_words(given):
            result = command.main(as_options(command, given), prog_name="dreamkiln", standalone_mode=False)
        if result == Interrupted.exit_code:  # what newer versions of typer make of Ctrl-C
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        raise
    except (KeyboardInterrupt, typer.Abort):
        return _report(Interrupted("Stopped."), as_json=as_json)
    except typer.Exit as exit_:
        return exit_.exit_code
    except Exception as error:
        if isinstance(error, UsageError) and not error.format_message():
            return 2  # a verb without arguments: its help has been shown
        if debug:
            traceback.print_exc()
        return _report(_explained(error, given), as_json=as_json)


def _first_words(given: Sequence[str]) -> AbstractContextManager[None]:
    """Something to read within a second, where what the verb imports has yet to be imported."""
    words = FIRST_WORDS.get(given[0]) if given else None
    if words is None or "torch" in sys.modules or {"-h", "--help"} & set(given):
        return contextlib.nullcontext()
    return first_words(words)


def _without_url(given: list[str]) -> tuple[list[str], str | None]:
    """The line without `--url ADDRESS`, which may stand anywhere before a `--`, and the address; else DREAMKILN_URL's."""
    url = os.environ.get("DREAMKILN_URL") or None
    end = given.index("--") if "--" in given else len(given)
    for place, argument in enumerate(given[:end]):
        if argument.startswith("--url="):
            return [*given[:place], *given[place + 1 :]], argument.partition("=")[2]
        if argument == "--url" and place + 1 < end:
            return [*given[:place], *given[place + 2 :]], given[place + 1]
    return given, url


def _print_whatever_the_terminal_can_show() -> None:
    """A terminal without Unicode shows "?" for what it lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where the caller has closed it
            stream.reconfigure(errors="replace")


def _explained(error: Exception, given: Sequence[str] = ()) -> DreamKilnError:
    """Whatever was raised, as an error of ours with one sentence."""
    if isinstance(error, DreamKilnError) and not isinstance(error, UnexpectedError):
        return error
    if isinstance(error, UsageError):
        return common.UsageProblem(_usage(error, given))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" that holds {error.filename}" if error.filename else ""
        return OutputError(f"The disk{where} is full; free some space and repeat the same command to continue.")
    what = _first_line(error) if isinstance(error, UnexpectedError) else f"{type(error).__name__}: {_first_line(error)}"
    if signals.last_stop_signal() is not None:  # a library has made something else of the interrupt
        return Interrupted(f"Stopped. What was interrupted said {what}; the details are in {_write_log(error)}.")
    return DreamKilnError(f"Something unexpected went wrong ({what}); the details are in {_write_log(error)}.")


def _usage(error: Any, given: Sequence[str]) -> str:
    """click's message as one sentence that names the value, with a pointer to the help of the verb in `given`."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if hasattr(error.__cause__, "errors"):  # pydantic's, which calls every value "Input"
        message = message.replace("Input", repr(error.__cause__.errors()[0]["input"]), 1)
    message += _meant(error, given)
    path, _ = _verb(given)
    return f"{message}{' See' if message.endswith('?') else '; see'} '{' '.join(path)} --help'."


def _meant(error: Any, given: Sequence[str]) -> str:
    """What an unknown option may have been meant as: a setting of that name, or a prompt that begins with a dash."""
    option = str(getattr(error, "option_name", "") or "")
    if not option:
        return ""
    if any(argument.startswith(option) and " " in argument for argument in given):
        return "; a prompt that begins with a dash stands behind '--'"
    from orchestrator.settings.compose import setting_names

    name = option.lstrip("-").replace("-", "_")
    names = [setting for setting in setting_names() if setting.rpartition(".")[2] == name and "." in setting]
    return f"; a setting has that name: {' or '.join(f'{setting}=…' for setting in names)}" if names else ""


def _at_home(argument: str) -> str:
    """The argument as a shell would give it were there a space instead of "=": in --out=~/x it leaves the tilde."""
    name, equals, value = argument.partition("=")
    is_named = equals and name.startswith("--") and " " not in name
    return f"{name}={os.path.expanduser(value)}" if is_named and value.startswith("~") else argument


def _verb(given: Sequence[str]) -> tuple[list[str], Any]:
    """The words that name a verb or a group of them, "dreamkiln" before them, and click's command."""
    path, command = ["dreamkiln"], typer.main.get_command(app)
    for argument in given:
        if argument not in (verbs := getattr(command, "commands", {})):
            break
        path, command = [*path, argument], verbs[argument]
    return path, command


def _refuse_empty_options(given: Sequence[str]) -> None:
    """An unset variable of the shell leaves `--prior ""`, which must not mean the default. Raises InputError."""
    _, command = _verb(given)
    with_value = {name for option in command.params if not getattr(option, "is_flag", True) for name in option.opts}
    for argument, following in zip(given, [*given[1:], "nothing"], strict=True):
        name, equals, value = argument.partition("=")
        if name in with_value - MAY_BE_EMPTY and not (value if equals else following).strip():
            raise InputError(f"{name} is empty, perhaps from an unset variable of the shell; give it a value, or leave it out.")


def _report(error: DreamKilnError, *, as_json: bool) -> int:
    sentence = " ".join(str(error).split()) or type(error).__name__
    print(f"dreamkiln: {shown(sentence)}", file=sys.stderr)
    if as_json:
        print(json.dumps({"ok": False, "error": sentence, "kind": type(error).__name__, "exit_code": error.exit_code}))
    return error.exit_code


def _write_log(error: Exception) -> Path:
    """The traceback in a file: in the run folder if there is one, else in the temporary folder."""
    text = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} dreamkiln {' '.join(sys.argv[1:])}\n"
    text += "".join(traceback.format_exception(error))
    name = f"error-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    for folder in (common.current_run_folder, Path(tempfile.gettempdir())):
        if folder is not None and folder.is_dir():
            try:
                (folder / name).write_text(text, encoding="utf-8")
            except OSError:
                continue
            return folder / name
    return Path(os.devnull)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


if __name__ == "__main__":
    sys.exit(main())
