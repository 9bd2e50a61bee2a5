"""What joining small pieces to the body brings: finished runs cut with and without it, against the true objects.

    python -m benchmarks.small_pieces RUN…

Of the runs whose mesh changes, the silhouette and volume IoU of both meshes with the true object of the nearest proportions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.machine import describe_machine, one_line
from benchmarks.saving import save_run
from jobs.errors import DreamKilnError
from jobs.mesh_stage import export_mesh
from jobs.opinion import Opinion
from nerf3d.mesh import Mesh, MeshConfig
from orchestrator.host.threads import use_threads
from orchestrator.lab.evaluation.geometry import compare, surface_of
from orchestrator.lab.evaluation.proportions import nearest_proportions
from orchestrator.run.export import FinishedRun

RESULTS = Path(__file__).parent / "results" / "small_pieces.json"


def cuts(folder: Path) -> Iterator[Mesh]:
    """Without and with small pieces."""
    run = FinishedRun.read(folder)
    opinion = Opinion.from_metrics(run.manifest.get("metrics", {}))
    for gap in (0.0, MeshConfig().bridge_gap):
        mesh = replace(run.spec.mesh, bridge_gap=gap, texture_size=0)
        steps = export_mesh(replace(run.spec, mesh=mesh), run.checkpoint, opinion=opinion)
        while True:
            try:
                next(steps)
            except StopIteration as finished:
                yield finished.value.mesh
                break


def main(arguments: list[str] | None = None) -> int:
    """Prints a line for each mesh that changes, and the means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    use_threads(1)
    rows: dict[str, dict[str, float]] = {}
    try:
        for folder in options.runs:
            without, joined = cuts(folder)
            if np.array_equal(without.vertices, joined.vertices):
                continue
            prompt = FinishedRun.read(folder).spec.prompt
            found = [compare(mesh, surface_of(nearest_proportions(mesh, prompt))) for mesh in (without, joined)]
            rows[prompt] = {
                "silhouette_without": round(found[0].silhouette_iou, 3),
                "silhouette": round(found[1].silhouette_iou, 3),
                "volume_without": round(found[0].volumetric_iou, 3),
                "volume": round(found[1].volumetric_iou, 3),
            }
            print(prompt, rows[prompt], flush=True)
    except DreamKilnError as error:
        print(f"small_pieces: {error}", file=sys.stderr)
        return error.exit_code
    gains = [row["silhouette"] - row["silhouette_without"] for row in rows.values()]
    summary = {
        "meshes": len(options.runs),
        "changed": len(rows),
        "mean_gain": round(statistics.mean(gains), 3) if gains else 0.0,
    }
    print(summary)
    machine = describe_machine()
    print(one_line(machine))
    save_run(RESULTS, machine, {"meshes": len(options.runs)}, {**summary, "prompts": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
