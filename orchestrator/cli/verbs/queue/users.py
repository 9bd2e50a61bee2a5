"""`dreamkiln users`: how large each user's share is."""

from __future__ import annotations

import json as json_module
from typing import Annotated
from urllib.parse import quote

import typer

from orchestrator.cli import common

NAME = "users"
HELP = "See and set the shares of users: of places to run, and of the rows of a shared prior."

app = typer.Typer(no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def users() -> None:
    """A group."""


@app.command(name="list", help="Everybody who has submitted a job, with weight and work of the last day.")
def list_(state: common.State = None, json: common.Json = False) -> None:
    """A table, or JSON."""
    answer = common.running_orchestrator(state).get("/v1/users")
    if json:
        print(json_module.dumps({"ok": True, **answer}, ensure_ascii=False))
        return
    for user in answer["users"]:
        print(f"{user['name']:24} weight {user['weight']:g}, {user['seconds']:.0f} s of work in the last day")


@app.command(help="Give a user's jobs WEIGHT times the share of a user with weight 1.")
def weight(
    name: Annotated[str, typer.Argument(help="The user, as 'users list' shows it.", show_default=False)],
    weight: Annotated[float, typer.Argument(help="Above 0, up to 1000; 1 is everybody's.", show_default=False)],
    state: common.State = None,
    json: common.Json = False,
) -> None:
    """It holds from the next round on, for running jobs too."""
    answer = common.running_orchestrator(state).put(f"/v1/users/{quote(name, safe='')}", weight=weight)
    print(json_module.dumps({"ok": True, **answer}) if json else f"{answer['name']}: weight {answer['weight']:g}")
