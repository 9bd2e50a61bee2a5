"""What a user may give as --prior, checked before anything starts; light enough for a command to import."""

from __future__ import annotations

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.source import Source
from jobs.errors import InputError

__all__ = ["check_prior", "refusal"]


def check_prior(source: str) -> None:
    """Checks that a prior is "toybox", a path that exists, or could be a name on the hub, with options that are known.

    Raises:
        InputError: it is none of these.
    """
    if source == "toybox":
        return
    try:
        Source.parse(source).check()
    except PriorError as error:
        raise refusal(error) from error


def refusal(error: PriorError) -> InputError:
    """The error as a sentence for the command line."""
    message = str(error).rstrip(".")
    # A path or a name at the beginning keeps its spelling.
    first, _, _ = message.partition(" ")
    return InputError(f"{message[:1].upper()}{message[1:]}." if first.isalpha() else f"{message}.")
