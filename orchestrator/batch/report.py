"""What a batch job came to: pictures, failures by cause, times, and what they cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.batch_images import BatchImagesSpec
from orchestrator.batch.contact_sheet import ContactSheet
from orchestrator.batch.storage import markers
from orchestrator.batch.storage.stores import Store

__all__ = ["attempt_report", "cost", "cpu_seconds_of_this_command", "describe", "summarise"]


COUNTS = ("num_rows", "num_succeeded", "num_failed", "num_not_kept")


def summarise(store: Store, spec: BatchImagesSpec, *, failures: str) -> dict[str, Any]:
    """Read every marker once, in order; write the dead letters, the grid and the page; return the counts.

    Args:
        failures: the file of the dead letters, which is removed where there are none.
    """
    counts: Counter[str] = Counter()
    causes: Counter[str] = Counter()
    sheet = ContactSheet(store, spec)
    with store.create(failures) as file:
        for shard in range(spec.num_shards):
            marker = markers.read_marker(store, shard)
            counts.update({name: marker[name] for name in COUNTS if name in marker})
            causes.update(failure["cause"] for failure in marker["failures"])
            for failure in marker["failures"]:
                file.write(json.dumps(failure, ensure_ascii=False).encode() + b"\n")
            sheet.add(marker)
    if not causes:
        store.remove([failures])
    by_cause = dict(causes.most_common())
    sheet.write(num_succeeded=counts["num_succeeded"], failures_by_cause=by_cause)
    return {**counts, "failures_by_cause": by_cause}


def attempt_report(*, num_drawn: int, draw_seconds: float, cpu_seconds: float | None, num_gpus: int) -> dict[str, Any]:
    """The figures of one attempt; draw_seconds is wall-clock time from the first shard to the last."""
    return {
        "num_drawn_by_last_attempt": num_drawn,
        "draw_seconds": round(draw_seconds, 3),
        "images_per_second": round(num_drawn / draw_seconds, 3) if draw_seconds and num_drawn else None,
        "cpu_seconds": None if cpu_seconds is None else round(cpu_seconds, 3),
        "gpu_seconds": round(draw_seconds * num_gpus, 3),
    }


def cost(*, price_per_hour: float, seconds: float, attempts: Sequence[Mapping[str, Any]], num_pictures: int) -> dict[str, Any]:
    """What the machine cost during this attempt and those before it that could note their time."""
    hours = (seconds + sum(attempt["seconds"] for attempt in attempts)) / 3600
    return {
        "price_per_hour": price_per_hour,
        "cost": round(hours * price_per_hour, 6),
        "cost_per_image": hours * price_per_hour / num_pictures if num_pictures else None,
    }


def cpu_seconds_of_this_command() -> float | None:
    """Processor time of this process and everything below it on this machine; None where it cannot be known."""
    import psutil

    total = 0.0
    try:
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            times = process.cpu_times()
            total += times.user + times.system
    except psutil.Error:
        return None
    return total


def describe(report: Mapping[str, Any]) -> list[str]:
    """The report in lines for people."""
    lines = [f"{report['num_succeeded']:,} of {report['num_rows']:,} rows have a picture"]
    if report["num_drawn_by_last_attempt"] and report["images_per_second"]:
        rate = f"{report['images_per_second']:,.1f} images/s" if report["images_per_second"] >= 0.1 else "under 0.1 images/s"
        lines.append(f"{report['num_drawn_by_last_attempt']:,} drawn now in {report['draw_seconds']:,.1f} s, {rate}")
    if "num_not_kept" in report:
        lines.append(f"{report['num_not_kept']:,} of them are below --min-clip-score, marked is_kept = false")
    used = []
    if report["cpu_seconds"] is not None:
        used.append(f"{report['cpu_seconds']:,.0f} CPU-seconds")
    if report["gpu_seconds"]:
        used.append(f"{report['gpu_seconds']:,.0f} GPU-seconds")
    if used:
        lines.append(", ".join(used))
    if report.get("cost_per_image") is not None:
        lines.append(f"cost {report['cost']:.4g}, {report['cost_per_image']:.3g} per image")
    lines += [f"{num:,} {'row' if num == 1 else 'rows'} failed: {cause}" for cause, num in report["failures_by_cause"].items()]
    return lines
