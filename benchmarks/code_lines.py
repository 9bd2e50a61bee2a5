"""Code lines of the packages, without docstrings, comments and blank lines; with --since, what each commit added.

python -m benchmarks.code_lines [--since REVISION]
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("dreamkiln", "orchestrator", "jobs", "diffusion", "nerf3d")
_IGNORED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(source: str) -> int:
    """Lines that hold a token of code."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _IGNORED:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def added_by(commit: str) -> int:
    """Code lines of the packages that a commit added, less those that it took away."""
    names = _git("diff", "--name-only", "--no-renames", f"{commit}^", commit).split()
    ours = [name for name in names if name.endswith(".py") and name.split("/")[0] in PACKAGES]
    return sum(code_lines(_git("show", f"{commit}:{name}")) - code_lines(_git("show", f"{commit}^:{name}")) for name in ours)


def _git(*arguments: str) -> str:
    """What git says; nothing where it says no, as for a file that a commit does not have."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--since", help="a commit; what came after it is listed commit by commit")
    options = parser.parse_args(arguments)
    counts = {name: sum(code_lines(file.read_text()) for file in (ROOT / name).rglob("*.py")) for name in PACKAGES}
    for name, count in {**counts, "all": sum(counts.values())}.items():
        print(f"{name:<14}{count:>8,}")
    if options.since:
        total = 0
        for commit in _git("rev-list", "--reverse", f"{options.since}..HEAD").split():
            total += (added := added_by(commit))
            print(f"{added:+7,}  {_git('log', '-1', '--format=%h %s', commit).strip()[:100]}")
        print(f"{total:+7,}  in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
