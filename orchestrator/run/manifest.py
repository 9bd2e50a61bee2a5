"""manifest.json, which a job writes before its first result: one form for run folders and for tables of prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from jobs.errors import DreamKilnError, InputError, Interrupted, OutputError
from jobs.extensions import code_hashes
from jobs.prior_client import PriorInfo
from jobs.specs import TextTo3DSpec
from orchestrator.host.atomic import output_error
from orchestrator.settings.recipes import RECIPES

__all__ = [
    "MANIFEST",
    "PriorName",
    "another_job",
    "end_attempt",
    "first_difference",
    "manifest_of_mesh_run",
    "new_manifest",
    "noting_the_end",
    "read_manifest",
    "versions",
]

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
PACKAGES = ("dreamkiln", "torch", "numpy", "ray", "nerfacc", "scikit-image", "trimesh")


@dataclasses.dataclass(frozen=True)
class PriorName:
    """What a manifest says of a prior that need not be loaded: its name and the sha256 of its weights."""

    name: str
    weights_hash: str


def new_manifest(
    before: Mapping[str, Any],
    spec: Any,
    info: PriorInfo | PriorName,
    *,
    device: str,
    settings: Mapping[str, Any],
    where: str,
    or_else: str = "",
    seconds: float = 0.0,
) -> dict[str, Any]:
    """The manifest of a job at work, with one more attempt; the caller adds what its kind of job keeps.

    Args:
        before: the manifest that an earlier attempt left, or an empty one.
        spec: one of `jobs.kinds`. info: the prior that draws.
        where: the folder, for messages. or_else: what else helps against other weights, such as ", or --overwrite".
        seconds: for which the attempt has gone on already, while a runtime was started and the prior loaded.

    Raises:
        InputError: an earlier attempt used other weights, or other code of one's own, so that its files and the new ones do
            not belong together.
    """
    theirs = before.get("prior", {}).get("weights_hash", info.weights_hash)
    if theirs != info.weights_hash:
        raise InputError(
            f"{where} was begun with other weights of the prior ({theirs[:12]}, now {info.weights_hash[:12]}); "
            f"choose another --out, or give --prior with the first one{or_else}."
        )
    code = code_hashes(spec.distillation.form, spec.fit.field.kind) if isinstance(spec, TextTo3DSpec) else {}
    if changed := [name for name, digest in before.get("code", {}).items() if code.get(name, digest) != digest]:
        raise InputError(
            f"{where} was begun with other code in {changed[0]}, and its parts would not belong together; choose another "
            "--out, or put the code back."
        )
    now = _now(seconds)
    return {
        "manifest_version": MANIFEST_VERSION,
        "kind": spec.kind,
        "state": "running",
        "spec": spec.to_json(),
        "fingerprint": spec.fingerprint(),
        "prior": {"name": info.name, "source": spec.prior, "weights_hash": info.weights_hash},
        **({"code": code} if code else {}),
        **({"recipe": {"name": spec.recipe, "source": _source_of(spec.recipe)}} if isinstance(spec, TextTo3DSpec) else {}),
        "device": device,
        "settings": dict(settings),
        "versions": versions(),
        "started": before.get("started", now),
        "attempts": [*before.get("attempts", ()), {"started": now}],
    }


def _source_of(recipe: str) -> str:
    """Where a recipe's numbers come from; a newer version may have known other ones."""
    return RECIPES[recipe].source if recipe in RECIPES else "unknown to this version"


def read_manifest(load: Callable[[], bytes], where: str) -> dict[str, Any] | None:
    """The manifest of a place, None where there is none.

    Args:
        load: reads the file. where: the folder or URL, for messages.

    Raises:
        OutputError: it cannot be read, or is not ours.
    """
    try:
        manifest = json.loads(load())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        message = f"{where}/{MANIFEST} cannot be read ({error}); choose another --out."
        raise output_error(message, error) from error
    lacking = {"kind", "spec", "fingerprint"} - (manifest.keys() if isinstance(manifest, dict) else set())
    if lacking:
        raise OutputError(
            f"{where}/{MANIFEST} is damaged or not ours (it lacks {min(lacking)!r}); choose another --out, or delete the file "
            "and what stands beside it."
        )
    return manifest


def manifest_of_mesh_run(folder: Path) -> dict[str, Any]:
    """The manifest of a run of 'dreamkiln text-to-3d', finished or not. Raises InputError for any other folder."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        kind = manifest["kind"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{folder} is not a run folder: its {MANIFEST} cannot be read ({error}); give folders of 'dreamkiln text-to-3d'."
        ) from error
    if kind != TextTo3DSpec.kind:
        raise InputError(f"{folder} holds a run of {kind!r}, but one of {TextTo3DSpec.kind!r} was expected.")
    return manifest


def another_job(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str, *, or_else: str = "") -> InputError:
    """The refusal of a place whose manifest has another spec (`theirs`); or_else: what else helps."""
    return InputError(
        f"{where} belongs to another job ({first_difference(theirs, ours)}); choose another --out, or repeat that job's own "
        f"settings to continue it{or_else}."
    )


@contextlib.contextmanager
def noting_the_end(stop: Callable[[Literal["failed", "interrupted"], str], None], stopped: Callable[[], str]) -> Iterator[None]:
    """Notes how an attempt ended that did not succeed.

    Args:
        stop: writes it to the manifest. stopped: the sentence after Ctrl-C.

    Raises:
        Interrupted: Ctrl-C or SIGTERM reached the block. Every other error goes on as it is.
    """
    try:
        yield
    except KeyboardInterrupt:
        message = stopped()
        stop("interrupted", message)
        raise Interrupted(message) from None
    except DreamKilnError as error:
        if not (isinstance(error, OutputError) and error.is_in_use):  # else the manifest is the other one's now
            stop("failed", str(error))
        raise
    except Exception as error:
        stop("failed", f"{type(error).__name__}: {error}")
        raise


def end_attempt(manifest: dict[str, Any], state: str, *, seconds: float, reason: str | None = None, **figures: Any) -> None:
    """Note in place how the last attempt ended, and with it the job."""
    ended = {"ended": _now(), "seconds": round(seconds, 3), "state": state, **figures}
    manifest["attempts"][-1] |= ended | ({"reason": reason} if reason else {})
    manifest["state"] = state


def versions() -> dict[str, str]:
    """Python, platform and the packages that shape a result."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def first_difference(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> str:
    """The first settings that differ, as "seed 0, not 1"."""
    for key in dict.fromkeys([*theirs, *ours]):
        a, b = theirs.get(key), ours.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            if inner := first_difference(a, b, f"{prefix}{key}."):
                return inner
        elif a != b and key not in ("formats", "recipe") and (b or key in theirs):  # a version before had no such field
            return f"{prefix}{key} {_short(a)}, not {_short(b)}"
    return ""


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _now(seconds_ago: float = 0.0) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - seconds_ago))
