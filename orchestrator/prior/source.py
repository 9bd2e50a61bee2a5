"""What a user may give as --prior, checked before anything starts; light enough for a command to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.source import Source
from jobs.errors import InputError
from jobs.prior_client import PriorClient

__all__ = ["PriorLoader", "absolute_source", "check_prior", "refusal"]

WEIGHTS = (".safetensors", ".ckpt", ".bin", ".pt", ".pth")

PriorLoader = Callable[[str, str], PriorClient]
"""(source, device) -> prior. It travels to the actor that will hold the prior, so it is a plain function."""


def check_prior(source: str) -> None:
    """Checks that a prior is "toybox", a path that looks like one, or could be a name on the hub, with known options.

    Raises:
        InputError: it is none of these.
    """
    try:
        parsed = Source.parse(source)
        parsed.check()
    except PriorError as error:
        raise refusal(error) from error
    path = Path(parsed.location).expanduser()
    if path.is_dir() and not (path / "model_index.json").is_file():
        raise InputError(f"The prior {path} is a folder without a model_index.json; give a folder in the layout of diffusers.")
    if path.is_file() and path.suffix not in WEIGHTS:
        raise InputError(f"The prior {path} is no file of weights; give a folder, or a file that ends in {', '.join(WEIGHTS)}.")


def refusal(error: PriorError) -> InputError:
    """The error as a sentence for the command line."""
    message = str(error).rstrip(".")
    # A path or a name at the beginning keeps its spelling.
    first, _, _ = message.partition(" ")
    refused = InputError(f"{message[:1].upper()}{message[1:]}." if first.isalpha() else f"{message}.")
    refused.may_pass = error.may_pass
    return refused


def absolute_source(source: str) -> str:
    """The same prior with full paths in place of relative ones, so that it means the same in every folder and process."""
    location, mark, query = (source, "", "") if Path(source).exists() else source.partition("?")
    options = []
    for option in query.split("&") if mark else ():
        name, equals, value = option.partition("=")
        if name in ("lora", "embedding"):
            file, colon, suffix = value.rpartition(":")
            value = f"{_absolute(file)}{colon}{suffix}" if file else _absolute(value)
        elif name == "vae":
            value = _absolute(value)
        options.append(f"{name}{equals}{value}")
    return f"{location if location == 'toybox' else _absolute(location)}{mark}{'&'.join(options)}"


def _absolute(location: str) -> str:
    path = Path(location).expanduser()
    return str(path.absolute()) if path.exists() else location
