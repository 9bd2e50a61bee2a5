"""The HTTP API against its own schema: schemathesis with every check, bodies and all, finds nothing or says what.

    python -m benchmarks.api_contract --max-examples 20
    python -m benchmarks.api_contract --url http://kiln:8700 --token TOKEN

Without --url it asks a server of its own over a real ledger, with finished jobs, one at work and one that failed; its workers
end every job at once with files of the right names, because the calls are judged here and not the pictures.

Three things are arranged in requests that follow the schema, and in nothing that violates it: settings that are judged together
with others keep their defaults (`orchestrator.daemon.http.meanings.JOINT`: no schema of one value can say when two of them
agree), OpenAI's `size` is the prior's, and a form's parts are what they are called: the prompt, which schemathesis may leave
empty whatever its schema says, has words, and picture and mask are of one size and not black. `/v1/shutdown` is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.ledger import JobRecord
from orchestrator.daemon.http.tokens import TokenBook
from orchestrator.daemon.reports import Report, Succeeded
from orchestrator.scheduling import PriorView

ROOT = Path(__file__).parents[1]
CONFIGURATION = """
[checks]
max_response_time = 600  # calls that wait for pictures take as long as those

[[operations]]
include-path-regex = "/events$"
parameters = { "query.seconds" = 0.2 }
"""
DESTRUCTIVE = ("--include-path=/v1/prune", "--include-method=DELETE")
MAX_FILES = 16
FORM = "multipart/form-data"


def picture() -> bytes:
    """A small PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 40, 40)).save(buffer, "PNG")
    return buffer.getvalue()


class InstantWorker:
    """Ends its job at the first look, with files of the right names."""

    def __init__(self, job: JobRecord) -> None:
        names = [f"mesh.{name}" for name in job.spec.get("formats", ())]
        names += [f"{index:09d}.png" for index in range(min(job.spec.get("num_images", 0), MAX_FILES))]
        out, data = Path(job.out), picture()
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            (out / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        self._reports: list[Report] = [Succeeded(metrics={}, artefacts=dict.fromkeys(names, (len(data), digest)))]

    def poll(self) -> list[Report]:
        """That it is done."""
        reports, self._reports = self._reports, []
        return reports

    def stop(self, *, at_checkpoint: bool) -> None: ...

    def kill(self) -> None: ...

    def set_weight(self, weight: float) -> None: ...


class InstantWorkers:
    """Makes them."""

    def start(self, job: JobRecord) -> InstantWorker:
        """One worker."""
        return InstantWorker(job)

    def priors(self) -> list[PriorView]:
        """None."""
        return []

    def evict(self, source: str) -> None: ...


@contextlib.contextmanager
def served(state: Path) -> Iterator[tuple[str, str]]:
    """(URL, a token of scope admin) of a server of our own."""
    from benchmarks.studio import Scene

    scene = Scene(state, workers=InstantWorkers())
    scene.fill()
    is_over = threading.Event()

    def turn() -> None:
        while not is_over.is_set():
            is_woken = scene.controller.wake.wait(0.2)
            scene.controller.wake.clear()
            scene.controller.tick(is_woken=is_woken)

    thread = threading.Thread(target=turn, daemon=True)
    thread.start()
    try:
        yield scene.server.url, TokenBook(scene.folder).create("contract", scope="admin")
    finally:
        is_over.set()
        thread.join(20)
        scene.close()


def examined(url: str, token: str, *, max_examples: int, phases: str, folder: Path, others: tuple[str, ...] = ()) -> int:
    """Run schemathesis, which prints what it finds; its exit code, 0 for nothing."""
    configuration = folder / "schemathesis.toml"
    configuration.write_text(CONFIGURATION)
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=600) as schema:  # made at the first call
        schema.read()
    command = [sys.executable, "-m", "schemathesis.cli", f"--config-file={configuration}", "run", f"{url}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {token}", "--checks=all", f"--phases={phases}", "--seed=1"]
    command += [f"--max-examples={max_examples}", "--continue-on-failure", "--suppress-health-check=all"]
    command += ["--request-timeout=60", "--exclude-path=/v1/shutdown", "--no-color", *others]
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "benchmarks.api_contract", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def main(arguments: list[str] | None = None) -> int:
    """0 where nothing is found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--token", default=os.environ.get("DREAMKILN_TOKEN", ""))
    parser.add_argument("--max-examples", type=int, default=20)
    parser.add_argument("--phases", default="examples,coverage,fuzzing")
    parser.add_argument("others", nargs="*", help="for schemathesis, after --")
    given = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        url, token = (given.url, given.token) if given.url else stack.enter_context(served(folder / "state"))
        often: dict[str, Any] = {"max_examples": given.max_examples, "phases": given.phases, "folder": folder}
        if given.others:
            return examined(url, token, **often, others=tuple(given.others))
        gentle = ("--exclude-path=/v1/prune", "--exclude-method=DELETE")
        codes = [examined(url, token, **often, others=gentle)]
        codes += [examined(url, token, **often, others=(one,)) for one in DESTRUCTIVE]
    return max(codes)


def _arrange() -> None:
    """What schemathesis itself loads this module for."""
    import schemathesis
    from hypothesis import strategies

    from orchestrator.daemon.http.meanings import JOINT

    schemathesis.openapi.media_type("image/png", strategies.just(picture()))

    @schemathesis.hook
    def before_call(context: Any, case: Any, kwargs: Any) -> None:
        is_valid = case.meta is not None and case.meta.generation.mode.is_positive
        is_valid = is_valid and all(part.mode.is_positive for part in case.meta.components.values())
        if is_valid and isinstance(bytes_ := getattr(case.body, "data", None), bytes):
            kwargs["data"] = bytes_  # which schemathesis writes as an empty text where the type is text
        if is_valid and isinstance(case.body, dict):
            settings = case.body.get("settings")
            if isinstance(settings, dict):
                case.body["settings"] = {name: value for name, value in settings.items() if _is_alone(name, value, JOINT)}
            if "size" in case.body and case.media_type != FORM:
                case.body["size"] = "auto"
            if case.media_type == FORM:
                kwargs["files"] = list(_parts(case.body))


def _parts(form: dict[str, Any]) -> Iterator[tuple[str, tuple[str | None, bytes | str, str | None]]]:
    """What is sent of a form: beside its body, because schemathesis calls every edited body with bytes in it a violation."""
    for name, value in form.items():
        if name in ("image", "mask"):
            yield name, (f"{name}.png", picture(), "image/png")
        else:
            text = {"prompt": value or "a blue chair", "size": "auto"}.get(name, value)
            yield name, (None, text if isinstance(text, str) else json.dumps(text), None)


def _is_alone(name: str, value: Any, joint: frozenset[str]) -> bool:
    return name not in joint and not (isinstance(value, dict) and {"begin", "until"} <= set(value))


if os.environ.get("SCHEMATHESIS_HOOKS") == "benchmarks.api_contract":
    _arrange()

if __name__ == "__main__":
    raise SystemExit(main())
