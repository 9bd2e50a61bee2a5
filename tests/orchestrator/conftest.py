"""The installed command as a user runs it, and a small real prior."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import save_tiny_prior

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "orchestrator.cli")


def command_environment() -> dict[str, str]:
    """As a user's, but with this checkout's packages wherever the command is started."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default", "COLUMNS": "100"}


@pytest.fixture(scope="session")
def tiny_prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prior's folder with random weights."""
    return save_tiny_prior(tmp_path_factory.mktemp("prior") / "tiny")


@pytest.fixture
def dreamkiln(tmp_path: Path):
    """dreamkiln("images", "a chair") -> CompletedProcess, in an empty folder."""

    def run(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *map(str, arguments)],
            cwd=tmp_path,
            env=command_environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", folder], check=True)
