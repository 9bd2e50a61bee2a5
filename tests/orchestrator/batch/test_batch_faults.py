"""SIGKILL at random moments and disks that are full: what is left never stops or spoils the next attempt."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jobs.errors import OutputError
from tests.orchestrator.batch.batch_fakes import FORMATS, contents, load_slow_prior, manifest, run, write_table

NUM_ROWS = 40
NUM_KILLS = 12


def start(table: Path, out: Path, output_format: str, mode: str) -> int:
    """The job in a forked process of this one, which has everything imported already; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        run(table, out, output_format=output_format, mode=mode, load_prior=load_slow_prior)
        code = 0
    finally:
        os._exit(code)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("output_format", FORMATS)
def test_killed_at_random_moments_it_ends_with_the_same_files(tmp_path, output_format):
    table = write_table(tmp_path / "t.jsonl", NUM_ROWS, sampler={7: "dimm"})
    begin = time.monotonic()
    assert finish(start(table, tmp_path / "whole", output_format, "resume")) == 0
    seconds = time.monotonic() - begin
    moments = random.Random(output_format)
    out, num_killed = tmp_path / "out", 0
    for _ in range(NUM_KILLS):
        child = start(table, out, output_format, moments.choice(["resume", "retry-failed"]))
        time.sleep(moments.uniform(0, 0.6) * seconds)
        os.kill(child, signal.SIGKILL)
        num_killed += finish(child) == -signal.SIGKILL
    assert num_killed >= 1
    assert finish(start(table, out, output_format, "resume")) == 0
    assert contents(out) == contents(tmp_path / "whole")
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


def test_killed_while_it_overwrites_it_ends_with_the_new_files(tmp_path):
    table = write_table(tmp_path / "t.jsonl", NUM_ROWS)
    begin = time.monotonic()
    run(table, tmp_path / "old", output_format="png", shard_size=3)
    seconds = time.monotonic() - begin
    assert finish(start(table, tmp_path / "whole", "webdataset", "resume")) == 0
    moments = random.Random(0)
    for attempt in range(4):
        out = tmp_path / f"out{attempt}"
        shutil.copytree(tmp_path / "old", out)
        child = start(table, out, "webdataset", "overwrite")
        time.sleep(moments.uniform(0, 0.5) * seconds)
        os.kill(child, signal.SIGKILL)
        finish(child)
        assert finish(start(table, out, "webdataset", "overwrite")) == 0
        assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_full_disk_is_named_and_the_job_goes_on_when_there_is_room(tmp_path, small_disk, output_format):
    table = write_table(tmp_path / "t.jsonl", NUM_ROWS)
    out = small_disk / "out"
    filler = small_disk / "filler"
    filler.write_bytes(b"\0" * 120 * 1024)
    with pytest.raises(OutputError, match=r"could not be written: the disk is full; free some space"):
        run(table, out, output_format=output_format)
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    before = manifest(out)["attempts"]
    run(table, out, output_format=output_format)
    assert len(manifest(out)["attempts"]) == len(before) + 1
    run(table, tmp_path / "whole", output_format=output_format)
    assert contents(out) == contents(tmp_path / "whole")
