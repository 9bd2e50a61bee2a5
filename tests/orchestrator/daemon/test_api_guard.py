"""What stands before the API, and who may do what: over a real socket; nothing is run."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import psutil
import pytest
import trimesh

from jobs.errors import InputError, NotFound
from orchestrator.daemon.http import making, server
from orchestrator.daemon.http.guard import COOKIE, OPENAI_PATHS
from orchestrator.daemon.http.making import composed
from orchestrator.daemon.http.page import STUDIO
from orchestrator.daemon.http.routes import make_app
from orchestrator.daemon.http.server import ApiServer
from orchestrator.daemon.http.tokens import TokenBook
from orchestrator.daemon.options import DaemonOptions
from orchestrator.exports import write_png
from orchestrator.host.state_folder import StateFolder
from tests.orchestrator.daemon.test_controller import Rig

MEGABYTE = 1024**2


class Api:
    """A server, and answers of it by token."""

    def __init__(self, rig: Rig, port: int) -> None:
        self.rig, self.port, self.book = rig, port, TokenBook(rig.folder)
        self.tokens = {"owner": rig.folder.token(), "nobody": "", "wrong": "wrong"}
        for scope in ("read", "submit", "operate", "admin"):
            self.tokens[scope] = self.book.create(scope, scope=scope, user=f"{scope}-user")

    def __call__(self, who: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        token = self.tokens[who]
        given = {"Authorization": f"Bearer {token}"} if token else {}
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        if data is not None:
            given["Content-Type"] = "application/json"
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read what it refuses
                connection.request(method, path, data, given | {n.replace("_", "-"): value for n, value in headers.items()})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return response.status, json.loads(content) if is_json else content, found

    def ok(self, *arguments: Any, **headers: str) -> Any:
        status, answer, _ = self(*arguments, **headers)
        assert status in (200, 201), answer
        return answer


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Iterator[Api]:
    rig = Rig(tmp_path_factory.mktemp("api") / "state")
    options = DaemonOptions(
        state=str(rig.folder.path), hosts=("kiln.example",), urls=("https://pictures.example/public/", "s3://bucket/")
    )
    server = ApiServer(
        make_app(rig.ledger, rig.controller, rig.folder, rig.controller.close, options=options), host="127.0.0.1", port=0
    )
    server.start()
    yield Api(rig, int(server.url.rpartition(":")[2]))
    server.stop()
    rig.ledger.close()


DRAFT = {"prompt": "a red table", "preset": "draft"}
UPLOAD = "/v1/uploads?name=a.csv"


@pytest.mark.parametrize(
    ("who", "method", "path", "body", "headers", "status"),
    [
        ("nobody", "GET", "/v1/status", None, {}, 401),
        ("wrong", "GET", "/v1/jobs", None, {}, 401),
        ("nobody", "GET", "/v1/me", None, {"Authorization": "Basic b3duZXI6eA=="}, 401),
        ("nobody", "GET", "/v1/me", None, {"Authorization": "Bearer \xff\xfe"}, 401),
        ("nobody", "GET", "/v1/me", None, {"Cookie": f"{COOKIE}=1.6f.0"}, 401),
        ("nobody", "GET", "/v1/me", None, {"Cookie": f"{COOKIE}=99999999999.6f776e6572.{'0' * 64}"}, 401),
        ("nobody", "GET", "/v1/me", None, {"Cookie": f"{COOKIE}=\x01;;=;"}, 401),
        ("nobody", "POST", "/v1/login", {"token": "wrong"}, {}, 401),
        ("nobody", "POST", "/v1/login", {"token": "x" * 20000}, {}, 413),
        ("nobody", "POST", "/v1/shutdown", None, {}, 401),
        ("read", "POST", "/v1/text-to-3d", DRAFT, {}, 403),
        ("read", "POST", UPLOAD, b"prompt\n", {"Content-Type": "text/csv"}, 403),
        ("submit", "PUT", "/v1/users/ada?weight=2", None, {}, 403),
        ("operate", "POST", "/v1/shutdown", None, {}, 403),
        ("admin", "POST", "/v1/jobs", {"jobs": []}, {}, 403),
        ("owner", "GET", "/v1/me", None, {"Host": "evil.example"}, 421),
        ("owner", "GET", "/v1/me", None, {"Host": "localhost.evil.example"}, 421),
        ("owner", "GET", "/v1/me", None, {"Host": "[::1"}, 421),
        ("owner", "GET", "/v1/me", None, {"Host": "a@localhost"}, 421),
        ("owner", "GET", "/v1/me", None, {"Host": "kiln.example:8443"}, 200),
        ("owner", "GET", "/v1/me", None, {"Host": "[::1]:80"}, 200),
        ("owner", "POST", "/v1/images", b"{}", {"Content-Type": "text/plain"}, 415),
        ("owner", "POST", "/v1/images", b"{}", {"Content-Type": ""}, 415),
        ("owner", "POST", UPLOAD, b"<html>", {"Content-Type": "text/html"}, 415),
        ("owner", "POST", "/v1/images", b"x" * (MEGABYTE + 1), {}, 413),
        ("owner", "POST", "/v1/images", b"", {"Content-Length": "9" * 30}, 400),
        ("owner", "POST", "/v1/images", b"", {"Content-Length": "9" * 15}, 413),
        ("owner", "GET", "/v1/jobs", b"{}", {}, 200),
        ("owner", "POST", "/v1/uploads?name=a.exe", b"MZ", {"Content-Type": "application/octet-stream"}, 422),
        ("owner", "POST", "/v1/uploads?name=../../x", b"x", {"Content-Type": "text/csv"}, 422),
        ("owner", "POST", "/v1/uploads", b"x", {"Content-Type": "text/csv"}, 422),
        ("owner", "POST", "/v1/images", b"{", {}, 422),
        ("owner", "POST", "/v1/images", b"[" * 100_000, {}, 400),
        ("owner", "POST", "/v1/images", b'{"prompt": "\xff"}', {}, 400),
        ("owner", "POST", "/v1/images", {"prompt": "a", "seed": 10**30}, {}, 422),
        ("owner", "POST", "/v1/images", {"prompt": "a", "num_images": -1}, {}, 422),
        ("owner", "POST", "/v1/images", {"prompt": "a", "surprise": 1}, {}, 422),
        ("owner", "POST", "/v1/images", {"prompt": "a\0b"}, {}, 422),
        ("owner", "POST", "/v1/images", {"prompt": "a", "init_image": "../../etc/passwd"}, {}, 422),
        ("owner", "POST", "/v1/images", {"prompt": "a", "init_image": "0" * 64}, {}, 404),
        ("owner", "POST", "/v1/images", {"prompt": "a", "settings": {"images.nope": 1}}, {}, 422),
        ("owner", "POST", "/v1/images", {"prompt": "a", "settings": {"images.num_steps": "many"}}, {}, 422),
        ("owner", "POST", "/v1/images", {"prompt": "a", "settings": {"preset": "x,y"}}, {}, 422),
        ("owner", "POST", "/v1/images", {"prompt": "a", "settings": {"prior.source": "/etc"}}, {}, 422),
        ("submit", "POST", "/v1/images", {"prompt": "a", "prior": "/etc/passwd"}, {}, 403),
        ("submit", "POST", "/v1/images", {"prompt": "a", "prior": "http://169.254.169.254/x"}, {}, 403),
        ("submit", "POST", "/v1/text-to-3d", {"prompt": "a", "settings": {"field.kind": "os:system"}}, {}, 403),
        ("submit", "POST", "/v1/text-to-3d", {"prompt": "a", "settings": {"distillation.form": "/some/x.py:f"}}, {}, 403),
        ("submit", "POST", "/v1/text-to-3d", {"prompt": "a", "settings": {"runtime.address": "10.0.0.1:1"}}, {}, 403),
        ("submit", "POST", "/v1/images", {"prompt": "a", "settings": {"prior.loras": ["/etc/passwd"]}}, {}, 403),
        ("submit", "POST", "/v1/text-to-3d", {"prompt": "a", "settings": {"prior.loras": ["x:0.5"]}}, {}, 403),
        ("submit", "POST", "/v1/images", {"prompt": "a", "settings": {"prior.embeddings": ["/etc/passwd"]}}, {}, 403),
        ("owner", "POST", "/v1/images", {"prompt": "a", "settings": {"prior.loras": ["/nowhere/x.safetensors"]}}, {}, 422),
        ("submit", "POST", "/v1/images", {"prompt": "a", "out": "/etc/cron.d/x"}, {}, 403),
        ("submit", "POST", "/v1/images", {"prompt": "a", "out": "../../x"}, {}, 422),
        ("submit", "POST", "/v1/images", {"prompt": "a", "out": "s3://bucket/x"}, {}, 422),
        ("submit", "POST", "/v1/images", {"prompt": "a", "out": ".hidden"}, {}, 422),
        ("submit", "POST", "/v1/exports", {"job": 10**30}, {}, 422),
        ("submit", "POST", "/v1/exports", {"job": 12345}, {}, 404),
        ("submit", "GET", "/v1/jobs/99999999999999999999/files", None, {}, 404),
        ("submit", "GET", "/v1/jobs/1e3", None, {}, 422),
        ("submit", "GET", "/v1/jobs?limit=10001", None, {}, 422),
        ("submit", "GET", "/v1/events", None, {"Last-Event-ID": "9" * 40}, 422),
        ("submit", "GET", "/v1/settings?prior=/etc/passwd", None, {}, 403),
        ("submit", "DELETE", "/v1/uploads/..%2f..%2ftoken", None, {}, 404),
        ("nobody", "GET", "/studio/..%2f..%2fguard.py", None, {}, 404),
        ("nobody", "GET", "/studio/%00", None, {}, 404),
        ("nobody", "OPTIONS", "/v1/jobs", None, {"Origin": "http://evil.example"}, 401),
    ],
)
def test_hostile_requests_get_their_status_in_one_shape(api: Api, who, method, path, body, headers, status):
    found, answer, got = api(who, method, path, body, **headers)
    assert found == status, answer
    assert got["x-content-type-options"] == "nosniff" and "access-control-allow-origin" not in got
    if status >= 400:
        assert set(answer) == {"error", "kind", "exit_code"} and answer["error"].endswith(".")
        assert (got.get("www-authenticate") == "Bearer") == (found == 401 and path != "/v1/login")


def test_a_body_without_an_end_costs_no_memory(api: Api):
    """1.2 GB in chunks without a token once raised the process to 3.9 GB."""
    process, part = psutil.Process(), b"100000\r\n" + b"x" * MEGABYTE + b"\r\n"
    before = process.memory_info().rss
    for token, path, status in (("wrong", "/v1/jobs", b"401"), (api.tokens["submit"], "/v1/images", b"413")):
        with socket.create_connection(("127.0.0.1", api.port), timeout=20) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
            connection.sendall(head.encode() + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    connection.sendall(part)
            with contextlib.suppress(ConnectionError):
                answer = connection.recv(200)
                assert not answer or answer.split()[1] == status
    assert process.memory_info().rss - before < 64 * MEGABYTE


@pytest.mark.parametrize(("method", "path", "status"), [("POST", "/v1/images", b"401"), ("GET", "/health", b"200")])
def test_an_answer_reaches_who_sends_the_body_later(api: Api, method: str, path: str, status: bytes):
    """An end that is closed already resets the connection; a body that does not come is not waited for."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 300000\r\n\r\n"
    for num_parts in (3, 1):
        with socket.create_connection(("127.0.0.1", api.port), timeout=20) as connection:
            connection.sendall(head.encode())
            for _ in range(num_parts):
                time.sleep(0.1)
                connection.sendall(b"x" * 100_000)
            begin, answer = time.monotonic(), b""
            while part := connection.recv(65536):
                answer += part
            assert answer.split()[1] == status and answer.endswith(b"}") and time.monotonic() - begin < 10


def test_a_body_that_stops_coming_is_given_up(api: Api, monkeypatch):
    monkeypatch.setattr("orchestrator.daemon.http.guard.IDLE_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as connection:
        head = f"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {api.tokens['submit']}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert connection.recv(200).split()[1] == b"408"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/jobs", "GET, POST"),
        ("/v1/jobs/1", "DELETE, GET, PATCH"),
        ("/v1/jobs/1/files.zip", "GET"),
        ("/v1/jobs/1/files/a/b.png", "GET"),
        ("/v1/jobs/1/cancel", "POST"),
        ("/v1/uploads", "GET, POST"),
        ("/v1/images/generations", "POST"),
        ("/health", "GET"),
    ],
)
def test_every_other_method_is_refused_with_those_that_there_are_whatever_body_it_has(api: Api, path: str, methods: str):
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - set(methods.split(", ")):
        for body, headers in ((None, {}), (b"{}", {}), (b"a,b", {"Content-Type": "text/csv"})):
            status, answer, got = api("owner", method, path, body, **headers)
            assert (status, got.get("allow")) == (405, methods), (method, answer)
            assert set(answer) == ({"error"} if path in OPENAI_PATHS else {"error", "kind", "exit_code"})


def trickle(api: Api, sent: bytes, parts: bytes, *, seconds: float) -> bytes:
    """What a client hears that sends a part a tenth of a second; empty where it is hung up on."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as connection:
        connection.settimeout(0.1)
        until = time.monotonic() + seconds
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
            while time.monotonic() < until:
                with contextlib.suppress(TimeoutError):
                    return connection.recv(200)
                connection.sendall(parts)
            raise AssertionError("it is still listened to")
    return b""


def test_clients_that_trickle_are_given_up_and_stand_in_nobodys_way(api: Api, monkeypatch):
    """Headers without end, and a body without end."""
    monkeypatch.setattr(server, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 30)
    monkeypatch.setattr("orchestrator.daemon.http.guard.STRANGERS_SECONDS", 1.0)
    heard: list[bytes] = []
    login = b"POST /v1/login HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    cases = [(b"GET /health HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n")] * 60 + [(login, b" ")] * 5
    threads = [
        threading.Thread(target=lambda one=one: heard.append(trickle(api, *one, seconds=15)), daemon=True) for one in cases
    ]
    for thread in threads:
        thread.start()
    for _ in range(10):
        assert api("nobody", "GET", "/health")[0] == 200
    for thread in threads:
        thread.join(20)
    answered = [answer for answer in heard if answer]
    assert len(heard) == 65 and all(answer.split()[1] == b"408" for answer in answered)


@pytest.mark.slow
def test_who_never_reads_an_answer_is_given_up(api: Api, monkeypatch):
    """What the kernel has taken of it trickles through the client's small window for a minute or two."""
    monkeypatch.setattr(server, "WRITE_SECONDS", 1.0)
    big = max((STUDIO / "assets").iterdir(), key=lambda path: path.stat().st_size).name
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(f"GET /studio/assets/{big} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 12)
        time.sleep(2.5)
        with pytest.raises(ConnectionError):
            while connection.recv(1 << 20):
                pass
            raise ConnectionError


def test_tokens_are_hashed_revoked_and_bounded(api: Api):
    book = api.book
    token = book.create("guest", scope="submit", user="guest", max_jobs=1, max_bytes=1000, max_running=2)
    api.tokens["guest"] = token
    text = (api.rig.folder.path / "tokens.json").read_text()
    assert token not in text and (api.rig.folder.path / "tokens.json").stat().st_mode & 0o777 == 0o600
    assert api.ok("guest", "GET", "/v1/me") == {"name": "guest", "user": "guest", "scope": "submit", "is_owner": False}
    first = api.ok("guest", "POST", "/v1/images", {"prompt": "a guest's table", "paused": True})
    assert first["job"]["user"] == "guest" and first["job"]["out"].startswith(str(api.rig.folder.path / "outputs" / "guest"))
    status, answer, _ = api("guest", "POST", "/v1/images", {"prompt": "another table"})
    assert status == 429 and "guest has 1 jobs that have not ended, and 1 are allowed" in answer["error"]
    status, answer, _ = api("guest", "POST", UPLOAD, b"x" * 1001, Content_Type="text/csv")
    assert status == 413 and "1,000 more bytes" in answer["error"]
    for who, expected in (("submit", 403), ("guest", 200)):
        assert api(who, "POST", f"/v1/jobs/{first['id']}/resume")[0] == expected
    assert api("operate", "POST", f"/v1/jobs/{first['id']}/cancel")[0] == 200
    book.create("other", scope="submit", user="guest", max_running=3)
    assert book.max_running() == {"guest": 2}
    book.revoke("guest")
    assert book.max_running() == {"guest": 3}
    book.revoke("other")
    assert api("guest", "GET", "/v1/me")[0] == 401
    with pytest.raises(NotFound, match="no token 'guest'"):
        book.revoke("guest")
    with pytest.raises(InputError, match="There is a token 'read' already"):
        book.create("read", scope="read")
    with pytest.raises(InputError, match=r"no scope 'write'.*; choose one of read, submit"):
        book.create("x", scope="write")


def test_a_cookie_serves_the_page_alone_and_ends_with_its_token(api: Api):
    token = api.book.create("browser", scope="submit")
    status, _, got = api("nobody", "POST", "/v1/login", {"token": token})
    cookie = got["set-cookie"]
    assert status == 200 and "HttpOnly" in cookie and "SameSite=strict" in cookie and token not in cookie
    mine = {"Cookie": cookie.partition(";")[0]}
    ours = f"http://127.0.0.1:{api.port}"
    assert api("nobody", "GET", "/v1/me", **mine)[0] == 200
    assert api.ok("nobody", "GET", "/v1/session", **mine)["me"]["name"] == "browser"
    assert api.ok("nobody", "GET", "/v1/session") == {"me": None}
    body = {"prompt": "a cookie's table", "paused": True}
    for origin, expected in (("http://evil.example", 403), ("http://127.0.0.1:1", 403), ("null", 403), (ours, 201)):
        assert api("nobody", "POST", "/v1/images", body, Origin=origin, **mine)[0] == expected, origin
    assert api("nobody", "POST", "/v1/images", body, **mine)[0] == 403
    assert api("nobody", "POST", "/v1/images", body, Sec_Fetch_Site="same-origin", **mine)[0] == 200
    again = TokenBook(StateFolder(api.rig.folder.path))  # as after a restart
    who = again.of_session(mine["Cookie"].partition("=")[2])
    assert who is not None and who.name == "browser"
    api.book.revoke("browser")
    assert api("nobody", "GET", "/v1/me", **mine)[0] == 401


def test_a_job_from_its_form_to_its_end(api: Api, tmp_path: Path):
    form = {"prompt": "a blue chair", "preset": "draft", "seed": 7, "settings": {"fit.num_steps": 33}, "priority": 3}
    made = api.ok("submit", "POST", "/v1/text-to-3d", form, Idempotency_Key="k1")
    again = api.ok("submit", "POST", "/v1/text-to-3d", form, Idempotency_Key="k1")
    assert made["is_new"] and again["id"] == made["id"] and not again["is_new"]
    status, answer, _ = api("submit", "POST", "/v1/text-to-3d", {**form, "seed": 8}, Idempotency_Key="k1")
    assert status == 409 and "The idempotency key 'k1' belongs to job" in answer["error"]
    spec = made["job"]["spec"]
    assert (spec["seed"], spec["fit"]["num_steps"], spec["prior"]) == (7, 33, "toybox")
    job = made["id"]
    assert api.ok("submit", "PATCH", f"/v1/jobs/{job}", {"priority": 9})["job"]["priority"] == 9
    worded = {"prompt": "a table", "paused": True, "settings": {"images.negative_prompt": "not: a chair"}}
    assert api.ok("submit", "POST", "/v1/images", worded)["job"]["spec"]["negative_prompt"] == "not: a chair"
    status, answer, _ = api("submit", "POST", f"/v1/jobs/{job}/again", {"settings": {"field.kind": "os:system"}})
    assert status == 403 and "code of one's own" in answer["error"]
    changes = {"seed": 8, "settings": {"fit.num_steps": 34, "export.formats": ["glb", "stl"], "mesh.max_faces": 500}}
    other = api.ok("submit", "POST", f"/v1/jobs/{job}/again", changes)["job"]
    assert (other["spec"]["seed"], other["spec"]["fit"]["num_steps"], other["spec"]["formats"]) == (8, 34, ["glb", "stl"])
    assert other["spec"]["fit"] == {**spec["fit"], "num_steps": 34} and other["spec"]["mesh"]["max_faces"] == 500
    status, answer, _ = api("submit", "POST", f"/v1/jobs/{job}/again", {"settings": {"fit.num_step": 3}})
    assert status == 422 and "did you mean fit.num_steps" in answer["error"]
    assert api("submit", "DELETE", f"/v1/jobs/{job}")[0] == 409
    for number in (job, other["id"]):
        api.ok("submit", "POST", f"/v1/jobs/{number}/cancel")
    assert api.ok("submit", "DELETE", f"/v1/jobs/{job}") == {"id": job}
    assert api("submit", "GET", f"/v1/jobs/{job}")[0] == 404


def test_many_seeds_are_composed_once(api: Api, monkeypatch):
    """Hydra takes a tenth of a second, and a best-of may have a thousand seeds."""
    calls = []
    monkeypatch.setattr(making, "composed", lambda settings: calls.append(settings) or composed(settings))
    form = {
        "prompt": "a blue chair",
        "num_seeds": 40,
        "seed": 5,
        "out": "many",
        "settings": {"fit.num_steps": 33},
        "paused": True,
    }
    made = api.ok("submit", "POST", "/v1/best-of", form, Idempotency_Key="many")
    assert len(calls) == 1
    specs = [api.ok("read", "GET", f"/v1/jobs/{job['id']}")["job"] for job in (made["jobs"][0], made["jobs"][-1])]
    assert [one["spec"]["seed"] for one in specs] == [5, 44] and {one["spec"]["fit"]["num_steps"] for one in specs} == {33}
    assert [Path(one["out"]).name for one in specs] == ["many-seed-5", "many-seed-44"]
    again = api.ok("submit", "POST", "/v1/best-of", form, Idempotency_Key="many")
    assert [job["id"] for job in again["jobs"]] == [job["id"] for job in made["jobs"]]


def test_uploads_become_tables_and_pictures(api: Api, tmp_path: Path):
    sent = api.ok(
        "submit", "POST", "/v1/uploads?name=prompts.csv", b"prompt\na red table\na blue chair\n", Content_Type="text/csv"
    )
    assert (
        api("submit", "POST", "/v1/uploads?name=prompts.csv", b"prompt\na red table\na blue chair\n", Content_Type="text/csv")[
            0
        ]
        == 200
    )
    table = api.ok("submit", "POST", "/v1/tables", {"table": sent["id"], "paused": True, "shard_size": 1})["job"]
    assert table["spec"]["table"]["files"][0]["num_rows"] == 2 and table["spec"]["shard_size"] == 1
    assert api("operate", "POST", "/v1/tables", {"table": sent["id"]})[0] == 404  # another user's
    write_png(np.full((16, 16, 3), 200, np.uint8), tmp_path / "a.png")
    picture = api.ok("submit", "POST", "/v1/uploads?name=a.png", (tmp_path / "a.png").read_bytes(), Content_Type="image/png")
    edit = api.ok("submit", "POST", "/v1/images", {"prompt": "a house", "init_image": picture["id"], "paused": True})["job"]
    assert len(edit["spec"]["init_image"]) == 64 and Path(edit["settings"]["pictures"], "init.png").is_file()
    steals = api.ok("submit", "POST", "/v1/uploads?name=t.csv", b"prompt,init_image\na,/etc/passwd\n", Content_Type="text/csv")
    status, answer, _ = api("submit", "POST", "/v1/tables", {"table": steals["id"]})
    assert status == 403 and "column init_image names files" in answer["error"]
    broken = api.ok("submit", "POST", "/v1/uploads?name=b.png", b"no picture", Content_Type="image/png")
    status, answer, _ = api("submit", "POST", "/v1/images", {"prompt": "a house", "init_image": broken["id"]})
    assert status == 422 and "could not be read as a picture" in answer["error"]
    assert answer["error"].startswith("b.png could not be read")  # as its user calls it, not where it lies here
    black = tmp_path / "black.png"
    write_png(np.zeros((16, 16, 3), np.uint8), black)
    mask = api.ok("submit", "POST", "/v1/uploads?name=nothing.png", black.read_bytes(), Content_Type="image/png")
    form = {"prompt": "a house", "init_image": picture["id"], "mask": mask["id"]}
    assert api("submit", "POST", "/v1/images", form)[1]["error"].startswith("The mask nothing.png is black everywhere")
    other = api.ok("submit", "POST", "/v1/uploads?name=other.csv", b"sentence\na house\n", Content_Type="text/csv")
    status, answer, _ = api("submit", "POST", "/v1/tables", {"table": other["id"]})
    assert status == 422 and "other.csv" in answer["error"] and other["id"] not in answer["error"]
    uploads = api.ok("submit", "GET", "/v1/uploads")["uploads"]
    assert {one["name"] for one in uploads} == {"prompts.csv", "a.png", "t.csv", "b.png", "nothing.png", "other.csv"}
    for one in uploads:
        api.ok("submit", "DELETE", f"/v1/uploads/{one['id']}")
    assert not any((api.rig.folder.path / "uploads").glob("submit*/*"))


@pytest.mark.parametrize(
    ("cell", "status"),
    [
        ("https://pictures.example/public/a.png", 201),
        ("s3://bucket/a.png", 201),
        ("/etc/passwd", 403),
        ("a.png", 403),
        ("file:///etc/passwd", 403),
        ("http://127.0.0.1:8265/", 403),
        ("http://169.254.169.254/latest/meta-data", 403),
        ("https://pictures.example/private.png", 403),
        ("https://pictures.example/public/../private.png", 403),
        ("https://pictures.example/public/%2e%2e/private.png", 403),
        ("https://pictures.example.evil.example/public/", 403),
        ("https://pictures.example@evil.example/public/a.png", 403),
        ("simplecache::https://pictures.example/public/a.png", 403),
        ("s3://bucket-of-another/a.png", 403),
    ],
)
def test_cells_of_others_point_only_where_it_is_allowed(api: Api, cell: str, status: int):
    table = f"prompt,init_image\na,{cell}\n".encode()
    sent = api.ok("submit", "POST", "/v1/uploads?name=t.csv", table, Content_Type="text/csv")
    found, answer, _ = api("submit", "POST", "/v1/tables", {"table": sent["id"], "paused": True})
    assert found == status, answer
    assert status == 201 or f"row 1 (line 2) has {cell!r}" in answer["error"]
    api.ok("submit", "DELETE", f"/v1/uploads/{sent['id']}")


def test_loras_are_files_that_only_the_owner_names(api: Api, tmp_path: Path):
    lora = tmp_path / "ink.safetensors"
    lora.write_bytes(b"ink")
    own = {"prompt": "a red table", "settings": {"prior.loras": [f"{lora}:0.5"]}, "paused": True}
    job = api.ok("owner", "POST", "/v1/images", own)["job"]
    assert job["spec"]["loras"] == [{"file": str(lora), "sha256": hashlib.sha256(b"ink").hexdigest(), "scale": 0.5}]
    status, answer, _ = api("operate", "POST", f"/v1/jobs/{job['id']}/again", {"paused": True})
    assert status == 403 and "reads files or code" in answer["error"]
    sent = api.ok("submit", "POST", "/v1/uploads?name=t.csv", f"prompt,lora\na,{lora}\n".encode(), Content_Type="text/csv")
    status, answer, _ = api("submit", "POST", "/v1/tables", {"table": sent["id"], "paused": True})
    assert status == 403 and "column lora names files" in answer["error"]
    api.ok("submit", "DELETE", f"/v1/uploads/{sent['id']}")


def test_lists_go_on_by_cursor_and_are_searched(api: Api):
    for number in range(5):
        api.ok("operate", "POST", "/v1/images", {"prompt": f"a pagoda number {number}", "paused": True})
    found, cursor = [], ""
    while cursor is not None:
        page = api.ok("read", "GET", f"/v1/jobs?limit=2&q=pagoda{f'&before={cursor}' if cursor else ''}")
        found += [job["spec"]["prompt"] for job in page["jobs"]]
        cursor = page["cursor"]
    assert found == [f"a pagoda number {number}" for number in (4, 3, 2, 1, 0)]
    assert len(api.ok("read", "GET", "/v1/jobs?q=number+pagoda&kind=images")["jobs"]) == 5
    assert api.ok("read", "GET", "/v1/jobs?q=pagoda&kind=text-to-3d")["jobs"] == []


def finished(api: Api, folder: Path) -> int:
    """A job that has left two files, one of which its manifest names."""
    made = api.ok("submit", "POST", "/v1/images", {"prompt": f"a table in {folder.name}"})
    out = Path(made["out"])
    out.mkdir(parents=True)
    data = bytes(range(256)) * 40
    (out / "mesh.glb").write_bytes(data)
    (out / "preview.png").write_bytes(b"\x89PNG")
    (out / "secret").symlink_to("/etc/passwd")
    entries = {"mesh.glb": data, "preview.png": b"\x89PNG", "secret": b"", "../../../token": b""}
    artefacts = {name: {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()} for name, value in entries.items()}
    (out / "manifest.json").write_text(json.dumps({"artefacts": artefacts}))
    return made["id"]


def test_files_by_name_in_ranges_with_their_hash_and_none_outside_the_folder(api: Api, tmp_path: Path):
    import io
    import zipfile

    job = finished(api, tmp_path)
    files = {file["name"]: file for file in api.ok("read", "GET", f"/v1/jobs/{job}/files")["files"]}
    assert set(files) == {"mesh.glb", "preview.png"} and files["mesh.glb"]["media_type"] == "model/gltf-binary"
    path = f"/v1/jobs/{job}/files/mesh.glb"
    status, whole, got = api("read", "GET", path)
    assert status == 200 and len(whole) == 10240 and got["etag"] == f'"{files["mesh.glb"]["sha256"]}"'
    assert got["content-type"] == "model/gltf-binary" and got["content-security-policy"].endswith("sandbox")
    status, part, got = api("read", "GET", path, Range="bytes=100-199")
    assert (status, part, got["content-range"]) == (206, whole[100:200], "bytes 100-199/10240")
    assert api("read", "GET", path, Range="bytes=100-199", If_Range='"other"')[0] == 200
    status, answer, refused = api("read", "GET", path, Range="bytes=99999-")
    assert (status, refused["content-range"]) == (416, "bytes */10240")
    assert "lies outside the file, which has 10,240 bytes" in answer["error"]
    status, answer, _ = api("read", "GET", path, Range="bytes=x")
    assert status == 400 and "The range 'bytes=x' is none" in answer["error"]
    assert api("read", "GET", path, If_None_Match=got["etag"])[0] == 304
    for name in ("secret", "../../../token", "..%2f..%2f..%2ftoken", "manifest.json", quote("/etc/passwd"), "%00"):
        assert api("read", "GET", f"/v1/jobs/{job}/files/{name}")[0] in (404, 422), name
    _, archive, got = api("read", "GET", f"/v1/jobs/{job}/files.zip")
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None and opened.read("mesh.glb") == whole and len(opened.namelist()) == 2
    assert api("read", "GET", f"/v1/jobs/{job}/preview")[2]["content-type"] == "image/png"


class Listener:
    """Reads server-sent events on a thread."""

    def __init__(self, api: Api, path: str, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=30)
        self.connection.request("GET", path, headers={"Authorization": f"Bearer {api.tokens['read']}", **headers})
        self.sock = self.connection.sock
        self.response = self.connection.getresponse()
        self.events: list[dict[str, str]] = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        event: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, AttributeError):
            for raw in self.response:
                name, _, value = raw.decode().rstrip("\n").partition(": ")
                if name:
                    event[name] = value
                elif "event" in event:
                    self.events.append(event)
                    event = {}
                else:
                    event = {}

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        self.response.close()
        self.sock.close()
        self.connection.close()

    def wait_for(self, condition, seconds: float = 20) -> list[dict[str, str]]:
        deadline = time.monotonic() + seconds
        while not condition(self.events):
            assert time.monotonic() < deadline, self.events
            time.sleep(0.02)
        return self.events


def test_events_come_live_end_with_the_job_and_go_on_where_they_were_cut(api: Api):
    job = api.ok("submit", "POST", "/v1/images", {"prompt": "a table with events", "paused": True})["id"]
    one, every = Listener(api, f"/v1/jobs/{job}/events"), Listener(api, "/v1/events")
    assert one.response.headers["content-type"].startswith("text/event-stream")
    one.wait_for(lambda events: len(events) == 1)
    api.ok("submit", "POST", f"/v1/jobs/{job}/resume")
    api.ok("submit", "POST", f"/v1/jobs/{job}/cancel")
    events = one.wait_for(lambda events: events and events[-1]["event"] == "end")
    texts = [json.loads(event["data"])["text"] for event in events[:-1]]
    assert [text.partition(":")[0] for text in texts] == ["paused", "queued", "cancelled"]
    one.thread.join(10)
    assert not one.thread.is_alive()  # the stream has ended
    every.wait_for(lambda events: any('"cancelled: ' in event["data"] for event in events))
    second = Listener(api, f"/v1/jobs/{job}/events", **{"Last-Event-ID": events[0]["id"]})
    assert second.wait_for(lambda found: found and found[-1]["event"] == "end") == events[1:]
    for listener in (one, every, second):
        listener.close()


def test_the_description_names_every_call_and_loads_nothing_from_elsewhere(api: Api):
    schema = api.ok("nobody", "GET", "/openapi.json")
    assert {"/v1/jobs", "/v1/text-to-3d", "/v1/jobs/{job_id}/files/{name}", "/v1/events"} <= set(schema["paths"])
    _, page, got = api("nobody", "GET", "/docs")
    text = page.decode()
    assert all(f"<code>{path}</code>" in text for path in schema["paths"])
    assert "http://" not in text and "https://" not in text and "<script" not in text
    assert got["content-security-policy"].startswith("default-src 'self'")


def test_settings_are_listed_with_what_they_mean(api: Api):
    found = api.ok("read", "GET", "/v1/settings?preset=draft")
    fit = {one["name"]: one for one in found["groups"]["fit"]["settings"]}
    assert fit["fit.num_steps"]["value"] < 400 and fit["fit.num_steps"]["about"]
    assert "draft" in found["choices"]["preset"]
    meanings = [one["about"] for group in found["groups"].values() for one in group["settings"]]
    assert sum(map(bool, meanings)) > 0.75 * len(meanings)
    card = api.ok("read", "GET", "/v1/priors")["priors"][0]
    assert card["source"] == "toybox" and "mushroom" in card["vocabulary"] and card["image_size"] == 64
    assert os.cpu_count() == api.ok("read", "GET", "/v1/system")["num_cores"]


def test_the_examples_of_the_page_run(api: Api, tmp_path: Path):
    """docs/api.md with curl, against an orchestrator of its own whose first job has left files."""
    import re
    import subprocess

    rig = Rig(tmp_path / "state")
    server = ApiServer(make_app(rig.ledger, rig.controller, rig.folder, rig.controller.close), host="127.0.0.1", port=0)
    server.start()
    mine = Api(rig, int(server.url.rpartition(":")[2]))
    job = finished(mine, tmp_path)
    mine.ok("submit", "POST", f"/v1/jobs/{job}/cancel")
    trimesh.creation.box().export(tmp_path / "chair.glb")
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    script = "\n".join(re.findall(r"^```sh api\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    environment = {**os.environ, "URL": server.url, "TOKEN": mine.tokens["submit"]}
    try:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        server.stop()
        rig.ledger.close()
    assert done.returncode == 0, done.stderr + done.stdout
    assert len(re.findall("curl ", script)) >= 18 and (tmp_path / "mesh.glb").stat().st_size == 10240
    assert (tmp_path / "beginning").stat().st_size == 100 and "event: end" in done.stdout
