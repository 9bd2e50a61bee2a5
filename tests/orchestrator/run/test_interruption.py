"""Signals sent to the real command in the middle of a fit: it stops clean, and goes on to the same mesh."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fakes import FAST_OVERRIDES
from tests.orchestrator.conftest import COMMAND, command_environment

NUM_STEPS = 60
SETTINGS = (
    *FAST_OVERRIDES,
    f"fit.num_steps={NUM_STEPS}",
    "runtime.checkpoint_every=10",
    "runtime.num_threads=1",
    "export.turntable_frames=0",
    "export.preview_size=16",
)


def start(out: Path, prior: Path, runtime: str) -> subprocess.Popen[str]:
    """The command, leader of its own process group as under a terminal."""
    arguments = ["text-to-3d", "a red table", "--prior", prior, "--out", out, "--runtime", runtime, *SETTINGS]
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not (out / "checkpoint.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def session_members(session: int) -> Iterator[psutil.Process]:
    """Living processes of the command's session, itself excepted."""
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE and process.pid != session:
                yield process
        except (psutil.Error, OSError):
            continue


def left_running(session: int, descendants: set[int], *, seconds: float) -> list[str]:
    """What still lives of the command's processes after a moment's patience."""
    deadline = time.monotonic() + seconds
    while True:
        living = [p for p in psutil.process_iter() if p.pid in descendants and p.status() != psutil.STATUS_ZOMBIE]
        living += list(session_members(session))
        if not living or time.monotonic() > deadline:
            return [f"{p.pid} {p.name()}" for p in living]
        time.sleep(0.2)


def digest(out: Path) -> str:
    return json.loads((out / "manifest.json").read_text())["artefacts"]["mesh.glb"]["sha256"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_prior) -> str:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    process = start(out, tiny_prior, "inline")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return digest(out)


@pytest.mark.parametrize(("runtime", "number"), [("ray", signal.SIGINT), ("inline", signal.SIGTERM)])
def test_a_signal_ends_everything_and_the_run_goes_on(tmp_path, tiny_prior, undisturbed, runtime, number):
    out = tmp_path / "run"
    process = start(out, tiny_prior, runtime)
    wait_for_checkpoint(out, process)
    descendants = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert len(descendants) >= 4 or runtime == "inline"
    os.killpg(process.pid, number)  # a terminal's Ctrl-C reaches the whole group
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and output == ""
    last = errors.strip().splitlines()[-1]
    stopped = re.fullmatch(
        r"dreamkiln: Stopped at step (\d+) of 60 of fit in .*; the same command continues from step (\d+)\.", last
    )
    assert stopped and stopped[1] == stopped[2], last  # a checkpoint is written before the end
    assert "Traceback" not in errors
    assert json.loads((out / "manifest.json").read_text())["state"] == "interrupted"
    assert not left_running(process.pid, descendants, seconds=5)

    again = start(out, tiny_prior, "inline")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and "Continuing from step" in errors
    assert digest(out) == undisturbed


def test_a_killed_run_goes_on_to_the_same_mesh(tmp_path, tiny_prior, undisturbed):
    out = tmp_path / "run"
    process = start(out, tiny_prior, "inline")
    wait_for_checkpoint(out, process)
    process.kill()
    process.communicate(timeout=60)
    assert json.loads((out / "manifest.json").read_text())["state"] == "running"

    again = start(out, tiny_prior, "inline")
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and "Continuing from step" in errors
    assert digest(out) == undisturbed


def test_a_signal_while_ray_starts_is_a_clean_stop_too(tmp_path, tiny_prior):
    """Undeferred it would be a segmentation fault inside ray.init."""
    process = start(tmp_path / "run", tiny_prior, "ray")
    deadline = time.monotonic() + 120
    while not any("gcs_server" in p.name() for p in session_members(process.pid)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    descendants = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Stopped" in errors and "Traceback" not in errors
    assert not left_running(process.pid, descendants, seconds=10)
