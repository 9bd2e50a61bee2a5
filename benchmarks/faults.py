"""What a night of faults leaves: processes, nodes and the orchestrator killed, the disk full, the database restarted.

    python -m benchmarks.faults [--moments 20] [--faults NAME ...]

A Ray cluster of three nodes on this machine, an orchestrator on it, and mixed work that never runs out: fits, images, a
prompt table. Faults strike at random moments; then the work is left to end, and every file is compared with the one that
an undisturbed run in one process makes. Exit code 1 if anything is lost, doubled or different.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.fault_work import CHECKPOINT_EVERY, Kind, differences, kinds_of_work, run_undisturbed
from benchmarks.machine import describe_machine, one_line
from jobs.errors import DreamKilnError
from orchestrator.client.client import Client
from orchestrator.client.launch import is_alive, launch, shut_down
from orchestrator.daemon.options import DaemonOptions
from orchestrator.host.state_folder import StateFolder
from orchestrator.runtimes.ray_start import OWN_RAY

RESULTS = Path(__file__).parent / "results" / "faults.json"
ROOT = Path(__file__).parents[1]
OBJECT_STORE_BYTES = 80 * 1024**2
DISK_BYTES = 64 * 1024**2
SECONDS_BETWEEN_FAULTS = (1.0, 9.0)
PATIENCE_SECONDS = 600.0
FINISHED = ("succeeded", "failed", "cancelled")


class NotHereError(Exception):
    """A fault that cannot be made on this machine, and why."""


class StuckError(Exception):
    """Nothing has moved for minutes."""


class Nodes:
    """A head without CPUs, which only keeps the books, and two nodes that work."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {**_node(0), "include_dashboard": False}
        with _patience_with_nodes():
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            self._add_one()
        self._cluster.wait_for_nodes(timeout=PATIENCE_SECONDS)

    @property
    def address(self) -> str:
        """Of the cluster."""
        return self._cluster.address

    def processes(self, title: str) -> list[psutil.Process]:
        """Ray's workers on the working nodes whose process title contains `title`."""
        return [process for node in self._workers() for process in _below(node) if title in _title(process)]

    def kill_one(self, moments: random.Random) -> str:
        """SIGKILL everything on a working node at one instant; another one joins a moment later."""
        node = moments.choice(self._workers())
        doomed = _below(node)
        num_workers = sum("ray::" in _title(process) for process in doomed)
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)
        time.sleep(moments.uniform(0, 4))
        self._add_one()
        return f"node with {num_workers} workers"

    def shut_down(self) -> None:
        """End all of it."""
        self._cluster.shutdown()

    def _add_one(self) -> None:
        with _patience_with_nodes():
            self._cluster.add_node(**_node(4), wait=False)

    def _workers(self) -> list[Any]:
        return sorted(self._cluster.worker_nodes, key=lambda node: node.node_id)


@dataclass
class Scene:
    """What a fault can strike. disk: where all files and the state lie; not None where it may be filled up."""

    nodes: Nodes
    options: DaemonOptions
    folder: Path
    moments: random.Random
    disk: Path | None = None
    database: Any = None

    @property
    def state(self) -> StateFolder:
        """The orchestrator's."""
        return StateFolder(Path(self.options.state))

    def processes(self, title: str) -> list[psutil.Process]:
        """See `Nodes.processes`."""
        return self.nodes.processes(title)


def kill_worker(title: str) -> Callable[[Scene], str | None]:
    """SIGKILL of one of Ray's workers by its title."""

    def strike(scene: Scene) -> str | None:
        victims = scene.processes(title)
        if not victims:
            return None
        victim = scene.moments.choice(sorted(victims, key=lambda process: process.pid))
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
            return f"process {victim.pid}"
        return None

    return strike


def kill_node(scene: Scene) -> str | None:
    """SIGKILL of a whole node."""
    return scene.nodes.kill_one(scene.moments)


def kill_orchestrator(scene: Scene) -> str | None:
    """SIGKILL of the orchestrator; `dreamkiln up` a moment later."""
    endpoint = scene.state.endpoint()
    if endpoint is None or not is_alive(endpoint.pid):
        return None
    os.kill(endpoint.pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(endpoint.pid, 0)
    time.sleep(scene.moments.uniform(0, 3))
    launch(scene.options)
    return f"process {endpoint.pid}"


def fill_disk(scene: Scene) -> str | None:
    """The disk of the outputs and of the state is full for a few seconds."""
    assert scene.disk is not None
    filler = scene.disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for block in (2**20, 2**12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * block)
    time.sleep(scene.moments.uniform(1, 5))
    size = filler.stat().st_size
    filler.unlink()
    return f"{size / 2**20:.0f} MiB filled up"


def restart_database(scene: Scene) -> str | None:
    """PostgreSQL ends at once, without a shutdown, and is back a few seconds later."""
    scene.database.stop()
    time.sleep(scene.moments.uniform(0, 4))
    scene.database.start()
    return "restarted"


FAULTS: dict[str, Callable[[Scene], str | None]] = {
    "prior replica": kill_worker("ray::PriorActor"),
    "job": kill_worker("ray::JobProcess"),
    "image worker": kill_worker("ray::ShardActor"),
    "whole node": kill_node,
    "orchestrator": kill_orchestrator,
    "full disk": fill_disk,
    "database": restart_database,
}


@dataclass
class Night:
    """Work that is topped up until the faults are over.

    Args:
        jobs: id -> its kind and folder. shown: id -> what the orchestrator last said of it.
        markers: of shards, each with its inode. num_recommitted: shards that were drawn again after their commit.
        furthest: (3D job, attempt) -> the furthest fit step that was seen of it.
    """

    scene: Scene
    user: str
    kinds: list[Kind]
    jobs: dict[int, tuple[Kind, Path]] = field(default_factory=dict)
    shown: dict[int, dict[str, Any]] = field(default_factory=dict)
    markers: dict[Path, int] = field(default_factory=dict)
    num_recommitted: int = 0
    furthest: dict[tuple[int, int], int] = field(default_factory=dict)

    def look(self) -> None:
        """Ask the orchestrator how the jobs stand, if it answers."""
        with contextlib.suppress(DreamKilnError):
            found = Client(self.scene.state, timeout_seconds=10).get("/v1/jobs", user=self.user, limit=1000)["jobs"]
            self.shown = {job["id"]: job for job in found}
        for number, job in self.shown.items():
            if job["stage"] == "fit":
                key = number, job["num_attempts"]
                self.furthest[key] = max(job["step"], self.furthest.get(key, 0))
        self._look_at_markers()

    @property
    def unfinished(self) -> list[int]:
        """Jobs that have not ended, as far as is known."""
        return [number for number in self.jobs if self.shown.get(number, {}).get("state") not in FINISHED]

    def top_up(self) -> None:
        """Queue as many jobs as have ended. A submission without an answer is repeated with the same key."""
        for position, kind in enumerate(self.kinds):
            mine = [number for number in self.unfinished if self.jobs[number][0] is kind]
            for _ in range(kind.num_at_once - len(mine)):
                number = sum(kind is other for other, _ in self.jobs.values())
                name = f"{self.user.replace(' ', '-')}-{kind.name}-{position}-{number}"
                out = self.scene.folder / name
                request = {**kind.request(out, user=self.user), "idempotency_key": name}
                with contextlib.suppress(DreamKilnError):
                    answer = Client(self.scene.state, timeout_seconds=10).post("/v1/jobs", {"jobs": [request]})
                    self.jobs[answer["jobs"][0]["id"]] = (kind, out)

    def stand(self) -> str:
        """How far those are that have not ended, for the log."""
        jobs = (self.shown[number] for number in self.unfinished if number in self.shown)
        return ", ".join(f"{job['stage'] or job['state']} {job['step']}" for job in jobs)

    def _look_at_markers(self) -> None:
        """A commit marker that was seen and is another one now: its shard was drawn again, though it was done."""
        for kind, out in self.jobs.values():
            if kind.name == "table":
                for path in (out / "_shards").glob("*.json"):
                    with contextlib.suppress(FileNotFoundError):
                        inode = path.stat().st_ino
                        self.num_recommitted += self.markers.setdefault(path, inode) != inode
                        self.markers[path] = inode

    def steps_redone(self) -> list[int]:
        """Per restart of a fit from a checkpoint: how many of the steps that were seen it took again."""
        redone = list[int]()
        for number in {number for number, _ in self.furthest}:
            told = Client(self.scene.state).get(f"/v1/jobs/{number}")
            starts = [attempt["started_at"] for attempt in told["attempts"]]
            for event in told["events"]:
                if found := re.match(r"Continuing from step (\d+) of", event["text"]):
                    attempt = sum(start <= event["at"] for start in starts)
                    before = [step for (job, earlier), step in self.furthest.items() if job == number and earlier < attempt]
                    redone.append(max(0, max(before, default=0) - int(found[1])))
        return redone

    def pass_seconds(self, seconds: float) -> None:
        """Let the work go on for so long."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
            self.look()
            self.top_up()

    def until_at_work(self) -> None:
        """Wait until some job goes on, so that a fault finds something to spoil. Raises StuckError."""
        deadline, before = time.monotonic() + PATIENCE_SECONDS, dict[int, int]()
        while time.monotonic() < deadline:
            self.look()
            self.top_up()
            now = {number: self.shown[number]["step"] for number in self.unfinished if number in self.shown}
            if any(step > before.get(number, step) for number, step in now.items()):
                return
            before = now
            time.sleep(0.5)
        raise StuckError(f"no job went on for {PATIENCE_SECONDS:.0f} s: {self.shown}")

    def drain(self) -> None:
        """Wait until every job has ended. Raises StuckError if nothing moves."""
        moved, deadline = None, time.monotonic() + PATIENCE_SECONDS
        while self.unfinished:
            self.look()
            now = [(job["id"], job["state"], job["stage"], job["step"]) for job in self.shown.values()]
            if now != moved:
                moved, deadline = now, time.monotonic() + PATIENCE_SECONDS
            if time.monotonic() > deadline:
                stuck = [self.shown.get(number) for number in self.unfinished]
                raise StuckError(f"nothing moved for {PATIENCE_SECONDS:.0f} s: {stuck}")
            time.sleep(0.5)

    def judge(self, expected: dict[int, dict[str, str]]) -> list[str]:
        """Everything that is lost, doubled or different. expected: id of a kind -> the digests of its files."""
        said = [f"job {number} is in the ledger and was never asked for" for number in self.shown.keys() - self.jobs.keys()]
        for number, (kind, out) in self.jobs.items():
            job = self.shown[number]
            if job["state"] != "succeeded":
                said.append(f"job {number} is {job['state']}: {job['reason']}")
                continue
            said += differences(out, expected[id(kind)])
            told = Client(self.scene.state).get(f"/v1/jobs/{number}")
            if [attempt["outcome"] for attempt in told["attempts"]].count("succeeded") != 1:
                said.append(f"job {number} succeeded more than once: {told['attempts']}")
            if kind.name == "table" and told["shards"]["num_committed"] != kind.spec.num_shards:
                said.append(f"the ledger knows {told['shards']} of job {number}, whose shards are all committed")
        return said


def disturb(
    scene: Scene, name: str, strikes: Sequence[str], *, kinds: list[Kind], expected: dict[int, dict[str, str]]
) -> dict[str, Any]:
    """A night under that name with those faults, one after another, and what was left of the work."""
    night, begin, to_strike, wrong = Night(scene, name, kinds), time.monotonic(), list(strikes), list[str]()
    try:
        night.top_up()
        while to_strike:
            night.until_at_work()
            night.pass_seconds(scene.moments.uniform(*SECONDS_BETWEEN_FAULTS))
            what = FAULTS[to_strike[0]](scene)
            if what is not None:
                print(f"  {time.monotonic() - begin:6.1f} s  {to_strike.pop(0)}: {what} ({night.stand()})", flush=True)
        night.drain()
        wrong += night.judge(expected)
    except StuckError as error:
        log = scene.state.daemon_log.read_text().splitlines()[-20:]
        return {"fault": name, "moments": len(strikes) - len(to_strike), "most_steps_redone": 0, "wrong": [str(error), *log]}
    redone = night.steps_redone()
    jobs = [Client(scene.state).get(f"/v1/jobs/{number}")["job"] for number in night.jobs]
    return {
        "fault": name,
        "moments": len(strikes),
        "jobs": len(night.jobs),
        "files": sum(len(expected[id(kind)]) for kind, _ in night.jobs.values()),
        "restarts": sum(job["num_attempts"] - 1 for job in jobs),
        "most_steps_redone": max(redone, default=0),
        "median_steps_redone": statistics.median(redone) if redone else 0,
        "shards_committed_again": night.num_recommitted,
        "wrong": wrong,
        "seconds": round(time.monotonic() - begin, 1),
    }


def main(arguments: list[str] | None = None) -> int:
    """1 if anything was lost, doubled or different, or more than a checkpoint interval was done again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="of each fault")
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the files go while it runs; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    machine = describe_machine()
    print(one_line(machine))
    is_fine = True
    with environment_of_ray(), tempfile.TemporaryDirectory(prefix="dreamkiln-faults-", dir=options.folder) as folder:
        for result in run(Path(folder), options.faults, num_moments=options.moments, seed=options.seed):
            print({**result, "wrong": len(result["wrong"])}, flush=True)
            for sentence in result["wrong"]:
                print(f"    {sentence}", flush=True)
            save(options.out, {**result, "seed": options.seed, "machine": machine})
            is_fine = is_fine and not result["wrong"] and result["most_steps_redone"] <= CHECKPOINT_EVERY
    print(options.out)
    return int(not is_fine)


def save(path: Path, result: dict[str, Any]) -> None:
    """Replaces the entry of the same fault."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = json.loads(path.read_text(encoding="utf-8"))["faults"] if path.exists() else []
    entries = [entry for entry in entries if entry["fault"] != result["fault"]]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    document = {"checkpoint_every": CHECKPOINT_EVERY, "faults": [*entries, {**result, "measured": now}]}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def run(folder: Path, faults: list[str], *, num_moments: int, seed: int) -> Iterator[dict[str, Any]]:
    """The named faults one after another, each with an orchestrator, a folder and moments of its own."""
    from tests.fakes import save_tiny_prior

    nodes = Nodes()
    try:
        kinds = kinds_of_work(save_tiny_prior(folder / "prior"), folder / "prompts.jsonl")
        expected = {id(kind): run_undisturbed(kind, folder / f"undisturbed-{number}") for number, kind in enumerate(kinds)}
        for name in faults:
            with scene_of([name], nodes, folder / name.replace(" ", "-"), seed=seed) as scene:
                yield disturb(scene, name, [name] * num_moments, kinds=kinds, expected=expected)
    finally:
        nodes.shut_down()


@contextlib.contextmanager
def scene_of(faults: Collection[str], nodes: Nodes, folder: Path, *, seed: int) -> Iterator[Scene]:
    """An orchestrator on the cluster, with a small disk and a PostgreSQL of its own where the faults need them."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        disk = database = ledger = None
        if "full disk" in faults:
            disk = stack.enter_context(small_disk(folder))
        if "database" in faults:
            database = stack.enter_context(postgresql())
            ledger = database.new_database()
        options = DaemonOptions(
            state=str(folder / "state"),
            ledger=ledger,
            address=nodes.address,
            num_workers=6,
            memory_gb=100.0,
            num_threads=1,
            device="cpu",
        )
        moments = random.Random(f"{' '.join(faults)} {seed}")
        scene = Scene(nodes, options, folder, moments, disk=disk, database=database)
        launch(options)
        stack.callback(shut_down, scene.state, timeout_seconds=60)
        yield scene


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own over the folder. Raises NotHereError where that is not allowed."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise NotHereError(f"a small disk takes the right to mount one: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def postgresql() -> Iterator[Any]:
    """A server of our own. Raises NotHereError where PostgreSQL is not installed."""
    from tests.jobs.ledger.conftest import PostgreSQL, find_programs

    programs = find_programs()
    if programs is None:
        raise NotHereError("the database fault needs PostgreSQL's programs: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="ledger-"))
    server = PostgreSQL(programs, folder)
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def _node(num_cpus: int) -> dict[str, Any]:
    return {"num_cpus": num_cpus, "object_store_memory": OBJECT_STORE_BYTES}


@contextlib.contextmanager
def _patience_with_nodes() -> Iterator[None]:
    """Ray gives a new node up after 30 s, which is soon on a machine under load: it is asked after for longer here."""
    from ray._private import services

    ask = services.get_node

    def keep_asking(*arguments: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return ask(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1)

    services.get_node = keep_asking
    try:
        yield
    finally:
        services.get_node = ask


def _below(node: Any) -> list[psutil.Process]:
    """The node's raylet and everything that it has started."""
    found = []
    for processes in node.all_processes.values():
        for info in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(info.process.pid)
                found += [process, *process.children(recursive=True)]
    return found


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextlib.contextmanager
def environment_of_ray() -> Iterator[None]:
    """What Ray's processes and the orchestrator inherit: loopback, a token of this run, this checkout."""
    before = dict(os.environ)
    os.environ |= {**OWN_RAY, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [before.get("PYTHONPATH")])])
    _forget_rays_token()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before
        _forget_rays_token()


def _forget_rays_token() -> None:
    """Ray reads its token once a process; another Ray may have run in this one before."""
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()


if __name__ == "__main__":
    sys.exit(main())
