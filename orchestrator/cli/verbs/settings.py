"""`dreamkiln settings`: what can be set, to which values, and what it means."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from jobs.errors import InputError
from orchestrator.cli import common

NAME = "settings"
HELP = "List what GROUP.KEY=VALUE can set, with the values that hold now; with a group's name also what each means."
EPILOG = "Such as: dreamkiln settings --preset draft; dreamkiln settings fit; dreamkiln settings field field=hash_grid"


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="GROUP|GROUP.KEY=VALUE", help="Groups to show; settings to apply first.", show_default=False),
    ] = None,
    preset: common.Preset = None,
    prior: common.PriorName = None,
    json: common.Json = False,
) -> None:
    """A line for each setting, ready to be copied into a command."""
    import inspect

    from jobs.codec import near_matches
    from orchestrator.settings.compose import choices, compose

    given = arguments or []
    settings = compose([item for item in given if "=" in item], options={"preset": preset, "prior.source": prior})
    tables = settings.tables()
    chosen = [item for item in given if "=" not in item]
    for group in chosen:
        if group not in tables:
            raise InputError(f"There is no group {group!r}{near_matches(group, tables)}; groups: {', '.join(tables)}.")
    shown = {group: tables[group] for group in chosen or tables}
    if json:
        values_by_group = {group: values for group, (_, values) in shown.items()}
        print(json_module.dumps({"ok": True, "settings": values_by_group, "origins": dict(settings.origins)}))
        return
    for group, (explained_by, values) in shown.items():
        for name, value in values.items():
            origin = settings.origins.get(f"{group}.{name}")
            print(f"{group}.{name}={_as_setting(value)}" + (f"  # {origin}" if origin else ""))
        if chosen:
            print(f"\n{inspect.getdoc(explained_by)}\n")
    if not chosen:
        print("\nChosen by name: " + "; ".join(f"{group}={'|'.join(names)}" for group, names in choices().items()))


def _as_setting(value: Any) -> str:
    """As Hydra reads it: JSON without spaces and without quotes around names."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{_as_setting(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{','.join(map(_as_setting, value))}]"
    return value if isinstance(value, str) else json_module.dumps(value)
