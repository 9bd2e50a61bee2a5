"""What a killed orchestrator leaves is ended by the next one of its folder, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.errors import OutputError
from orchestrator.daemon.orphans import MARK, end_orphans, mark_descendants
from orchestrator.host.state_folder import Endpoint, StateFolder


def sleeper(folder: StateFolder) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: str(folder.path)})


def orphan(folder: StateFolder) -> int:
    """A marked process that is no child of ours."""
    environment = {**os.environ, MARK: str(folder.path)}
    done = subprocess.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], env=environment, capture_output=True, check=True)
    return int(done.stdout)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the environment of a process is read from /proc")
def test_only_marked_processes_that_are_not_ours_are_ended(tmp_path, monkeypatch):
    monkeypatch.setenv(MARK, "")
    mine, others = StateFolder(tmp_path / "mine"), StateFolder(tmp_path / "others")
    own, neighbour = orphan(mine), orphan(others)
    mark_descendants(mine)
    child = sleeper(mine)
    try:
        assert end_orphans(mine) == 1 and end_orphans(mine) == 0
        assert not is_running(own) and is_running(neighbour) and child.poll() is None
    finally:
        assert end_orphans(others) == 1
        child.kill()
        child.wait()


def test_what_hides_its_environment_is_known_by_the_dead_orchestrators_session(tmp_path):
    """Ray's agents and workers do: their titles stand where their environment was."""
    folder = StateFolder(tmp_path / "state")
    folder.create()
    start = "import os, subprocess as s; kwargs = dict(stdout=s.DEVNULL, stderr=s.DEVNULL); print(os.getpid());"
    start += "[print(s.Popen([name, '60'], executable='/bin/sleep', **kwargs).pid) for name in ('ray::Agent', 'neighbour')]"
    done = subprocess.run([sys.executable, "-c", start], start_new_session=True, capture_output=True, check=True)
    leader, own, neighbour = map(int, done.stdout.split())
    folder.announce(Endpoint(url="http://127.0.0.1:9", pid=leader, ledger="x"))
    try:
        assert is_running(own) and end_orphans(folder) == 1
        assert not is_running(own) and is_running(neighbour)
    finally:
        os.kill(neighbour, signal.SIGKILL)


def test_two_orchestrators_do_not_share_a_folder(tmp_path):
    folder = StateFolder(tmp_path / "state")
    folder.create()
    with folder.held(), pytest.raises(OutputError, match="Another orchestrator is running in"), folder.held():
        pass
    with folder.held():
        pass
