"""`dreamkiln doctor`: is this machine ready?"""

from __future__ import annotations

from orchestrator.cli import common

NAME = "doctor"
HELP = "Check this machine: Python, torch, Ray, nerfacc, ffmpeg, the prior, disk space."


def command(prior: common.PriorName = None, json: common.Json = False) -> int:
    """Exit code 1 if something that every job needs is missing."""
    from orchestrator.cli.machine_checks import examine, print_checks

    checks = examine(prior or "toybox")
    print_checks(checks, as_json=json)
    return int(any(check.level == "fail" for check in checks))
