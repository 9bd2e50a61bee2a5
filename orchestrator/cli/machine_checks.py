"""What a job needs of a machine, checked one by one; each finding says how to mend it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from jobs.words.safe_text import shown

__all__ = ["Check", "examine", "print_checks"]

Level = Literal["ok", "warn", "fail"]
LEAST_FREE_BYTES = 2 * 1024**3
OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Check:
    """name: what was looked at. found: what is there. fix: what to do about it, empty when all is well."""

    name: str
    level: Level
    found: str
    fix: str = ""


def examine(prior: str = "toybox", *, folder: Path | None = None) -> list[Check]:
    """Every check, in the order of a job's needs; none of them raises.

    Args:
        prior: "toybox" or a folder. folder: where run folders will be, for disk space.
    """
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("torch", _torch),
        ("device", _device),
        ("threads", _threads),
        ("ray", _ray),
        ("nerfacc", _nerfacc),
        ("open_clip", _open_clip),
        ("ffmpeg", _ffmpeg),
        ("prior", lambda: _prior(prior)),
        ("disk", lambda: _disk(folder or Path.cwd())),
    ]
    return [_guarded(name, check) for name, check in checks]


def print_checks(checks: Sequence[Check], *, as_json: bool = False) -> None:
    """Lines for people, as wide as the terminal, or one JSON object."""
    if as_json:
        ok = all(check.level != "fail" for check in checks)
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        said = Text(shown(check.found)).append(f"\n-> {shown(check.fix)}" if check.fix else "")
        table.add_row(check.name, Text(check.level, style=colours[check.level]), said)
    Console().print(table)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return Check(name, "fail", f"{type(error).__name__}: {first_line}", "reinstall with the constraints file")


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.platform()}"
    if sys.version_info < OLDEST_PYTHON:
        return Check("python", "fail", found, "use Python 3.11 or later")
    return Check("python", "ok", found)


def _torch() -> Check:
    import torch

    return Check("torch", "ok", torch.__version__)


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 1024**3
        return Check("device", "ok", f"cuda: {torch.cuda.get_device_name(0)}, {memory:.0f} GiB")
    return Check("device", "ok", f"cpu ({platform.processor() or platform.machine()}); no CUDA device")


def _threads() -> Check:
    import os

    import torch

    from orchestrator.host.threads import available_cores

    cores, load = available_cores(), os.getloadavg()[0]
    found = f"{torch.get_num_threads()} torch threads, {cores} cores for this process, load {load:.1f}"
    if load > cores:
        return Check("threads", "warn", found, "other programs are busy, jobs will be slow: wait or stop them")
    return Check("threads", "ok", found)


def _ray() -> Check:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Check("ray", "ok", version("ray"))
    except PackageNotFoundError:
        return Check("ray", "warn", "not installed", "pip install 'ray[default]', or run with --runtime inline")


def _nerfacc() -> Check:
    import torch

    nerfacc = importlib.import_module("nerfacc")
    version = getattr(nerfacc, "__version__", "unknown version")
    if torch.cuda.is_available():
        missing = [tool for tool in ("nvcc", os.environ.get("CXX", "c++")) if shutil.which(tool) is None]
        if importlib.util.find_spec("nerfacc.csrc") is None and missing:
            fix = "install the CUDA toolkit of torch's version and a C++ compiler; until then torch cuts the rays"
            return Check("nerfacc", "warn", f"{version}, no compiled kernels and no {' and no '.join(missing)}", fix)
        if (compiler := _nvcc_version()) and torch.version.cuda and compiler.split(".")[0] != torch.version.cuda.split(".")[0]:
            fix = f"put nvcc of CUDA {torch.version.cuda} first on PATH; until then rays are cut by torch, in more operations"
            return Check("nerfacc", "warn", f"{version}, nvcc is of CUDA {compiler}, torch of CUDA {torch.version.cuda}", fix)
        return Check("nerfacc", "ok", f"{version}, CUDA kernels are compiled at first use")
    return Check("nerfacc", "ok", f"{version}, batched rendering on CPU")


def _nvcc_version() -> str:
    """Such as "12.8"; "" where nvcc does not say."""
    try:
        said = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else ""


def _open_clip() -> Check:
    from diffusion.torchvision_shim import ensure_torchvision_imports

    ensure_torchvision_imports()
    open_clip: Any = importlib.import_module("open_clip")
    return Check("open_clip", "ok", getattr(open_clip, "__version__", "installed"))


def _ffmpeg() -> Check:
    try:
        import imageio_ffmpeg

        return Check("ffmpeg", "ok", f"{imageio_ffmpeg.get_ffmpeg_version()} at {imageio_ffmpeg.get_ffmpeg_exe()}")
    except (ImportError, RuntimeError):
        fix = "pip install imageio-ffmpeg; until then turntables are written as .webp"
        return Check("ffmpeg", "warn", "not found", fix)


def _prior(source: str) -> Check:
    from jobs.errors import InputError
    from orchestrator.prior.local import load_prior

    try:
        info = load_prior(source).info()
    except InputError as error:
        fix = "install the package again" if source == "toybox" else "give --prior a complete folder"
        return Check("prior", "fail", str(error), fix)
    words = f"knows {len(info.vocabulary)} words" if info.vocabulary else "takes any words"
    found = f"{info.name}, {info.image_size} pixels, {words}, weights {info.weights_hash[:12]}"
    return Check("prior", "ok", found)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    found = f"{free / 1024**3:.1f} GiB free at {folder}"
    if free < LEAST_FREE_BYTES:
        return Check("disk", "warn", found, "free some space: checkpoints and pictures need up to 2 GiB")
    return Check("disk", "ok", found)
