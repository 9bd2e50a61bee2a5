"""Joining a Ray cluster: what is refused at once and in words, and what a worker does that does not see the folder."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from jobs.errors import InputError
from orchestrator.daemon.job_process import JobProcess
from orchestrator.daemon.options import DaemonOptions
from orchestrator.daemon.reports import Failed
from orchestrator.host.shared_disk import remove_sentinel, require_sentinel, write_sentinel
from orchestrator.runtimes.ray_start import has_token, start_ray


@pytest.fixture
def closed_port():
    """A port of this machine at which nobody listens, held so that nobody else takes it."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "is of Ray's client protocol"),
        ("head", "The Ray address is 'head'; give HOST:PORT"),
        ("head:none", "give HOST:PORT"),
        ("head:70000", "give HOST:PORT"),
        (":6379", "give HOST:PORT"),
    ],
)
def test_an_address_that_is_none_is_refused_before_ray_is_asked(address, message):
    with pytest.raises(InputError, match=message):
        start_ray(address)


def test_a_cluster_that_does_not_answer_is_refused_at_once(closed_port, monkeypatch):
    with pytest.raises(InputError, match=rf"No Ray cluster answers at 127\.0\.0\.1:{closed_port}\. On the cluster's head"):
        start_ray(f"127.0.0.1:{closed_port}")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(InputError, match="No Ray cluster answers at auto"):
        start_ray("auto")


def test_the_command_line_says_so_too(dreamkiln, closed_port, tmp_path):
    refused = dreamkiln("up", "--state", tmp_path / "state", "--address", f"127.0.0.1:{closed_port}")
    assert refused.returncode == 2 and "No Ray cluster answers" in refused.stderr and "Traceback" not in refused.stderr


def test_a_token_is_found_where_ray_looks_for_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert not has_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "elsewhere"))
    assert not has_token()
    (tmp_path / "elsewhere").write_text("0" * 32)
    assert has_token()
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 32)
    assert has_token()


def test_a_metrics_port_that_is_taken_is_refused_before_ray_starts():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=f"--metrics-port {taken.getsockname()[1]} is taken by another program"):
            start_ray(metrics_port=taken.getsockname()[1])


def test_a_metrics_port_is_for_a_ray_of_our_own(tmp_path):
    with pytest.raises(InputError, match="--metrics-port is 70000"):
        DaemonOptions(state=str(tmp_path), metrics_port=70000)
    with pytest.raises(InputError, match="give 'ray start' its --metrics-export-port"):
        DaemonOptions(state=str(tmp_path), metrics_port=9464, address="head:6379")


def test_a_worker_that_sees_another_folder_makes_no_file(tmp_path):
    out = tmp_path / "run"
    sentinel = write_sentinel(str(out))
    require_sentinel(sentinel)
    remove_sentinel(sentinel)
    remove_sentinel(sentinel)
    assert list(out.iterdir()) == []

    worker = JobProcess({}, {}, str(out), prior=None, sentinel=sentinel)
    worker._thread.join(timeout=10)
    (report,) = worker.poll()
    assert isinstance(report, Failed) and report.kind == "bad input"
    assert (
        "is not the folder that the job was started with" in report.reason
        and "every node of the cluster mounts" in report.reason
    )
    assert list(out.iterdir()) == []


def test_a_sentinel_left_by_a_killed_orchestrator_goes_with_the_next(tmp_path):
    left = Path(write_sentinel(str(tmp_path)))
    (tmp_path / "mesh.glb").touch()
    assert left.exists()
    remove_sentinel(write_sentinel(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.glb"]


def test_a_folder_that_cannot_be_written_is_left_for_the_worker_to_name(tmp_path):
    (tmp_path / "file").write_text("")
    assert write_sentinel(str(tmp_path / "file" / "run")) == ""
    require_sentinel("")
