"""`dreamkiln images --prompts TABLE`: what an option means, and a finished job's last words."""

from __future__ import annotations

import json
import sys

from jobs.errors import InputError
from orchestrator.batch.job_folder import Mode
from orchestrator.batch.perform import BatchOutcome
from orchestrator.batch.report import describe
from orchestrator.settings.batch import FAILURES

__all__ = ["SOME_ROWS_FAILED", "choose_mode", "say_batch_outcome", "verify_place"]

SHARDS_BETWEEN_WORDS = 100
SOME_ROWS_FAILED = 3
"""Exit code of a job that is finished, but left rows without a picture."""


def choose_mode(*, overwrite: bool, retry_failed: bool, resume: bool) -> Mode:
    """The one that was asked for. Raises InputError for two at once."""
    wanted: dict[Mode, bool] = {"resume": resume, "overwrite": overwrite, "retry-failed": retry_failed}
    asked = [mode for mode, is_wanted in wanted.items() if is_wanted]
    if len(asked) > 1:
        raise InputError(f"--{asked[0]} and --{asked[1]} exclude each other; give one of them.")
    return asked[0] if asked else "resume"


def verify_place(location: str, *, as_json: bool, fix: str) -> list[int]:
    """Look at every shard of a finished table, name what is missing or broken, and return those shards.

    Args:
        fix: what the last line advises where something is.
    """
    from orchestrator.batch.verify import check_shards

    broken: list[int] = []
    num_shards = num_pictures = 0
    for checked in check_shards(location):
        num_shards += 1
        num_pictures += checked.num_pictures
        if checked.problem:
            broken.append(checked.shard)
            print(f"shard {checked.shard}: {checked.problem}", file=sys.stderr, flush=True)
        elif num_shards % SHARDS_BETWEEN_WORDS == 0:
            print(f"{num_shards:,} shards read", file=sys.stderr, flush=True)
    if as_json:
        print(json.dumps({"ok": not broken, "folder": location, "num_shards": num_shards, "broken_shards": broken}))
    elif broken:
        print(f"{len(broken):,} of {num_shards:,} shards of {location} are missing or broken; {fix}.")
    else:
        print(f"All {num_shards:,} shards of {location} are as they were written: {num_pictures:,} pictures were decoded.")
    return broken


def say_batch_outcome(outcome: BatchOutcome, *, as_json: bool) -> int:
    """Print the report; returns the exit code, 0 or 3."""
    failed = outcome.report["num_failed"]
    code = SOME_ROWS_FAILED if failed else 0
    if as_json:
        print(json.dumps({"ok": not failed, **outcome.to_json()}, ensure_ascii=False))
        return code
    print(f"{'Already finished' if outcome.did == 'nothing to do' else 'Done'}: {outcome.location}")
    for line in describe(outcome.report):
        print(f"  {line}")
    if outcome.report["num_succeeded"]:
        print(f"  {outcome.location}/index.html shows some of them")
    if failed:
        print(f"  {outcome.location}/{FAILURES} says why; mend the cause, then repeat the command with --retry-failed")
    return code
