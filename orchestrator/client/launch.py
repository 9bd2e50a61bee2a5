"""Starting the orchestrator in the background, and ending it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import site
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from jobs.errors import DreamKilnError, InputError
from orchestrator.client.client import Client, NotRunningError
from orchestrator.daemon.daemon import DaemonOptions
from orchestrator.host.atomic import clear_output_errors
from orchestrator.host.state_folder import Endpoint, StateFolder

__all__ = ["Launched", "launch", "reachable", "shut_down"]

START_SECONDS = 180.0


@dataclass(frozen=True)
class Launched:
    """is_new: False if it ran before."""

    endpoint: Endpoint
    is_new: bool


def launch(options: DaemonOptions) -> Launched:
    """Start it, unless it runs already, and wait until it answers.

    Raises:
        InputError, DreamKilnError: what kept it from starting.
    """
    folder = StateFolder(Path(options.state))
    if running := _answering(folder):
        return Launched(running, is_new=False)
    folder.create()
    errors = folder.path / "daemon.err"
    with clear_output_errors(errors, option="--state"), errors.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrator.daemon.daemon"],  # -P: a jobs.py in this folder is not ours
            env=_with_our_path(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            start_new_session=True,  # Ctrl-C in this terminal is not for it
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # its own words say why it has ended
        pipe.write(json.dumps(dataclasses.asdict(options)).encode())
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        endpoint = _answering(folder)
        if endpoint is not None and endpoint.pid == process.pid:
            process.returncode = 0  # it is on its own from here; subprocess shall not warn that it still runs
            return Launched(endpoint, is_new=True)
        if process.poll() is not None:
            raise _reason(errors, process.returncode, folder)
        time.sleep(0.1)
    process.kill()
    process.wait()
    raise DreamKilnError(f"The orchestrator did not answer within {START_SECONDS:.0f} s; see {folder.daemon_log}.")


def _with_our_path() -> dict[str, str]:
    """The environment in which another Python finds us: a checkout that is not installed is found by its path alone."""
    root = str(Path(__file__).resolve().parents[2])
    before = os.environ.get("PYTHONPATH", "")
    is_installed = root in {*site.getsitepackages(), site.getusersitepackages(), *before.split(os.pathsep)}
    return (
        dict(os.environ) if is_installed else {**os.environ, "PYTHONPATH": os.pathsep.join([root, before]).rstrip(os.pathsep)}
    )


def reachable(url: str) -> str:
    """The address under which another machine finds what listens at `url`: a machine that listens everywhere is none."""
    address = urlsplit(url)
    if address.hostname not in ("0.0.0.0", "::"):
        return url
    family, remote = (socket.AF_INET, "192.0.2.1") if address.hostname == "0.0.0.0" else (socket.AF_INET6, "2001:db8::1")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((remote, 9))  # sends nothing: it asks the system which of our addresses it would use
            host = str(probe.getsockname()[0])
    except OSError:
        host = socket.gethostname()
    return f"{address.scheme}://{f'[{host}]' if ':' in host else host}:{address.port}"


def shut_down(folder: StateFolder, *, timeout_seconds: float) -> bool:
    """End the running orchestrator and wait until it has; False if there is none.

    Raises:
        DreamKilnError: it has not ended in time.
    """
    try:
        client = Client(folder)
        client.post("/v1/shutdown")
    except NotRunningError:
        return False
    deadline = time.monotonic() + timeout_seconds
    while is_alive(client.endpoint.pid):
        if time.monotonic() > deadline:
            raise DreamKilnError(
                f"The orchestrator (process {client.endpoint.pid}) has not ended within {timeout_seconds:.0f} s; see "
                f"{folder.daemon_log}."
            )
        time.sleep(0.05)
    return True


def is_alive(pid: int) -> bool:
    """A process of that number runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except (OSError, IndexError):
        return not Path("/proc").is_dir() or Path(f"/proc/{pid}").exists()


def _answering(folder: StateFolder) -> Endpoint | None:
    try:
        client = Client(folder, timeout_seconds=5)
        client.get("/health")
    except InputError:
        return None
    return client.endpoint


def _reason(errors: Path, code: int, folder: StateFolder) -> DreamKilnError:
    """The last words of a process that ended."""
    try:
        said = json.loads(errors.read_text().strip().splitlines()[-1])
        return InputError(said["error"]) if said["exit_code"] == 2 else DreamKilnError(said["error"])
    except (OSError, ValueError, LookupError, TypeError):
        return DreamKilnError(f"The orchestrator ended with code {code} as it started; see {folder.daemon_log} and {errors}.")
