"""What the product imports is what pyproject.toml says that it needs."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("dreamkiln", "diffusion", "nerf3d", "jobs", "orchestrator")


def imported_modules() -> set[str]:
    """Top-level names of everything that the packages import, inside functions too."""
    found: set[str] = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - set(PACKAGES)


def names(requirements: list[str]) -> set[str]:
    """Distribution names in their normal form, without extras and versions."""
    return {re.split(r"[^\w-]", item)[0].lower().replace("_", "-") for item in requirements}


def test_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = names([*project["dependencies"], *extras["s3"], *extras["usd"]])
    distributions = importlib.metadata.packages_distributions()
    # A distribution of one compiled file, such as xatlas, lists no modules; it bears its module's name.
    needed = {module: names(distributions.get(module, [module])) for module in imported_modules()}
    assert {module: found for module, found in needed.items() if not found & declared} == {}


def test_every_dependency_has_a_tested_pin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = names((ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines())
    extras = project["optional-dependencies"].values()
    assert names([*project["dependencies"], *(item for extra in extras for item in extra)]) - pinned == set()
