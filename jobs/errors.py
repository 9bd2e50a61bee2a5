"""Every error a user can meet, in one tree.

::

    DreamKilnError
    ├── InputError          exit 2   the command, its options or its files cannot be used as given
    │   ├── NotFound        exit 2   there is no such job
    │   ├── Conflict        exit 2   another job has the key or the folder
    │   └── OutputError     exit 2   the place to write to cannot be written (missing rights, full disk, another run)
    ├── JobFailed           exit 1   the job was started and could not be finished
    │   ├── CollapsedError           the fit ended empty, full or not-a-number
    │   ├── PriorFailed              the prior (or the process that hosts it) died while answering
    │   └── UnexpectedError          an internal error of another process; its notes hold the traceback
    └── Interrupted         exit 130 the user stopped the job; it can be resumed

A message is one sentence with four parts where they apply: what happened with the actual value, what was expected,
the fix, and why. The command line prints the message alone, so it must read well without a traceback.
"""

from __future__ import annotations

__all__ = [
    "CollapsedError",
    "Conflict",
    "DreamKilnError",
    "InputError",
    "Interrupted",
    "JobFailed",
    "NotFound",
    "OutputError",
    "PriorFailed",
    "UnexpectedError",
]


class DreamKilnError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code: int = 1


class InputError(DreamKilnError):
    """Bad usage or bad input: nothing was computed, and the same command will fail the same way again.

    may_pass: unless this is true, as where a store, a shared disk or a network did not answer: an unattended job tries again.
    It travels between processes, which the causes of an exception do not.
    """

    exit_code = 2
    may_pass: bool = False


class NotFound(InputError):
    """Something was named that there is not, such as a job's number."""


class Conflict(InputError):
    """It would be right by itself, but another job stands in its way."""


class OutputError(InputError):
    """The output folder cannot take the files: no right to write, no space, or it belongs to another run.

    is_disk_full, is_in_use: what an unattended job goes by besides: it waits for space, and for another process that writes
    there, which may be an attempt that was given up for lost.
    """

    is_disk_full: bool = False
    is_in_use: bool = False


class JobFailed(DreamKilnError):
    """The job ran and could not be finished.

    Args:
        message: one sentence for the user.
        job: fingerprint or name of the job, when known, so that a log of many jobs can be read.
    """

    exit_code = 1

    def __init__(self, message: str, *, job: str | None = None) -> None:
        super().__init__(message)
        self.job = job

    def __reduce__(self):
        # Exceptions cross process borders by pickle, which would otherwise drop the keyword-only argument.
        return (_rebuild, (type(self), self.args[0], {**self.__dict__}))


class CollapsedError(JobFailed):
    """The fitted scene is empty, fills the whole box, or holds not-a-number.

    Args:
        message: one sentence for the user.
        kind: "empty", "full" or "not_finite" for a fit, "empty_mesh" or "broken_field" for its mesh.
        step: optimisation step at which it was seen.
        job: fingerprint or name of the job, when known.
    """

    def __init__(self, message: str, *, kind: str = "", step: int = -1, job: str | None = None) -> None:
        super().__init__(message, job=job)
        self.kind = kind
        self.step = step


class PriorFailed(JobFailed):
    """The prior stopped answering: its process died, ran out of memory or returned not-a-number."""


class UnexpectedError(JobFailed):
    """Something that none of these foresees, raised in another process; the traceback travels in `__notes__`."""


class Interrupted(DreamKilnError):
    """The user stopped the job; what is on disk is enough to continue it."""

    exit_code = 130


def _rebuild(cls: type, message: str, state: dict) -> JobFailed:
    error = cls(message)
    error.__dict__.update(state)
    return error
