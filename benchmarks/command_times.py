"""How long the commands take from the shell, start-up included: sentence to mesh.glb, and 16 images.

Every command runs in a process of its own with a fresh output folder. The figures go to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, one_line

RESULTS = Path(__file__).parent / "results"
PROMPT = "a red mushroom with a white stem"


@dataclass(frozen=True)
class Command:
    """arguments of `dreamkiln`; "OUT" stands for a fresh folder. limit_seconds: what we promise on two cores.

    leaves: a file that must be in OUT afterwards.
    """

    arguments: tuple[str, ...]
    limit_seconds: float
    leaves: str = ""


COMMANDS: dict[str, Command] = {
    "help": Command(("--help",), 1),
    "images": Command(("images", PROMPT, "--num-images", "16", "--out", "OUT"), 20, "grid.png"),
    "draft": Command(("text-to-3d", PROMPT, "--preset", "draft", "--out", "OUT"), 75, "mesh.glb"),
    "default": Command(("text-to-3d", PROMPT, "--out", "OUT"), 180, "mesh.glb"),
}


@dataclass
class Measured:
    """seconds: wall clock, one per repeat. stages: of the last repeat, as its manifest says. error: why there are none."""

    command: str
    limit_seconds: float
    seconds: list[float] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    error: str = ""


def measure(command: Command, *, repeats: int, extra: list[str]) -> Measured:
    """Runs it `repeats` times; stops at the first failure."""
    program = shutil.which("dreamkiln", path=str(Path(sys.executable).parent))
    start = [program] if program else [sys.executable, "-m", "orchestrator.cli.main"]
    result = Measured(" ".join(["dreamkiln", *command.arguments, *(extra if command.leaves else [])]), command.limit_seconds)
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="dreamkiln-bench-") as folder:
            out = Path(folder) / "run"
            arguments = [str(out) if argument == "OUT" else argument for argument in command.arguments]
            begin = time.perf_counter()
            done = subprocess.run(
                [*start, *arguments, *(extra if command.leaves else [])],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            seconds = time.perf_counter() - begin
            if done.returncode or (command.leaves and not (out / command.leaves).exists()):
                result.error = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
                return result
            result.seconds.append(round(seconds, 2))
            if command.leaves:
                result.stages = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["timings"]
    return result


def save(path: Path, machine: dict[str, Any], measured: dict[str, Measured]) -> None:
    """Replaces the entries that were measured now; entries of another machine are dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = {}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if _same_machine(before["machine"], machine):
            entries = before["commands"]
    entries |= {name: asdict(result) for name, result in measured.items()}
    document = {"measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine, "commands": entries}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def show(machine: dict[str, Any], measured: dict[str, Measured]) -> None:
    """The table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table("command", title=one_line(machine), title_justify="left")
    for name in ("median s", "all", "promise", "stages"):
        table.add_column(name, justify="right" if name != "stages" else "left")
    for result in measured.values():
        if result.error:
            table.add_row(result.command, "failed", "", f"{result.limit_seconds:g}", result.error, style="red")
            continue
        median = statistics.median(result.seconds)
        stages = "  ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.stages.items())
        style = None if median <= result.limit_seconds else "red"
        every = " ".join(f"{seconds:.1f}" for seconds in result.seconds)
        table.add_row(result.command, f"{median:.1f}", every, f"{result.limit_seconds:g}", stages, style=style)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def main(arguments: list[str] | None = None) -> int:
    """1 if a command failed; a broken promise is only shown, because the machine may be another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "command_times.json")
    parser.add_argument("extra", nargs="*", metavar="OPTION", help="after --: for every job, such as -- --runtime inline")
    options = parser.parse_args(arguments)
    machine = describe_machine()
    measured = {}
    for name in options.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        measured[name] = measure(COMMANDS[name], repeats=max(1, options.repeats), extra=options.extra)
    show(machine, measured)
    save(options.out, machine, measured)
    print(options.out)
    return int(any(result.error for result in measured.values()))


def _same_machine(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return all(before.get(key) == now[key] for key in ("processor", "cores", "gpu"))


if __name__ == "__main__":
    sys.exit(main())
