"""`dreamkiln images --prompts TABLE`: from options to job to last words."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jobs import codec
from jobs.batch_images import BatchImagesSpec
from jobs.errors import InputError
from orchestrator.batch.job_folder import FAILURES, Mode
from orchestrator.batch.perform import BatchOutcome, perform_batch
from orchestrator.batch.report import describe
from orchestrator.batch.tables import TableSource
from orchestrator.prior_source import check_prior

__all__ = ["DEFAULT_WORKERS", "SOME_ROWS_FAILED", "choose_mode", "run"]

SOME_ROWS_FAILED = 3
"""Exit code of a job that is finished, but left rows without a picture."""
DEFAULT_WORKERS = 4
MAX_WORKERS = 1024


def run(
    prompts: str,
    *,
    overrides: Sequence[str] = (),
    options: Mapping[str, Any],
    batch: Mapping[str, Any],
    seed: int = 0,
    out: str | None = None,
    mode: Mode = "resume",
    num_workers: int = DEFAULT_WORKERS,
    price_per_hour: float | None = None,
    as_json: bool = False,
) -> int:
    """Read the table, draw it, print the report; returns 0, or 3 where rows failed.

    Args:
        prompts: path, folder, glob or URL.
        overrides, options: as `orchestrator.compose.compose` takes them.
        batch: fields of `BatchImagesSpec` that no other option sets (prompt_column, shard_size, output_format); None is
            skipped.

    Raises:
        InputError: what cannot be used, named. See `perform_batch` for the rest.
    """
    _check(price_per_hour, num_workers)
    given = {name: value for name, value in batch.items() if value is not None}
    source = TableSource.find(prompts, prompt_column=given.get("prompt_column", "prompt"))
    from orchestrator.compose import compose
    from orchestrator.progress_display import make_display
    from orchestrator.signals import stop_signals_interrupt

    settings = compose(overrides, options=options)
    check_prior(settings.prior.source)
    with stop_signals_interrupt(), make_display(stream=sys.stderr) as display:
        spec = _spec(source, settings, seed=seed, given=given)
        outcome = perform_batch(
            spec,
            source,
            out=out if out is not None else str(Path("runs") / spec.name),
            mode=mode,
            runtime=settings.runtime,
            num_workers=num_workers,
            price_per_hour=price_per_hour,
            display=display,
        )
    _say(outcome, as_json=as_json)
    return SOME_ROWS_FAILED if outcome.report["num_failed"] else 0


def choose_mode(*, overwrite: bool, retry_failed: bool, resume: bool) -> Mode:
    """The one that was asked for. Raises InputError for two at once."""
    wanted: dict[Mode, bool] = {"resume": resume, "overwrite": overwrite, "retry-failed": retry_failed}
    asked = [mode for mode, is_wanted in wanted.items() if is_wanted]
    if len(asked) > 1:
        raise InputError(f"--{asked[0]} and --{asked[1]} exclude each other; give one of them.")
    return asked[0] if asked else "resume"


def _spec(source: TableSource, settings: Any, *, seed: int, given: Mapping[str, Any]) -> BatchImagesSpec:
    known = {field.name for field in fields(BatchImagesSpec)}
    shared = {name: value for name, value in settings.images.items() if name in known}
    plain = {**shared, "seed": seed, "prior": settings.prior.source, **given, "table": source.scan()}
    return codec.from_plain(BatchImagesSpec, plain, path="images")


def _check(price_per_hour: float | None, num_workers: int) -> None:
    if price_per_hour is not None and not 0 <= price_per_hour < 1e6:
        raise InputError(f"--price-per-hour is {price_per_hour:g}, but a price from 0 to 1,000,000 was expected.")
    if not 1 <= num_workers <= MAX_WORKERS:
        raise InputError(f"--num-workers is {num_workers}, but 1 to {MAX_WORKERS:,} is allowed.")


def _say(outcome: BatchOutcome, *, as_json: bool) -> None:
    failed = outcome.report["num_failed"]
    if as_json:
        print(json.dumps({"ok": not failed, **outcome.to_json()}, ensure_ascii=False))
        return
    print(f"{'Already finished' if outcome.did == 'nothing to do' else 'Done'}: {outcome.location}")
    for line in describe(outcome.report):
        print(f"  {line}")
    print(f"  {outcome.location}/index.html shows some of them")
    if failed:
        print(f"  {outcome.location}/{FAILURES} says why; mend the cause, then repeat the command with --retry-failed")
