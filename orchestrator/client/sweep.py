"""Many 3D jobs that differ in their settings: run here one after the other, or all at once through the queue."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs.errors import DreamKilnError, InputError, Interrupted
from jobs.specs import TextTo3DSpec
from jobs.words.prompts import check_prompt, slug
from orchestrator.client.client import Client
from orchestrator.client.prepared_job import PreparedJob, compose_here, prepare_text_to_3d
from orchestrator.client.waiting_client import submit_each
from orchestrator.host.progress_display import Display
from orchestrator.prior.local import load_prior
from orchestrator.run.perform import Outcome, perform
from orchestrator.settings.sweep import Member, members

__all__ = ["default_sweep_folder", "prepare_sweep", "run_here", "run_queued"]


def default_sweep_folder(prompt: str, words: Sequence[str]) -> Path:
    """sweeps/<slug>-<hash>: the same command finds its own folder again."""
    digest = hashlib.sha256("\0".join([prompt, *words]).encode()).hexdigest()
    return Path("sweeps") / f"{slug(prompt)}-{digest[:8]}"


def prepare_sweep(prompt: str, words: Sequence[str], options: Mapping[str, Any], *, seed: int, out: Path) -> list[PreparedJob]:
    """A job for each combination, in folders below `out` that say what they differ in; all are checked before one starts.

    Args:
        words: see `orchestrator.settings.sweep.members`. options: as `orchestrator.settings.compose` takes them.

    Raises:
        InputError: a word that cannot be read, or a combination that is not allowed, named.
    """
    return [_prepared(member, prompt, options, seed=seed, out=out) for member in members(words)]


def _prepared(member: Member, prompt: str, options: Mapping[str, Any], *, seed: int, out: Path) -> PreparedJob:
    try:
        own_seed = member.own.get("seed", seed)
        if isinstance(own_seed, bool) or not isinstance(own_seed, int):
            raise InputError(f"The seed is {own_seed!r}, but a whole number from 0 to 2^63 - 1 was expected.")
        settings = compose_here(member.overrides, options)
        own_prompt = check_prompt(str(member.own.get("prompt", prompt)))
        return prepare_text_to_3d(own_prompt, settings, seed=own_seed, out=out / member.name)
    except InputError as error:
        raise InputError(f"In run {member.name}: {error}") from error


def run_here(jobs: Sequence[PreparedJob], *, display: Display) -> Iterator[tuple[PreparedJob, Outcome | DreamKilnError]]:
    """One after the other in this process, with one prior; each job with its outcome or what it failed with.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the same sweep continues.
    """
    loaded = functools.cache(load_prior)
    for number, job in enumerate(jobs, start=1):
        display.message(f"Run {number} of {len(jobs)}: {Path(job.out).name}")
        runtime = replace(job.settings.runtime, kind="inline")
        try:
            assert isinstance(job.spec, TextTo3DSpec)
            outcome = perform(
                job.spec,
                out=job.out,
                export=job.settings.export,
                runtime=runtime,
                display=display,
                load_prior=loaded,
            )
        except Interrupted:
            raise
        except DreamKilnError as error:
            display.message(str(error), "warning")
            yield job, error
        else:
            yield job, outcome


def run_queued(
    jobs: Sequence[PreparedJob], client: Client, *, state: Path, user: str, display: Display
) -> Iterator[tuple[PreparedJob, Outcome | DreamKilnError]]:
    """All of them in the queue of a running orchestrator; each job with its outcome or what it failed with, in order.

    Raises:
        Interrupted: Ctrl-C; the jobs go on, and the same sweep joins them.
    """
    submitted = submit_each(jobs, client, state=state, user=user)
    numbers = [one.number for one in submitted]
    display.message(
        f"Jobs {min(numbers)} to {max(numbers)} of the orchestrator at {client.endpoint.url}; --local runs them here."
    )
    for one in submitted:
        try:
            outcome = one.wait(display)
        except KeyboardInterrupt:
            raise Interrupted("Stopped waiting; the jobs go on, and the same command joins them.") from None
        except Interrupted:
            raise
        except DreamKilnError as error:
            display.message(str(error), "warning")
            yield one.job, error
        else:
            assert isinstance(outcome, Outcome)
            yield one.job, outcome
