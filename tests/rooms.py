"""The rooms of `orchestrator/` and the imports between them, read from the source; `make graph` prints them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("dreamkiln", "diffusion", "nerf3d", "jobs", "orchestrator")


def modules(package: str) -> dict[str, Path]:
    """Dotted names of a package's modules; a folder is named by its `__init__.py`."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(package: str) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it imports, inside functions too."""
    files = modules(package)
    return {name: set(_imported(file, files)) - {name} for name, file in files.items()}


def _imported(file: Path, known: dict[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from (name for name in (inner if inner in known else node.module,) if name in known)


def missing_imports() -> set[tuple[str, str]]:
    """(module, what it imports) for modules of ours that do not exist; a type checker takes them for packages without types."""
    known = {name for package in PACKAGES for name in modules(package)}
    found = set()
    for package in PACKAGES:
        for name, file in modules(package).items():
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                wanted = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                wanted += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
                found |= {(name, other) for other in wanted if other.partition(".")[0] in PACKAGES and other not in known}
    return found


def room(module: str) -> str:
    """The folder directly inside `orchestrator/` that holds a module, or "" for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms of which the first imports the second."""
    pairs = {(room(module), room(other)) for module, others in imports("orchestrator").items() for other in others}
    return {(one, other) for one, other in pairs if one != other}


def crowded(package: str, most: int) -> dict[str, int]:
    """Folders of a package with more modules than `most`, `__init__.py` not counted."""
    folders = {file.parent for file in modules(package).values()}
    sizes = {str(folder.relative_to(ROOT)): len(list(folder.glob("[!_]*.py"))) for folder in folders}
    return {folder: size for folder, size in sizes.items() if size > most}


def order(package: str) -> list[str]:
    """The package's modules, each after what it imports.

    Raises:
        graphlib.CycleError: modules that import one another in a circle.
    """
    return list(TopologicalSorter(imports(package)).static_order())


def main() -> None:
    """Print each room with its number of modules and the rooms that it imports."""
    pairs, names = arrows(), sorted({room(module) for module in modules("orchestrator")} - {""})
    for name in names:
        size = sum(room(module) == name and file.name != "__init__.py" for module, file in modules("orchestrator").items())
        print(f"{name:12}{size:4} modules -> {' '.join(sorted(other for one, other in pairs if one == name)) or '-'}")
    print(f"{len(names)} rooms, {len(pairs)} arrows")


if __name__ == "__main__":
    main()
