"""`dreamkiln status`: the orchestrator at a glance."""

from __future__ import annotations

from orchestrator.cli import common

NAME = "status"
HELP = "Show whether the orchestrator runs, what it has and what it does."


def command(state: common.State = None, json: common.Json = False) -> None:
    """Raises NotRunningError where there is none."""
    client = common.running_orchestrator(state)
    answer = client.get("/v1/status")
    if json:
        import json as json_module

        print(json_module.dumps({"ok": True, "url": client.endpoint.url, "pid": client.endpoint.pid, **answer}))
        return
    minutes = answer["uptime_seconds"] / 60
    print(f"{client.endpoint.url} (process {client.endpoint.pid}), up for {minutes:.0f} minutes, ledger {answer['ledger']}")
    memory = answer["memory_bytes"] / 1e9
    print(f"{answer['num_running']} of {answer['num_workers']} workers busy, {memory:.1f} GB for jobs and priors")
    jobs = {state: num for state, num in answer["jobs"].items() if num}
    print(", ".join(f"{num} {state}" for state, num in jobs.items()) or "no jobs yet")
