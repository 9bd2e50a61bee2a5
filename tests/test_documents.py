"""What README and docs say can be done: every command is parsed by the real command line, every setting exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli.main import app
from orchestrator.settings.compose import compose

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")])
COMPOSED = {("text-to-3d",), ("images",), ("submit", "text-to-3d"), ("submit", "images"), ("settings",)}


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every line of a code block, or of a script's docstring, that calls dreamkiln."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        blocks = re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if page.suffix == ".md" else [text]
        for line in re.sub(r"\\\n\s*", " ", "\n".join(blocks)).splitlines():
            for part in re.split(r"[;|]\s|&&", line.partition("  #")[0]):
                words = part.strip()
                words = re.sub(r"^(\$ |([A-Z_]+=\S+ )+)", "", words)
                if re.match(r"dreamkiln [a-z-]", words) and "…" not in words and "─" not in words:
                    yield page.name, words


def parse(words: list[str]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The verb and what it was given. Raises click's UsageError as the command line does."""
    command: Any = typer.main.get_command(app)
    context, path = command.make_context("dreamkiln", words), ()
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context, path = command.make_context(name, rest, parent=context), (*path, name)
    return path, context.params


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_the_command_line_understands(page: str, command: str):
    words = [word for word in shlex.split(command.replace("N]", "")) if word != "..."]
    path, given = parse(words[1:])
    if path in COMPOSED:
        compose([word for word in given.get("overrides") or () if "=" in word and ".py:" not in word])


def test_every_page_is_read_and_linked():
    assert len(set(commands())) > 60
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f": {page.name}" not in navigation] == []
    index = (ROOT / "README.md").read_text(encoding="utf-8")
    unlinked = {page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in index}
    assert unlinked <= {"index.md", "reference.md"}


def test_every_public_name_is_on_the_page_of_names():
    import dreamkiln

    listed = re.findall(r"^::: \S+\.(\w+)$", (ROOT / "docs/reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == [name for name in dreamkiln.__all__ if name != "Event"]
