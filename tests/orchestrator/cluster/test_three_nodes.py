"""docs/cluster.md's cluster of several nodes, the installed command, and a node that loses its power."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.fakes import FAST_OVERRIDES
from tests.orchestrator.conftest import ROOT, command_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SETTINGS = (
    *FAST_OVERRIDES,
    "fit.num_steps=300",
    "runtime.checkpoint_every=10",
    "runtime.num_threads=1",
    "export.turntable_frames=0",
    "export.preview_size=16",
)


class Nodes:
    """docs/cluster/three_nodes.py, driven as a person would."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self.process, self.address = process, address

    def tell(self, line: str) -> str:
        """Its answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head and one node."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "docs" / "cluster" / "three_nodes.py"), "2", "2"],
        env=command_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        said = process.stdout.readline()
        match = re.fullmatch(r"2 nodes at (127\.0\.0\.1:\d+): dreamkiln up --address \1\n", said)
        assert match, said
        yield Nodes(process, match[1])
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()  # as Ctrl-D
        process.wait(timeout=60)
        process.stdout.close()


def digest(folder: Path) -> str:
    return json.loads((folder / "manifest.json").read_text())["artefacts"]["mesh.glb"]["sha256"]


def test_a_job_goes_on_at_another_node_when_its_own_dies(nodes, dreamkiln, tiny_prior, tmp_path, monkeypatch):
    state = ("--state", tmp_path / "state", "--json")

    def call(*arguments):
        done = dreamkiln(*arguments, *state)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.strip().splitlines()[-1])

    def wait_for(job, condition, seconds=300):
        deadline = time.monotonic() + seconds
        while not condition(shown := call("jobs", "show", job)):
            assert time.monotonic() < deadline, shown
        return shown

    command = ["a red table", "--prior", tiny_prior, *SETTINGS]
    alone = dreamkiln("text-to-3d", *command, "--out", tmp_path / "alone", "--runtime", "inline")
    assert alone.returncode == 0, alone.stderr

    # Without the cluster's token nothing is let in.
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "0" * 32)
        refused = dreamkiln("up", "--address", nodes.address, *state)
        assert refused.returncode == 2 and "cannot be joined" in refused.stderr, refused.stderr

    # One command on the cluster writes its files itself, and leaves nothing there.
    single = dreamkiln("text-to-3d", *command, "--out", tmp_path / "single", f"runtime.address={nodes.address}")
    assert single.returncode == 0, single.stderr
    assert digest(tmp_path / "single") == digest(tmp_path / "alone")
    (tmp_path / "prompts.txt").write_text("a red table\na blue table\n")
    table = ["--prompts", tmp_path / "prompts.txt", "--prior", tiny_prior, "--steps", 2, "--out", tmp_path / "images"]
    drawn = dreamkiln("images", *table, f"runtime.address={nodes.address}")
    assert drawn.returncode == 0, drawn.stderr
    assert len(list((tmp_path / "images" / "00000").glob("*.png"))) == 2
    children = psutil.Process(nodes.process.pid).children(recursive=True)
    assert not [child for child in children if child.name().startswith(("ray::JobActor", "ray::PriorActor", "ray::ShardActor"))]

    # Jobs on the orchestrator: the node with the prior and the job dies, another has been added.
    up = call("up", "--address", nodes.address)
    assert call("status")["num_workers"] == 1, "two cores: one for the prior"
    out = tmp_path / "run"
    job = call("submit", "text-to-3d", *command, "--out", out)["jobs"][0]["id"]
    wait_for(job, lambda shown: shown["job"]["stage"] == "fit" and shown["job"]["step"] > 30)
    assert nodes.tell("add") == "nodes 2, 3 beside the head\n"
    assert nodes.tell("kill 2") == "nodes 3 beside the head\n"
    shown = wait_for(job, lambda shown: shown["job"]["state"] in ("succeeded", "failed"))
    assert shown["job"]["state"] == "succeeded", shown["job"]["reason"]
    # Ray may place the second attempt on the dead node, before it has noticed.
    assert {attempt["outcome"] for attempt in shown["attempts"][:-1]} == {"failed"}
    assert "Continuing from step" in (tmp_path / "state" / "logs" / f"{job}.log").read_text()
    assert digest(out) == digest(tmp_path / "alone")
    assert not [path for path in out.iterdir() if path.name.startswith(".")]

    # Nothing that we or Ray opened is for other machines.
    family = [psutil.Process(up["pid"]), *psutil.Process(nodes.process.pid).children(recursive=True)]
    assert listening(family) == {"127.0.0.1"}
    call("down")


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses at which they listen."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in process.net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(connection.laddr.ip.removeprefix("::ffff:"))
    return found
