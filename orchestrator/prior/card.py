"""What is known of a prior before it is loaded, for people who choose one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusion.checkpoints.defaults import defaults_of
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.source import Source

__all__ = ["prior_card"]

TOYBOX = Path(__file__).parents[2] / "diffusion" / "toybox_prior"
FILE = "dreamkiln.json"


def prior_card(source: str) -> dict[str, Any]:
    """Its name, the size of its pictures, the words it knows (empty: free text) and the values it is drawn with."""
    card: dict[str, Any] = {"source": source, "name": source, "image_size": None, "vocabulary": [], "defaults": {}}
    try:
        parsed = Source.parse(source)
        if source != "toybox":
            card["defaults"] = dict(defaults_of(parsed).values)
        folder = TOYBOX if parsed.location == "toybox" else Path(parsed.location).expanduser()
        own = json.loads((folder / FILE).read_text(encoding="utf-8"))
        card |= {name: own[name] for name in ("name", "image_size", "vocabulary") if name in own}
    except (PriorError, OSError, ValueError):
        pass
    return card
