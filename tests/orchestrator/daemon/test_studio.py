"""The built page: whole, small, of these sources, and served with what keeps it at home."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from orchestrator.daemon.http.page import STUDIO
from tests.orchestrator.daemon.test_api_guard import Api, api  # noqa: F401 - a fixture

SOURCES = Path(__file__).parents[3] / "studio"
NAMES = ("index.html", "package-lock.json", "package.json", "tsconfig.json", "vite.config.js")


def digest() -> str:
    """As studio/digest.mjs computes it."""
    files = [*NAMES, *(str(path.relative_to(SOURCES)) for folder in ("public", "src") for path in (SOURCES / folder).iterdir())]
    found = hashlib.sha256()
    for name in sorted(files):
        found.update(name.encode() + b"\0" + (SOURCES / name).read_bytes() + b"\0")
    return found.hexdigest()


def test_the_built_page_is_of_these_sources_and_under_two_megabytes():
    assert (STUDIO / "sources.sha256").read_text().strip() == digest(), "run 'npm ci && npm run build' in studio/"
    assert sum(path.stat().st_size for path in STUDIO.rglob("*")) < 2_000_000


def test_the_page_and_its_files_come_from_here(api: Api):  # noqa: F811
    status, page, got = api("nobody", "GET", "/")
    assert (
        status == 200 and got["content-type"].startswith("text/html") and "default-src 'self'" in got["content-security-policy"]
    )
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.decode())
    assert len(linked) >= 3
    for path in linked:
        status, _, got = api("nobody", "GET", path)
        assert status == 200 and path.startswith("/"), path


@pytest.mark.parametrize("kind", ["*.js", "*.css", "*.html"])
def test_nothing_in_it_is_fetched_from_another_host(kind: str):
    for path in STUDIO.rglob(kind):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"""(?:src|href|url|import|fetch)\s*[=(]\s*["'`]?https?://""", text), path
