"""`dreamkiln token`: who else may use the orchestrator."""

from __future__ import annotations

import json as json_module
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli import common

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.daemon.http.tokens import TokenBook

NAME = "token"
HELP = "Named tokens of the HTTP API and its page: who may look, submit, operate or administer."

Name = Annotated[str, typer.Argument(help="The token's name.", show_default=False)]

BOUNDS = (("max_jobs", "jobs"), ("max_running", "at once"), ("max_bytes", "bytes"))

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def token() -> None:
    """A group."""


@app.command(help="Make a token and print it, this once: only its hash is kept.")
def create(
    name: Name,
    scope: Annotated[str, typer.Option(help="read, submit, operate or admin; each holds those before it.")] = "submit",
    user: Annotated[str | None, typer.Option(help="Whose jobs they are; the token's name.")] = None,
    max_jobs: Annotated[int | None, typer.Option(help="Jobs of theirs that may be queued or running at once.")] = None,
    max_running: Annotated[int | None, typer.Option(help="Of those, at work at once.")] = None,
    max_bytes: Annotated[int | None, typer.Option(help="Bytes of uploads that are kept for them.")] = None,
    state: common.State = None,
    json: common.Json = False,
) -> None:
    """Works beside a running orchestrator, which sees it at once."""
    bounds = {"max_jobs": max_jobs, "max_running": max_running, "max_bytes": max_bytes}
    made = _book(state).create(name, scope=scope, user=user, **bounds)
    print(json_module.dumps({"ok": True, "name": name, "scope": scope, "token": made}) if json else made)


@app.command(name="list", help="The named tokens, without what is secret.")
def list_(state: common.State = None, json: common.Json = False) -> None:
    """A line each, or JSON."""
    tokens = _book(state).all()
    if json:
        print(json_module.dumps({"ok": True, "tokens": tokens}))
        return
    for one in tokens:
        bounds = "".join(f", {word} {one[key]:,}" for key, word in BOUNDS if one[key])
        since = datetime.fromtimestamp(one["created_at"], UTC)
        print(f"{one['name']:24} {one['scope']:8} user {one['user']}, since {since:%Y-%m-%d}{bounds}")
    if not tokens:
        print("No named tokens; 'dreamkiln token create NAME' makes one.")


@app.command(help="End a token and the cookies made with it, from the next call on.")
def revoke(name: Name, state: common.State = None, json: common.Json = False) -> None:
    """Jobs that were submitted with it go on."""
    _book(state).revoke(name)
    print(json_module.dumps({"ok": True, "name": name}) if json else f"{name}: revoked")


def _book(state: Path | None) -> TokenBook:
    from orchestrator.daemon.http.tokens import TokenBook
    from orchestrator.host.state_folder import StateFolder

    folder = StateFolder.find(state)
    folder.create()
    return TokenBook(folder)
