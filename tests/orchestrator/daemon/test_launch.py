"""Starting the orchestrator in the background; it ends before there is a Ray."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from orchestrator.cli.main import main
from orchestrator.daemon import launch

PASSWORD = "correct-horse"


def test_the_ledgers_password_is_on_no_command_line(tmp_path: Path, monkeypatch, capsys):
    lines: list[bytes] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            lines.append(Path(f"/proc/{self.pid}/cmdline").read_bytes())

    monkeypatch.setattr(launch.subprocess, "Popen", Recorded)
    monkeypatch.setenv("DREAMKILN_LEDGER", f"postgresql://kiln:{PASSWORD}@127.0.0.1:9/jobs")
    assert main(["up", "--state", str(tmp_path / "state")]) != 0
    (line,) = lines
    assert b"orchestrator.daemon.daemon" in line and PASSWORD.encode() not in line
    said = capsys.readouterr().err
    assert "127.0.0.1:9" in said and PASSWORD not in said, "the options have reached it"
    kept = [path.read_text() for path in (tmp_path / "state").glob("daemon.*")]
    assert kept and not any(PASSWORD in text for text in kept)
