"""Starting a Ray of our own, and joining one that runs; `import ray` first happens here, after its environment is set.

What Ray 2.60 does that shaped this file (seen here, see the tests):

- A signal that arrives inside `ray.init` ends the process with a segmentation fault and leaves Ray's processes behind, so
  signals wait until it has returned.
- Joining an address where nobody listens takes 81 seconds and then raises SystemExit. So we knock first.
- Joining 127.0.0.1:PORT is changed into joining this machine's outer address, where a Ray that listens on loopback alone
  never answers.
- It gives its own node 30 s to start, fixed, which a busy machine may take, and leaves behind what it had started.
- Token authentication is on by default for a Ray of one's own and for address="auto", but not for an address in figures.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from jobs.errors import DreamKilnError, InputError
from orchestrator.host.signals import signals_deferred
from orchestrator.host.threads import available_cores

__all__ = ["OWN_RAY", "has_token", "living_nodes", "start_ray", "stop_ray"]

log = logging.getLogger("dreamkiln")

# Read by Ray when it is imported and by its processes when they start; what the user has set already wins.
_EVERYWHERE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Messages up to this size travel inside the call. Through the object store, where Ray puts what is over 100 KB, a query of
    # four views and its answer would take about twice as long.
    "RAY_max_direct_call_object_size": str(1024**2),
}
# Despite its name this decides on every system whether Ray's ports bind to the loopback address alone. The documented
# `_node_ip_address="127.0.0.1"` does not: Ray replaces it by the machine's outer address.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
OWN_RAY = {
    **_EVERYWHERE,
    **_LOOPBACK,
    "RAY_AUTH_MODE": "token",
    # By default Ray lowers its workers' priority to nice 15: beside any other busy program the job would starve.
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A thread that waits for its next piece of work must not spin on a core that the other actor needs.
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Environment of a Ray of our own."""
_OBJECT_STORE_BYTES = 256 * 1024**2
_START_ATTEMPTS = 3
_KNOCK_SECONDS = 5.0
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}


def start_ray(address: str | None = None, *, metrics_port: int = 0) -> None:
    """Start a Ray on this machine's loopback address, with token authentication; or join the cluster at `address`.

    Args:
        address: HOST:PORT of a cluster's head, or "auto" for the one whose node runs on this machine; this machine must be
            one of the cluster's nodes. None or "" starts a Ray that ends with this process.
        metrics_port: of our own Ray's Prometheus endpoint; 0 takes a free one.

    Raises:
        InputError: no such cluster answers, or it refuses us.
    """
    with signals_deferred():
        if address:
            _join(address)
        else:
            _start(metrics_port)


def stop_ray() -> None:
    """End our own Ray with all its processes, or leave the cluster; our actors end either way."""
    import ray

    with signals_deferred():
        ray.shutdown()


def living_nodes() -> list[dict[str, float]]:
    """Per living node of the Ray that was started or joined its resources, by Ray's names."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def has_token() -> bool:
    """Whether this user has a token for Ray, where Ray looks for it."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(named or Path.home() / ".ray" / "auth_token").is_file()


def _start(metrics_port: int) -> None:
    _require_places()
    _prepare(OWN_RAY)
    import ray

    if metrics_port and _answers("127.0.0.1", metrics_port):
        raise InputError(f"--metrics-port {metrics_port} is taken by another program; give another one, or 0 for a free one.")
    for attempt in range(_START_ATTEMPTS):
        before = set(psutil.Process().children(recursive=True))
        try:
            ray.init(
                address="local",
                num_cpus=max(2, available_cores()),
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                job_config=_job_config(),
                _metrics_export_port=metrics_port or None,
                **_QUIET,
            )
            return
        except BaseException as error:
            ray.shutdown()
            _end(set(psutil.Process().children(recursive=True)) - before)
            if not (isinstance(error, Exception) and "timed out during startup" in str(error)):
                raise
            if attempt + 1 == _START_ATTEMPTS:
                raise DreamKilnError(
                    f"Ray did not start within {_START_ATTEMPTS} times 30 s; the machine may be too busy: try again when it is "
                    "not, or run the command with --runtime inline."
                ) from error


def _require_places() -> None:
    """What Ray writes to and does not name when it cannot. Raises InputError with what to set."""
    home = Path(os.path.expanduser("~"))
    places = [(Path(os.environ.get("RAY_TMPDIR", "/tmp")), "set RAY_TMPDIR to a folder of this machine that can be written")]
    if not has_token():
        places.append((home / ".ray" if (home / ".ray").exists() else home, "set HOME, or RAY_AUTH_TOKEN to any long secret"))
    if sys.platform == "linux":
        places.append((Path("/dev/shm"), "mount it, as 'docker run --shm-size=1g' does"))
    for folder, advice in places:
        if not os.access(folder, os.W_OK | os.X_OK):
            fault = "cannot be written" if folder.exists() else "does not exist"
            raise InputError(f"Ray needs {folder}, which {fault}: {advice}, or run the command with --runtime inline.")


class _OwnPaths(list[str]):
    """Folders for workers to look for modules in, of which those count that this process looks in itself."""

    def extend(self, folders: Iterable[str]) -> None:
        """Take those over."""
        super().extend(folder for folder in folders if folder in sys.path)


def _job_config() -> Any:
    """Workers import what this process would.

    Ray puts the current folder in front of their path, so that a user's own `jobs.py` or `secrets.py` there would be run in
    the place of ours, or of the standard library's.
    """
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _OwnPaths()
    return config


def _end(processes: set[psutil.Process]) -> None:
    """What Ray has started and forgets when its start fails."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


def _join(address: str) -> None:
    where = _resolve(address)
    environment = {**_EVERYWHERE, **({"RAY_AUTH_MODE": "token"} if has_token() else {})}
    if where is not None:
        host, port = where
        if not _answers(host, port):
            raise InputError(
                f"No Ray cluster answers at {address}. On the cluster's head run 'ray start --head --port=6379', and on this "
                "machine, if it is another, 'ray start --address=HEAD:6379'."
            )
        if _is_loopback(host) and not _answers(_outer_address(), port):
            environment |= _LOOPBACK
    _prepare(environment)
    import ray
    from ray.exceptions import RayError

    try:
        ray.init(address="auto" if where is None else _joined(*where), job_config=_job_config(), **_QUIET)
    except (ConnectionError, RuntimeError, ValueError, RayError, SystemExit) as error:
        ray.shutdown()
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        with_token = "this user's token for Ray was given" if has_token() else "this user has no token for Ray"
        raise InputError(
            f"The Ray cluster at {address} cannot be joined ({reason}; {with_token}). This machine must be one of its nodes, "
            "with the same versions of Ray and Python, and ~/.ray/auth_token or RAY_AUTH_TOKEN the same as on its head."
        ) from error
    if os.environ.get("RAY_AUTH_MODE") != "token":
        log.warning("The Ray cluster at %s asks for no token: whoever reaches it can run code there.", address)


def _prepare(environment: Mapping[str, str]) -> None:
    """Set what the user has not, also where somebody has imported Ray before us, as a notebook does."""
    is_late = "ray" in sys.modules
    for name, value in environment.items():
        os.environ.setdefault(name, value)
    if is_late:
        from ray._private import ray_constants
        from ray._raylet import Config  # type: ignore[attr-defined]

        # What Ray has read as it was imported: it would listen to all the world, and hold its own token to be a foreign one.
        ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, True)
        Config.initialize("")


def _resolve(address: str) -> tuple[str, int] | None:
    """Host and port; None for "auto" where `ray start` has left no address. Raises InputError."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or _announced_address()
        if not address:
            return None
    if address.startswith("ray://"):
        raise InputError(
            f"The Ray address {address} is of Ray's client protocol, which our workers cannot answer; run the command on a "
            "node of the cluster, and give HOST:6379 or auto."
        )
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(
            f"The Ray address is {address!r}; give HOST:PORT of the cluster's head, such as 10.0.0.5:6379, or auto."
        )
    return host.strip("[]"), int(port)


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _announced_address() -> str:
    """What `ray start` wrote down on this machine: read by ourselves, because Ray's own reader is part of `import ray`."""
    try:
        return (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=_KNOCK_SECONDS):
            return True
    except OSError:
        return False


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _outer_address() -> str:
    """Of the interface that leads out of this machine; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("203.0.113.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
