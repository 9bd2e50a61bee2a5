"""Lists the benchmarks and runs their short versions: `python -m benchmarks.run [NAME ...] [--list]`.

Each is a script of its own with more options: `python -m benchmarks.NAME --help`.
"""

from __future__ import annotations

import argparse
import importlib
import sys

QUICK: dict[str, tuple[str, ...]] = {
    "batch_plumbing": ("--rows", "20000", "--runtime", "inline", "--out", "runs/benchmarks/batch_plumbing.json"),
    "command_times": ("--only", "help", "images", "draft", "--repeats", "1"),
    "prior_grid": ("--kinds", "8", "--out", "runs/benchmarks/prior_grid"),
    "engine": ("--repeats", "2", "--out", "runs/benchmarks/engine.json"),
    "mixed_load": ("--rounds", "1", "--out", "runs/benchmarks/mixed_load.json"),
    "service_latency": ("--rounds", "30", "--out", "runs/benchmarks/service_latency.json"),
    "queue": ("--jobs", "100", "--requests", "2", "--out", "runs/benchmarks/queue.json"),
    "faults": ("--moments", "1", "--faults", "job", "--out", "runs/benchmarks/faults.json"),
    "sigkills": ("--kills", "3"),
    "ledger": ("--num-rows", "100000"),
    "versus_diffusers": ("--only", "toybox", "--repeats", "3", "--out", "runs/benchmarks/versus_diffusers.json"),
    "cross_attention": ("--repeats", "4"),
    "adapters": ("--only", "rows", "--rounds", "1", "--steps", "2", "--out", "runs/benchmarks/adapters.json"),
    "prior_opinion": ("--first", "2", "--out", "runs/benchmarks/prior_opinion.json"),
    "mutations": ("--only", "analog_bits"),
    "code_lines": (),
    "gallery": ("--preset", "draft", "--first", "2", "--docs", "runs/benchmarks/gallery"),
}
"""Short name -> the arguments of its short version; none of them touches docs/."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the named benchmarks, or all of them, one after another; returns the worst exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"among {', '.join(QUICK)}; all by default")
    parser.add_argument("--list", action="store_true", help="only say what there is")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.names) - set(QUICK)):
        parser.error(f"there is no benchmark {unknown[0]!r}; choose among {', '.join(QUICK)}")
    worst = 0
    for name in options.names or QUICK:
        module = importlib.import_module(f"benchmarks.{name}")
        if options.list:
            print(f"{name:<16} {(module.__doc__ or '').splitlines()[0]}")
            continue
        print(f"== python -m benchmarks.{name} {' '.join(QUICK[name])}", flush=True)
        worst = max(worst, module.main(list(QUICK[name])))
    return worst


if __name__ == "__main__":
    sys.exit(main())
