"""200 clients beside ten running jobs: what they cost the orchestrator's process, how long they wait, and what is left of them.

    python -m benchmarks.clients

A real `dreamkiln up` with the toybox prior and ten jobs of pictures. Half of the clients listen to the stream of all events, as
the page does; of the others two thirds follow a job as a command does that waits for it, and one third looks at the queue every
two seconds, as `dreamkiln jobs watch`. Exit code 1 where the server's process takes more than 3 % of the processor time of the
engine's in the same minute, a client is starved, or something is left when they have gone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from benchmarks.machine import describe_machine
from orchestrator.client.client import Client
from orchestrator.host.state_folder import StateFolder

RESULTS = Path(__file__).parent / "results" / "clients.json"
NUM_JOBS = 10
MOST_OF_ENGINE = 0.03
MOST_SECONDS = 5.0
"""That a look may take, or an event later come to one listener than to another."""
LOOK_AT_QUEUE = "/v1/jobs?state=running&state=lost&state=paused&limit=20"
COMMAND = (sys.executable, "-m", "orchestrator.cli")


@dataclass
class Seen:
    """What one client got: looks or events, the seconds that each look took, or an event came after the first of its kind."""

    num: int = 0
    num_missed: int = 0
    latencies: list[float] = field(default_factory=list)
    heard: dict[bytes, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Orchestrator:
    """A real one at work."""

    client: Client
    server: psutil.Process
    engine: psutil.Process
    jobs: Sequence[int]

    def seconds(self) -> dict[str, float]:
        """Processor time by now."""
        return {name: sum(process.cpu_times()[:2]) for name, process in (("server", self.server), ("engine", self.engine))}

    def size(self) -> dict[str, float]:
        """What could leak: memory, threads, and what stands open."""
        return {
            "megabytes": round(self.server.memory_info().rss / 1e6, 1),
            "threads": self.server.num_threads(),
            "descriptors": self.server.num_fds(),
        }


@contextlib.contextmanager
def orchestrator(state: Path) -> Iterator[Orchestrator]:
    """`dreamkiln up` with ten jobs of pictures, all of them being drawn."""

    def call(*arguments: str) -> Any:
        command = [*COMMAND, *arguments, "--state", str(state), "--json"]
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        return json.loads(done.stdout.splitlines()[-1])

    up = call("up", "--num-workers", str(NUM_JOBS))
    try:
        client, jobs = Client(StateFolder(state)), []
        for seed in range(NUM_JOBS):
            form = {"prompt": "a cyan rocket with a red nose", "num_images": 10_000, "seed": 100_000 * seed}
            jobs.append(client.post("/v1/images", form, timeout_seconds=300.0)["id"])
        deadline = time.monotonic() + 300
        while any(job["step"] == 0 for job in client.get("/v1/jobs", limit=NUM_JOBS)["jobs"]):
            if time.monotonic() > deadline:
                raise RuntimeError("the ten jobs have not begun within five minutes")
            time.sleep(1.0)
        server = psutil.Process(up["pid"])
        (engine,) = [one for one in server.children(recursive=True) if "PriorActor" in "".join(one.cmdline())]
        yield Orchestrator(client, server, engine, jobs)
    finally:
        call("down")


async def _ask(url: str, token: str, path: str) -> Any:
    """One GET over a connection of its own, as the command line makes it."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {body}")
        return body
    finally:
        writer.close()


async def _listen(url: str, token: str, seen: Seen, until: float, first: dict[bytes, float]) -> None:
    """A stream of all events. first: when anybody heard of each of them."""
    begin = time.monotonic()
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=2**20)
    writer.write(f"GET /v1/events HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    try:
        while (left := until - time.monotonic()) > 0:
            line = await asyncio.wait_for(reader.readline(), left + 1)
            if not line:
                seen.errors.append("the stream ended")
                return
            if line.startswith(b"data: "):
                now = time.monotonic()
                seen.num += 1
                seen.latencies.append(now - first.setdefault(line, now))
                seen.heard[line] = now
    except TimeoutError:
        return
    finally:
        writer.close()
        seen.num_missed = sum(begin + 2.0 < at < until - 2.0 and line not in seen.heard for line, at in first.items())


async def _wait(url: str, token: str, seen: Seen, until: float, job: int) -> None:
    """As a command that waits for its job: it hears of progress, and looks when anything else happens, or every 15 seconds."""
    while time.monotonic() < until:
        asked = time.monotonic()
        answer = await _ask(url, token, f"/v1/jobs/{job}")
        seen.num += 1
        seen.latencies.append(time.monotonic() - asked)
        after = max([0, *(event["id"] for event in answer["events"])])
        address = urlsplit(url)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        path = f"/v1/jobs/{job}/events?after={after}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                while line := await reader.readline():
                    if line.startswith(b":") or (line.startswith(b"event: ") and line != b"event: progress\n"):
                        break
        writer.close()


async def _watch(url: str, token: str, seen: Seen, until: float) -> None:
    """As `dreamkiln jobs watch`."""
    while time.monotonic() < until:
        asked = time.monotonic()
        await _ask(url, token, LOOK_AT_QUEUE)
        seen.num += 1
        seen.latencies.append(time.monotonic() - asked)
        await asyncio.sleep(2.0)


async def _all(url: str, token: str, jobs: Sequence[int], num: int, seconds: float) -> dict[str, list[Seen]]:
    """Every client at once; they come within two seconds."""
    seen: dict[str, list[Seen]] = {"listen": [], "wait": [], "watch": []}
    until, first = time.monotonic() + seconds, dict[bytes, float]()

    async def one(kind: str, index: int) -> None:
        mine = Seen()
        seen[kind].append(mine)
        await asyncio.sleep(2.0 * index / num)
        try:
            if kind == "listen":
                await _listen(url, token, mine, until, first)
            elif kind == "wait":
                await _wait(url, token, mine, until, jobs[index % len(jobs)])
            else:
                await _watch(url, token, mine, until)
        except (OSError, RuntimeError, asyncio.IncompleteReadError) as error:
            mine.errors.append(f"{type(error).__name__}: {error}")

    kinds = ("listen", "wait", "listen", "wait", "listen", "watch")
    await asyncio.gather(*(one(kinds[index % len(kinds)], index) for index in range(num)))
    return seen


def measure(num_clients: int, seconds: float) -> dict[str, Any]:
    """Without clients, with them, and after they have gone."""
    with tempfile.TemporaryDirectory(prefix="dreamkiln-clients-") as folder, orchestrator(Path(folder) / "state") as work:
        url, token = work.client.endpoint.url, work.client.folder.token()
        asyncio.run(_all(url, token, work.jobs, num_clients, 10.0))  # what is made at the first use is no leak
        time.sleep(5.0)
        before, spans = work.size(), {}
        for name in ("alone", "with clients"):
            begin, at = work.seconds(), time.monotonic()
            if name == "alone":
                time.sleep(seconds / 2)
            else:
                seen = asyncio.run(_all(url, token, work.jobs, num_clients, seconds))
            spans[name] = {key: round(value - begin[key], 2) for key, value in work.seconds().items()}
            spans[name]["wall"] = round(time.monotonic() - at, 1)
        time.sleep(5.0)
        after = work.size()
    looks = sorted(second for kind in ("wait", "watch") for one in seen[kind] for second in one.latencies)
    return {
        "clients": {kind: len(found) for kind, found in seen.items()},
        "seconds": spans,
        "server_by_engine": {name: round(span["server"] / span["engine"], 4) for name, span in spans.items()},
        "looks": len(looks),
        "look_seconds": {
            "median": round(statistics.median(looks), 3),
            "99 %": round(looks[int(0.99 * len(looks))], 3),
            "slowest": round(looks[-1], 3),
        },
        "events": {"told": max(one.num for one in seen["listen"]), "missed": sum(one.num_missed for one in seen["listen"])},
        "longest_lag_seconds": round(max(max(one.latencies, default=0.0) for one in seen["listen"]), 2),
        "fewest_looks": {kind: min(one.num for one in seen[kind]) for kind in ("wait", "watch")},
        "errors": [error for found in seen.values() for one in found for error in one.errors][:5],
        "before": before,
        "after": after,
    }


def broken_promises(found: dict[str, Any]) -> list[str]:
    """In words."""
    said = list(found["errors"])
    if (share := found["server_by_engine"]["with clients"]) > MOST_OF_ENGINE:
        said.append(f"the server took {share:.1%} of the engine's processor time")
    for what, seconds in (("look", found["look_seconds"]["slowest"]), ("listener's event", found["longest_lag_seconds"])):
        if seconds > MOST_SECONDS:
            said.append(f"a {what} took {seconds:.1f} s")
    if found["events"]["missed"]:
        said.append(f"{found['events']['missed']} events did not reach a listener")
    for name, most in (("megabytes", 15), ("threads", 2), ("descriptors", 8)):
        if found["after"][name] > found["before"][name] + most:
            said.append(f"{name}: {found['before'][name]} before, {found['after'][name]} after")
    return said


def main(arguments: list[str] | None = None) -> int:
    """1 where a promise is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    machine = describe_machine()
    found = measure(options.clients, options.seconds)
    broken = broken_promises(found)
    document = {"measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine, **found, "broken": broken}
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=2))
    return int(bool(broken))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).parents[1]))
    sys.exit(main())
