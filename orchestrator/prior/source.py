"""What a user may give as --prior, checked before anything starts; light enough for a command to import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.source import Source, resolve
from jobs.errors import InputError
from jobs.events import Progress
from jobs.prior_client import PriorClient

__all__ = ["PriorLoader", "absolute_source", "bytes_on_disk", "check_clip", "check_prior", "loading", "refusal", "scored_by"]

WEIGHTS = (".safetensors", ".gguf", ".ckpt", ".bin", ".pt", ".pth")

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


def bytes_on_disk(source: str) -> int:
    """The size of a prior's weight files, for a user who waits; 0 where they are not on this machine."""
    place = resolve(Source.parse(source).location)
    if not isinstance(place, Path):
        return 0
    files = (
        [path for part in ("unet", "transformer", "vae", "text_encoder*") for path in place.glob(f"{part}/*")]
        if place.is_dir()
        else [place]
    )
    weights = [path for path in files if path.suffix in WEIGHTS]
    safe = [path for path in weights if path.suffix == ".safetensors"]
    return sum(path.stat().st_size for path in safe or weights)


def refusal(error: PriorError) -> InputError:
    """The error as a sentence for the command line."""
    message = str(error).rstrip(".")
    # A path or a name at the beginning keeps its spelling.
    first, _, _ = message.partition(" ")
    refused = InputError(f"{message[:1].upper()}{message[1:]}." if first.isalpha() else f"{message}.")
    refused.may_pass = error.may_pass
    return refused


def loading(source: str) -> Progress:
    """What is shown while a prior of one's own is loaded."""
    return Progress(stage="start", step=0, total=1, metrics={"megabytes": bytes_on_disk(source) / 1e6})


def check_clip(folder: str) -> str:
    """The full path of a CLIP's folder; "" stays. Raises InputError where there is none."""
    if not folder:
        return ""
    from diffusion.text.image_text import ImageTextModel

    path = Path(folder).expanduser().absolute()
    try:
        ImageTextModel.check(path)
    except PriorError as error:
        raise refusal(error) from error
    return str(path)


def scored_by(clip: str) -> dict[str, str]:
    """The fields of a `BatchImagesSpec` that name a CLIP's folder and its weights; none for "". Raises InputError."""
    if not clip:
        return {}
    from diffusion.text.image_text import ImageTextModel

    path = check_clip(clip)
    try:
        return {"clip": path, "clip_hash": ImageTextModel.hash(Path(path))}
    except PriorError as error:
        raise refusal(error) from error


def absolute_source(source: str) -> str:
    """The same prior with full paths in place of relative ones, so that it means the same in every folder and process."""
    location, mark, query = (source, "", "") if Path(source).exists() else source.partition("?")
    options = []
    for option in query.split("&") if mark else ():
        name, equals, value = option.partition("=")
        if name in ("lora", "embedding"):
            file, colon, suffix = value.rpartition(":")
            value = f"{_absolute(file)}{colon}{suffix}" if file else _absolute(value)
        elif name in ("vae", "unet"):
            value = _absolute(value)
        options.append(f"{name}{equals}{value}")
    return f"{location if location == 'toybox' else _absolute(location)}{mark}{'&'.join(options)}"


def _absolute(location: str) -> str:
    path = Path(location).expanduser()
    return str(path.absolute()) if path.exists() else location
