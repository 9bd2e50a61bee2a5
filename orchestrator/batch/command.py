"""`dreamkiln images --prompts TABLE`: what an option means, and a finished job's last words."""

from __future__ import annotations

import json

from jobs.errors import InputError
from orchestrator.batch.job_folder import Mode
from orchestrator.batch.perform import BatchOutcome
from orchestrator.batch.report import describe
from orchestrator.settings.batch import FAILURES

__all__ = ["SOME_ROWS_FAILED", "choose_mode", "say_batch_outcome"]

SOME_ROWS_FAILED = 3
"""Exit code of a job that is finished, but left rows without a picture."""


def choose_mode(*, overwrite: bool, retry_failed: bool, resume: bool) -> Mode:
    """The one that was asked for. Raises InputError for two at once."""
    wanted: dict[Mode, bool] = {"resume": resume, "overwrite": overwrite, "retry-failed": retry_failed}
    asked = [mode for mode, is_wanted in wanted.items() if is_wanted]
    if len(asked) > 1:
        raise InputError(f"--{asked[0]} and --{asked[1]} exclude each other; give one of them.")
    return asked[0] if asked else "resume"


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
