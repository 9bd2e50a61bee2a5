"""Rows per second and memory of a batch image job whose prior draws nothing: what the plumbing alone can do.

The null prior answers with one constant picture, so what is left is reading the table, cutting shards, encoding and writing
pictures, markers and the report. Memory is the largest that any one process of the job ever held. The figures go to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import describe_machine, one_line
from diffusion.engine import BatchProfile
from diffusion.schedule import NoiseSchedule
from jobs.prior_client import GenerateRequest
from orchestrator.prior.local import LocalPrior, Pending

RESULTS = Path(__file__).parent / "results" / "batch_plumbing.json"
IMAGE_SIZE = 64
LEAST_ROWS_PER_SECOND = 2000
MOST_BYTES = 1e9
SECONDS_BETWEEN_SAMPLES = 0.5


class NullModel:
    """What a prior's engine needs to start; it is never asked for anything."""

    name = "null"
    weights_hash = "0" * 64
    image_size = IMAGE_SIZE
    latent_shape = (4, IMAGE_SIZE // 8, IMAGE_SIZE // 8)
    device = torch.device("cpu")
    schedule = NoiseSchedule()

    def unknown_words(self, prompt: str) -> list[str]:
        """It knows every word."""
        return []

    def condition(self, prompts: Sequence[str], negative_prompts: Sequence[str] | None = None) -> Any:
        """Never asked."""
        raise AssertionError

    def has_condition(self, prompt: str, negative_prompt: str = "") -> bool:
        """Never asked."""
        raise AssertionError

    def predict(self, x_t: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> Any:
        """Never asked."""
        raise AssertionError

    def answer(self, request: Any) -> Any:
        """Never asked."""
        raise AssertionError


class NullPrior(LocalPrior):
    """Its every picture is the same grey, and there at once."""

    def __init__(self, source: str, device: str) -> None:
        super().__init__(NullModel())
        self._picture = np.full((1, IMAGE_SIZE, IMAGE_SIZE, 3), 127, np.uint8)

    def measure(self) -> BatchProfile:
        """There is nothing to measure; asked when two requests first meet."""
        return BatchProfile({})

    def begin_generate(self, request: GenerateRequest, *, job: str = "", preview_every: int = 0) -> Pending:
        """uint8 images (N, 64, 64, 3)."""
        pictures = np.repeat(self._picture, len(request.prompts), axis=0)
        return Pending((), lambda results: pictures)


class MemoryWatch:
    """Samples the resident memory of this process and of everything below it until the block ends.

    most: process name -> the largest number of bytes that one of them held. over_time: (seconds, sum of all, largest one).
    """

    def __init__(self) -> None:
        self.most: dict[str, int] = {}
        self.over_time: list[tuple[float, int, int]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        begin, me = time.monotonic(), psutil.Process()
        while not self._ended.wait(SECONDS_BETWEEN_SAMPLES):
            now: list[int] = []
            for process in (me, *me.children(recursive=True)):
                try:
                    name, size = process.name(), process.memory_info().rss
                except psutil.Error:
                    continue
                name = "command" if process.pid == me.pid else name.split(":")[-1].split(".")[0]
                self.most[name] = max(size, self.most.get(name, 0))
                now.append(size)
            self.over_time.append((time.monotonic() - begin, sum(now), max(now)))


def write_table(path: Path, num_rows: int) -> None:
    """A csv table with a prompt, two overrides and a column to keep."""
    with path.open("w", encoding="utf-8") as file:
        file.write("prompt,seed,num_steps,id\n")
        file.writelines(f"a red mushroom with a white stem number {row},{row},,item-{row:09d}\n" for row in range(num_rows))


def measure(
    num_rows: int, *, output_format: str, shard_size: int, chunk_size: int, runtime: str, num_workers: int, folder: Path
) -> dict[str, Any]:
    """The whole job once, its own check included: every row has a picture."""
    from jobs.batch_images import BatchImagesSpec
    from orchestrator.batch.perform import perform_batch
    from orchestrator.batch.tables.source import TableSource
    from orchestrator.settings.groups import RuntimeSettings

    table = folder / "prompts.csv"
    write_table(table, num_rows)
    begin = time.monotonic()
    with MemoryWatch() as memory:
        source = TableSource.find(str(table))
        spec = BatchImagesSpec(table=source.scan(), shard_size=shard_size, chunk_size=chunk_size, output_format=output_format)
        scanned = time.monotonic()
        outcome = perform_batch(
            spec,
            source,
            out=str(folder / "out"),
            runtime=RuntimeSettings(kind=runtime, num_threads=1, device="cpu"),  # type: ignore[arg-type]
            num_workers=num_workers,
            load_prior=NullPrior,  # type: ignore[arg-type]
        )
        drawn = time.monotonic()
        again = perform_batch(spec, source, out=str(folder / "out"))
        resumed = time.monotonic()
    if outcome.report["num_succeeded"] != num_rows or again.did != "nothing to do":
        raise RuntimeError(f"the job ended with {outcome.report}; {num_rows} pictures were expected")
    third = len(memory.over_time) // 3
    return {
        "rows": num_rows,
        "output_format": output_format,
        "shard_size": shard_size,
        "chunk_size": chunk_size,
        "runtime": runtime,
        "workers": num_workers if runtime == "ray" else 1,
        "rows_per_second": round(num_rows / outcome.report["draw_seconds"], 1),
        "seconds": {
            "scan": round(scanned - begin, 2),
            "draw": outcome.report["draw_seconds"],
            "all": round(drawn - begin, 2),
            "repeat": round(resumed - drawn, 2),
        },
        "cpu_seconds": outcome.report["cpu_seconds"],
        "most_bytes": dict(sorted(memory.most.items(), key=lambda entry: -entry[1])),
        "largest_process_by_third_of_the_time": [
            max((size for _, _, size in part), default=0)
            for part in (memory.over_time[:third], memory.over_time[third : 2 * third], memory.over_time[2 * third :])
        ],
    }


def main(arguments: list[str] | None = None) -> int:
    """1 if a process held more than a gigabyte; a broken promise of speed is only shown, the machine may be another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--output-format", default="webdataset", choices=("png", "webdataset", "parquet"))
    parser.add_argument("--shard-size", type=int, default=1000)
    parser.add_argument("--chunk-size", type=int, default=32, help="rows per request to the prior")
    parser.add_argument("--runtime", default="ray", choices=("ray", "inline"))
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the files go while it runs; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    machine = describe_machine()
    with tempfile.TemporaryDirectory(prefix="dreamkiln-bench-", dir=options.folder) as folder:
        figures = measure(
            options.rows,
            output_format=options.output_format,
            shard_size=options.shard_size,
            chunk_size=options.chunk_size,
            runtime=options.runtime,
            num_workers=options.num_workers,
            folder=Path(folder),
        )
    print(one_line(machine))
    for name, value in figures.items():
        print(f"{name:<38} {value}")
    promise = f"at least {LEAST_ROWS_PER_SECOND:,} rows/s and at most {MOST_BYTES / 1e9:g} GB a process"
    print(f"{'promise':<38} {promise}")
    save(options.out, machine, figures)
    print(options.out)
    return int(max(figures["most_bytes"].values(), default=0) > MOST_BYTES)


def save(path: Path, machine: dict[str, Any], figures: dict[str, Any]) -> None:
    """Replaces the entry of the same size, format and runtime."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    same = ("rows", "output_format", "runtime", "workers", "shard_size", "chunk_size")
    entries = [entry for entry in entries if any(entry.get(name) != figures[name] for name in same)]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    document = {"runs": [*entries, {**figures, "measured": now, "machine": machine}]}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
