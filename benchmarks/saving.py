"""Where figures go: one file a benchmark, one entry for each choice of settings."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def save_run(path: Path, machine: Mapping[str, Any], settings: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Adds the figures to the runs in the file, in the place of those with the same settings; prints the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    runs = [run for run in runs if run["settings"] != json.loads(json.dumps(settings))]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    runs.append({"measured": now, "machine": machine, "settings": settings, **figures})
    path.write_text(json.dumps({"runs": runs}, indent=2) + "\n", encoding="utf-8")
    print(f"\n{path}")
