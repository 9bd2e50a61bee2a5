"""Tables of three families and many sizes at once on one orchestrator: every picture is the one that its table alone gives."""

from __future__ import annotations

import contextlib
import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.diffusion.checkpoints.published import random_pipeline

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
]
SIZES = {"sd15": ["512x768", "", "96x64"], "sdxl": ["1216x832", "", "832x1216"], "toybox": ["", "64x64", "96x48"]}


def pictures(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("0*/*.png")) or sorted(folder.glob("0*.png"))]


def test_alone_and_beside_each_other_to_the_last_bit(dreamkiln, tmp_path):
    commands: dict[str, list[str]] = {}
    for family, sizes in SIZES.items():
        if family != "toybox":
            random_pipeline(family, tmp_path / family)
        table = tmp_path / f"{family}.csv"
        with table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["prompt", "size"])
            writer.writerows(["a red cup", size] for size in sizes)
        prior = "toybox" if family == "toybox" else str(tmp_path / family)
        commands[family] = ["--prompts", table, "--prior", prior, "--strict", "--steps", 2, "runtime.num_threads=1"]
    for family, command in commands.items():
        done = dreamkiln("images", *command, "--out", tmp_path / "alone" / family, "--runtime", "inline", timeout=900)
        assert done.returncode == 0, done.stderr
    state = ("--state", tmp_path / "state", "--json")

    def call(*arguments):
        done = dreamkiln(*arguments, *state, timeout=300)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    call("up")
    try:
        jobs = [
            call("submit", "images", *command, "--out", tmp_path / "mixed" / family)["jobs"][0]["id"]
            for family, command in commands.items()
        ]
        deadline = time.monotonic() + 900
        while states := {call("jobs", "show", job)["job"]["state"] for job in jobs} - {"succeeded"}:
            assert "failed" not in states and time.monotonic() < deadline, states
            time.sleep(2)
    finally:
        with contextlib.suppress(AssertionError):
            call("down")
    own = {"sd15": "64x64", "sdxl": "64x64", "toybox": "64x64"}
    for family, sizes in SIZES.items():
        alone, mixed = (pictures(tmp_path / place / family) for place in ("alone", "mixed"))
        assert [f"{image.shape[1]}x{image.shape[0]}" for image in alone] == [size or own[family] for size in sizes]
        for one, other in zip(alone, mixed, strict=True):
            np.testing.assert_array_equal(one, other)
