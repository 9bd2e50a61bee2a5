"""The workflow, hooks, container and compose file say what Makefile, pyproject.toml and command line really have."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.test_documents import parse

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def loaded(name: str) -> dict:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def recipe(target: str) -> list[str]:
    """The lines of a make target."""
    (lines,) = re.findall(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return lines.split("\n\t")


def test_the_workflow_runs_targets_that_make_has_on_the_versions_that_are_promised():
    (job,) = loaded(".github/workflows/test.yml")["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    targets = [words[1] for words in map(str.split, runs) if words[0] == "make"]
    assert targets == ["test", "docs"] and all(recipe(target) for target in targets)
    promised = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert job["strategy"]["matrix"]["python"] == promised
    assert PROJECT["requires-python"].startswith(f">={promised[0]}")


def test_the_hooks_are_those_of_make_lint():
    (repository,) = loaded(".pre-commit-config.yaml")["repos"]
    hooks = [hook["entry"].replace(" --fix", "") for hook in repository["hooks"]]
    lint = [
        line.strip().replace("$(BIN)", ".venv/bin").removesuffix(" .").removesuffix(" --check .") for line in recipe("lint")
    ]
    assert repository["repo"] == "local" and hooks == [line.removesuffix(" --check") for line in lint]


def test_the_container_starts_the_installed_command_from_pinned_packages():
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    installs = re.findall(r"pip install [^&\n]*", text)
    assert all("-c constraints.txt" in line for line in installs if "setuptools" not in line)
    (command,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', text, re.MULTILINE)
    assert command in PROJECT["scripts"]
    base = re.findall(r"^FROM python:(3\.\d+)", text, re.MULTILINE)
    assert f"Programming Language :: Python :: {base[0]}" in PROJECT["classifiers"]


def test_compose_starts_an_orchestrator_on_its_own_database(monkeypatch: pytest.MonkeyPatch):
    file = loaded("compose.yaml")
    services = file["services"]
    orchestrator, ledger = services["orchestrator"], services["ledger"]
    path, given = parse(orchestrator["command"])
    assert path == ("up",) and given["foreground"]
    assert set(orchestrator["depends_on"]) <= set(services)
    named = [volume.partition(":")[0] for service in services.values() for volume in service["volumes"]]
    assert sorted(named) == sorted(file["volumes"])
    url = orchestrator["environment"]["DREAMKILN_LEDGER"]
    account = ledger["environment"]
    assert url == f"postgresql://{account['POSTGRES_USER']}:${{DREAMKILN_PASSWORD}}@ledger/{account['POSTGRES_DB']}"
    assert account["POSTGRES_PASSWORD"].startswith("${DREAMKILN_PASSWORD:?")
    assert (ROOT / orchestrator["build"] / "Dockerfile").exists()
    example = re.findall(r"exec orchestrator dreamkiln (.*)", (ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert parse(shlex.split(example[0]))[0] == ("submit", "text-to-3d")
    monkeypatch.setenv("DREAMKILN_LEDGER", url)
    assert parse(["up"])[1]["ledger"] == url, "the command reads the variable that the file sets"
