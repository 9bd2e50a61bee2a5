"""`dreamkiln down`: end the orchestrator."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli import common

NAME = "down"
HELP = "Stop the orchestrator; running jobs stop at their next step and go on with the next 'dreamkiln up'."


def command(
    state: common.State = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for it.", min=0)] = 60.0,
    json: common.Json = False,
) -> None:
    """Returns when its process has ended."""
    from orchestrator.client.launch import shut_down
    from orchestrator.host.state_folder import StateFolder

    was_running = shut_down(StateFolder.find(state), timeout_seconds=timeout)
    if json:
        import json as json_module

        print(json_module.dumps({"ok": True, "was_running": was_running}))
    else:
        print("Stopped." if was_running else "No orchestrator was running.")
