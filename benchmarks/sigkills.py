"""A table of pictures on a local Ray, killed again and again with several markers standing: the same bytes in the end.

    python -m benchmarks.sigkills --kills 20

In each round two processes that draw shards are killed with SIGKILL, one after the other, each when another shard's marker
stands, and then the command with everything that it has started, at a moment that follows from the round's number. The command
is repeated until it ends by itself; what stands then is compared with a run in one process that nobody disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
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
KILLS_PER_ROUND = 3
SECONDS_TO_START = 300.0


def main(arguments: list[str] | None = None) -> int:
    """Kill, repeat, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--prior", default="toybox")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sigkills-") as name:
        folder = Path(name)
        table = folder / "prompts.csv"
        num_shards = (given.kills + KILLS_PER_ROUND) * 3
        colours = ("red", "green", "blue", "yellow")
        rows = [f"a {colours[row % 4]} house,{row}" for row in range(num_shards * ROWS_PER_SHARD)]
        table.write_text("\n".join(["prompt,id", *rows]) + "\n")
        command = [
            *(sys.executable, "-m", "orchestrator.cli", "images", "--prompts", str(table), "--prior", given.prior, "--local"),
            *("--steps", str(given.steps), "--sampler", "ddim", "--shard-size", str(ROWS_PER_SHARD), "--strict"),
            *("--output-format", "webdataset", "--num-workers", "3"),
        ]
        standing: list[int] = []
        for number in range(math.ceil(given.kills / KILLS_PER_ROUND)):
            standing += _round(command, folder / "ray", number)
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


def _round(command: list[str], out: Path, number: int) -> list[int]:
    """Start the command, kill two of its shard processes and then all of it; returns how many markers stood at each kill."""
    moment, standing = random.Random(number).uniform(0.0, 0.5), []
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(KILLS_PER_ROUND - 1):
        _wait_for_marker(out, process)
        _kill([one for one in _family(process) if "ShardActor" in _name(one)][:1])
        standing.append(_num_markers(out))
    _wait_for_marker(out, process)
    time.sleep(moment)
    family = [*_family(process), psutil.Process(process.pid)]
    os.kill(process.pid, signal.SIGKILL)
    _kill(family)
    process.wait()
    psutil.wait_procs(family, timeout=10)
    standing.append(_num_markers(out))
    print(f"round {number + 1}: {standing} markers stood at its kills", file=sys.stderr, flush=True)
    return standing


def _wait_for_marker(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Return when one more marker stands, and a process that draws shards is there to be killed."""
    before, deadline = _num_markers(out), time.monotonic() + SECONDS_TO_START
    while _num_markers(out) <= before or not any("ShardActor" in _name(one) for one in _family(process)):
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the command ended or stood still with {_num_markers(out)} markers")
        time.sleep(0.02)


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(processes: list[psutil.Process]) -> None:
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def _num_markers(out: Path) -> int:
    return len(list((out / "_shards").glob("*.json")))


def _bytes(out: Path) -> dict[str, str]:
    """Name -> sha256 of every shard."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.glob("*.tar")}


if __name__ == "__main__":
    sys.exit(main())
