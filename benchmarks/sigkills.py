"""A table of pictures on a local Ray, killed again and again with several markers standing: the same bytes in the end.

    python -m benchmarks.sigkills --kills 20

The command, and with it everything that it has started, is killed with SIGKILL as soon as the markers of a few more shards
stand, at a moment that follows from the kill's number. It is repeated until it ends by itself; what stands then is compared
with a run in one process that nobody disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROWS_PER_SHARD = 4
SHARDS_BETWEEN_KILLS = 2
SECONDS_TO_START = 300.0


def main() -> int:
    """Kill, repeat, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prior", default="toybox")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sigkills-") as name:
        folder = Path(name)
        table = folder / "prompts.csv"
        num_shards = (given.kills + 1) * (SHARDS_BETWEEN_KILLS + 4)
        colours = ("red", "green", "blue", "yellow")
        rows = [f"a {colours[row % 4]} house,{row}" for row in range(num_shards * ROWS_PER_SHARD)]
        table.write_text("\n".join(["prompt,id", *rows]) + "\n")
        command = [
            *(sys.executable, "-m", "orchestrator.cli", "images", "--prompts", str(table), "--prior", given.prior, "--local"),
            *("--steps", str(given.steps), "--sampler", "ddim", "--shard-size", str(ROWS_PER_SHARD), "--strict"),
            *("--output-format", "webdataset", "--num-workers", "3"),
        ]
        standing = [_killed(command, folder / "ray", kill) for kill in range(given.kills)]
        seconds = time.monotonic()
        subprocess.run([*command, "--out", str(folder / "ray")], check=True, stderr=subprocess.DEVNULL)
        subprocess.run(
            [*command, "--out", str(folder / "inline"), "--runtime", "inline"], check=True, stderr=subprocess.DEVNULL
        )
        ours, theirs = _bytes(folder / "ray"), _bytes(folder / "inline")
        different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        left = [path.name for path in (folder / "ray").rglob(".writing-*")]
        print(
            f"{len(standing)} SIGKILLs with {min(standing)} to {max(standing)} of {num_shards} markers standing; "
            f"{len(ours)} shards, {len(different)} of them different from an undisturbed run in one process, "
            f"{len(left)} half-written files left ({time.monotonic() - seconds:.0f} s for the last two runs)"
        )
        return int(bool(different or left) or len(ours) != num_shards)


def _killed(command: list[str], out: Path, number: int) -> int:
    """Start the command and kill it, and all below it, after more markers stand than before; returns how many stand then."""
    before, moment = _num_markers(out), random.Random(number).uniform(0.0, 0.5)
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + SECONDS_TO_START
    while _num_markers(out) < before + SHARDS_BETWEEN_KILLS:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"kill {number}: the command ended or stood still with {_num_markers(out)} markers")
        time.sleep(0.02)
    time.sleep(moment)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    os.kill(process.pid, signal.SIGKILL)
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)
    standing = _num_markers(out)
    print(f"kill {number + 1}: {standing} markers stand", file=sys.stderr, flush=True)
    return standing


def _num_markers(out: Path) -> int:
    return len(list((out / "_shards").glob("*.json")))


def _bytes(out: Path) -> dict[str, str]:
    """Name -> sha256 of every shard."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*.tar")}


if __name__ == "__main__":
    sys.exit(main())
