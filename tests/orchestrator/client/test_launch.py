"""Starting the orchestrator in the background; it ends before there is a Ray."""

from __future__ import annotations

import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from orchestrator.cli.main import main
from orchestrator.client import launch
from orchestrator.host.state_folder import Endpoint, StateFolder


class Stranger(BaseHTTPRequestHandler):
    """Another program's server; remembers what it was sent."""

    status = 200
    heard: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.heard.append(str(self.headers))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b'{"ok": true, "proof": "x"}')

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize("status", [200, 404, 500])
def test_a_stranger_at_the_port_of_a_dead_orchestrator_is_not_taken_for_it(tmp_path: Path, monkeypatch, capsys, status):
    monkeypatch.setattr(Stranger, "status", status)
    folder = StateFolder(tmp_path / "state")
    folder.create()
    with ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        folder.announce(Endpoint(url=f"http://127.0.0.1:{server.server_port}", pid=1, ledger="x"))
        arguments = ["--state", str(folder.path)]
        assert main(["jobs", "list", *arguments]) == 2
        assert "is not the orchestrator of" in capsys.readouterr().err
        assert main(["down", *arguments]) == 0 and "No orchestrator was running" in capsys.readouterr().out
        assert launch._answering(folder) is None, "'dreamkiln up' starts one"
        server.shutdown()
        thread.join()
    assert Stranger.heard and not any(folder.token() in headers for headers in Stranger.heard)


PASSWORD = "correct-horse"


def test_the_ledgers_password_is_on_no_command_line(tmp_path: Path, monkeypatch, capsys):
    lines: list[bytes] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            while not (line := Path(f"/proc/{self.pid}/cmdline").read_bytes()):
                time.sleep(0.01)  # it is just becoming what it was started as
            lines.append(line)

    monkeypatch.setattr(launch.subprocess, "Popen", Recorded)
    monkeypatch.setenv("DREAMKILN_LEDGER", f"postgresql://kiln:{PASSWORD}@127.0.0.1:9/jobs")
    assert main(["up", "--state", str(tmp_path / "state")]) != 0
    (line,) = lines
    assert b"orchestrator.daemon.daemon" in line and PASSWORD.encode() not in line
    said = capsys.readouterr().err
    assert "127.0.0.1:9" in said and PASSWORD not in said, "the options have reached it"
    kept = [path.read_text() for path in (tmp_path / "state").glob("daemon.*")]
    assert kept and not any(PASSWORD in text for text in kept)
