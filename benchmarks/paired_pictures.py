"""Are single pictures of one prior as good as those of another? The same held-out prompts and seeds, and one judge.

    python -m benchmarks.paired_pictures BEFORE [AFTER] [--num-prompts 256]

The difference of R@1 and of the right kind, in points, with the bootstrap interval over the prompts (in pairs).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.machine import describe_machine, one_line
from benchmarks.saving import save_run
from orchestrator.lab.evaluation.captions import kind_of
from orchestrator.lab.evaluation.images import evaluate_images
from orchestrator.lab.evaluation.r_precision import interval_of_mean
from orchestrator.lab.evaluation.settings import EvaluationSettings

RESULTS = Path(__file__).parent / "results" / "paired_pictures.json"


def main(arguments: list[str] | None = None) -> int:
    """Prints both shares and the intervals of their differences, and saves them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a prior's folder; its judge scores both")
    parser.add_argument("after", nargs="?", default="toybox")
    parser.add_argument("--num-prompts", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    judge = str(Path(options.before) / "judge")
    reports = [
        evaluate_images((), EvaluationSettings(prior=prior, judge=judge, num_prompts=options.num_prompts))[0]
        for prior in (options.before, options.after)
    ]
    right = [
        {
            "r_at_1": [float(item.judged.rank == 1) for item in report.items],
            "right_kind": [float(kind_of(item.judged.taken_for) == kind_of(item.prompt)) for item in report.items],
        }
        for report in reports
    ]
    figures = {}
    for name in right[0]:
        before, after = (column[name] for column in right)
        low, high = interval_of_mean([100 * (b - a) for a, b in zip(before, after, strict=True)])
        figures[name] = {
            "before": round(sum(before) / len(before), 4),
            "after": round(sum(after) / len(after), 4),
            "difference_in_points": [low, high],
        }
        print(f"{name}: {figures[name]}")
    hashes = [report.setting.prior_hash for report in reports]
    machine = describe_machine()
    print(one_line(machine))
    save_run(options.out, machine, {"before": hashes[0], "after": hashes[1], "num_prompts": options.num_prompts}, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
