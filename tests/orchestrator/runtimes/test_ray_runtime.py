"""A real local Ray: the same files as inline, errors with their own words, and nothing left running."""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.errors import InputError
from jobs.events import Checkpoint, Finished, ImageReady
from jobs.specs import ImagesSpec, TextTo3DSpec, find_loras
from orchestrator.prior.local import load_prior
from orchestrator.run.perform import perform
from orchestrator.runtimes.base import Attempt
from orchestrator.runtimes.inline import InlineRuntime
from orchestrator.runtimes.ray_runtime import PriorActor, Raised, RayRuntime
from orchestrator.settings.groups import ExportSettings, RuntimeSettings
from tests.fakes import FAST_FIT, FAST_MESH, save_tiny_lora
from tests.orchestrator.conftest import command_environment

# ray opens files at interpreter exit and warns in its own modules; that is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = ExportSettings(preview_size=16, turntable_frames=2, turntable_size=16)


def ray_processes_of(root: int) -> list[str]:
    """Ray's processes below that one, by name."""
    try:
        children = psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child.name() for child in children if child.status() != psutil.STATUS_ZOMBIE]


def specs(prior: Path) -> list[TextTo3DSpec | ImagesSpec]:
    fit = dataclasses.replace(FAST_FIT, num_steps=8)
    return [
        TextTo3DSpec(prompt="a red table", fit=fit, mesh=FAST_MESH, prior=str(prior)),
        ImagesSpec(prompt="a red table", num_images=3, num_steps=2, chunk_size=2, prior=str(prior)),
    ]


def digests(folder: Path) -> dict[str, str]:
    manifest = json.loads((folder / "manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["artefacts"].items() if not name.startswith("_")}


def test_ray_and_inline_leave_the_same_files(tiny_prior, tmp_path):
    """Of a job with a LoRA of its own, which the prior's actor reads."""
    save_tiny_lora(tmp_path / "clay.safetensors", tiny_prior)
    spec = dataclasses.replace(specs(tiny_prior)[0], loras=find_loras([f"{tmp_path}/clay.safetensors:0.8"]))
    for kind in ("inline", "ray"):
        runtime = RuntimeSettings(kind=kind, num_threads=1, checkpoint_every=4)
        perform(spec, out=tmp_path / kind, export=SMALL, runtime=runtime)
    assert digests(tmp_path / "inline") == digests(tmp_path / "ray")
    names = [sorted(path.name for path in (tmp_path / kind).iterdir()) for kind in ("inline", "ray")]
    assert names[0] == names[1]
    assert not _ray_children_after(seconds=5)


def test_one_ray_runs_several_attempts_and_listens_on_loopback_only(tiny_prior):
    mesh_spec, images_spec = specs(tiny_prior)
    with RayRuntime(load_prior, str(tiny_prior), num_threads=1) as runtime:
        assert runtime.prior_info().name == "tiny"
        events = list(runtime.run(Attempt(mesh_spec, checkpoint_every=4)))
        assert isinstance(events[-1], Finished) and events[-1].result.field is None
        checkpoint = next(event for event in events if isinstance(event, Checkpoint))
        resumed = list(runtime.run(Attempt(mesh_spec, checkpoint=checkpoint)))
        assert (resumed[-1].result.mesh.vertices == events[-1].result.mesh.vertices).all()
        drawn = [event for event in runtime.run(Attempt(images_spec)) if isinstance(event, ImageReady)]
        with InlineRuntime(load_prior, str(tiny_prior), num_threads=1) as inline:
            here = [event for event in inline.run(Attempt(images_spec)) if isinstance(event, ImageReady)]
        assert [event.index for event in drawn] == [0, 1, 2]
        assert all((ours.image == theirs.image).all() for ours, theirs in zip(here, drawn, strict=True))
        listening = {
            connection.laddr.ip
            for child in psutil.Process().children(recursive=True)
            for connection in child.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN
        }
        assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
        servers = [child for child in psutil.Process().children(recursive=True) if child.name() in ("gcs_server", "raylet")]
        assert {server.environ()["RAY_AUTH_MODE"] for server in servers} == {"token"} and len(servers) == 2
    assert not _ray_children_after(seconds=5)


LATE = """
import psutil, ray
from orchestrator.runtimes.ray_start import start_ray, stop_ray

start_ray()
family = psutil.Process().children(recursive=True)
print(*{c.laddr.ip for p in family for c in p.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN})
print(ray.get(ray.remote(num_cpus=0.1)(lambda: 42).remote()))
stop_ray()
"""


@pytest.mark.slow
def test_a_program_that_has_imported_ray_first_gets_the_same_ray():
    done = subprocess.run([sys.executable, "-c", LATE], env=command_environment(), capture_output=True, text=True, timeout=300)
    listening, answer = done.stdout.strip().splitlines()
    assert {ip.removeprefix("::ffff:") for ip in listening.split()} == {"127.0.0.1"}, done.stderr
    assert answer == "42"


def test_errors_keep_their_words(tmp_path):
    """The actor's class needs no Ray to be tried."""
    answer = PriorActor(load_prior, str(tmp_path), "cpu", 1).call("info")
    again = pickle.loads(pickle.dumps(answer))
    with pytest.raises(InputError, match=r"model_index\.json"):
        again.reraise()


def test_an_error_from_the_other_side_keeps_its_traceback():
    try:
        1 / 0  # noqa: B018 - for its traceback
    except ZeroDivisionError as error:
        raised = Raised(error)
    with pytest.raises(Exception, match="ZeroDivisionError") as caught:
        raised.reraise()
    assert "1 / 0" in caught.value.__notes__[0]


def _ray_children_after(*, seconds: float) -> list[str]:
    """What is still below this process after a moment."""
    deadline = time.monotonic() + seconds
    me = psutil.Process().pid
    while (left := ray_processes_of(me)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left
