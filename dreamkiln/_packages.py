"""The check that this product's packages, some of which have common names, are this product's."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["OURS", "check_packages"]

OURS = ("diffusion", "jobs", "nerf3d", "orchestrator")


def check_packages() -> None:
    """Compare where each of our packages would be imported from with where this one lies; imports none of them.

    Raises:
        ImportError: another distribution, or a folder beside the program, has a package of the same name.
    """
    home = Path(__file__).resolve().parents[1]
    for name in OURS:
        spec = importlib.util.find_spec(name)
        found = None if spec is None else Path(spec.origin or next(iter(spec.submodule_search_locations or ()), "")).resolve()
        if found is None:
            raise ImportError(f"DreamKiln's package {name!r} is missing beside {home / 'dreamkiln'}; install dreamkiln again.")
        if home not in found.parents:
            raise ImportError(
                f"The package {name!r} comes from {found}{_owner(name)}, but DreamKiln has one of that name at {home / name}; "
                "install DreamKiln in an environment of its own, or rename what stands in the way."
            )


def _owner(name: str) -> str:
    """In words, which other distributions bring a package of this name."""
    from importlib.metadata import packages_distributions  # slow to import, and needed only now

    others = sorted(set(packages_distributions().get(name, ())) - {"dreamkiln"})
    return f", of {' and '.join(others)}," if others else ""
