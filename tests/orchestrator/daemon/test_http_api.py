"""The HTTP API and its client, over a real socket; nothing is run."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import shutil
import socket
import sqlite3
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from diffusion.checkpoints.source import TOYBOX
from jobs.errors import InputError, OutputError
from jobs.ledger import Ledger, ShardRecord
from jobs.specs import ImagesSpec, TextTo3DSpec
from jobs.states import State
from orchestrator.cli.main import main
from orchestrator.client.client import Client, NotRunningError
from orchestrator.daemon.http import server
from orchestrator.daemon.http.routes import make_app
from orchestrator.daemon.http.server import ApiServer
from orchestrator.daemon.job_log import JobLog
from orchestrator.daemon.reports import Succeeded
from orchestrator.exports import write_png
from orchestrator.host.state_folder import Endpoint, StateFolder
from orchestrator.run.edit_pictures import EditPictures
from tests.jobs.ledger.conftest import submission
from tests.orchestrator.daemon.test_controller import Rig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "state")
    app = make_app(made.ledger, made.controller, made.folder, made.controller.close)
    server = ApiServer(app, host="127.0.0.1", port=0)
    server.start()
    made.folder.announce(Endpoint(url=server.url, pid=os.getpid(), ledger=made.ledger.where))
    yield made
    server.stop()
    made.ledger.close()


@pytest.fixture
def client(rig: Rig) -> Client:
    return Client(rig.folder)


def request(prompt: str = "a red table", **others) -> dict:
    spec = TextTo3DSpec(prompt=prompt).to_json()
    return {"spec": spec, "out": f"/runs/{prompt}", "settings": {"export": {"turntable_frames": 0}}, **others}


def test_nothing_but_health_without_the_token(rig: Rig, client: Client):
    address = urlsplit(client.endpoint.url)
    for path, headers, status in [
        ("/health", {}, 200),
        ("/v1/status", {}, 401),
        ("/v1/status", {"Authorization": "Bearer wrong"}, 401),
        ("/v1/status", {"Authorization": f"Bearer {rig.folder.token()}"}, 200),
        ("/docs", {}, 200),
        ("/openapi.json", {}, 200),
    ]:
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
        connection.request("GET", path, headers=headers)
        assert connection.getresponse().status == status, path
        connection.close()
    assert rig.folder.token_file.stat().st_mode & 0o777 == 0o600 and len(rig.folder.token()) >= 32


def test_submit_list_show_and_steer(rig: Rig, client: Client):
    answer = client.post("/v1/jobs", {"jobs": [request(user="ada", priority=3), request("a blue chair", idempotency_key="k")]})
    first, second = (job["id"] for job in answer["jobs"])
    assert rig.controller.wake.is_set() and [job["is_new"] for job in answer["jobs"]] == [True, True]
    again = client.post("/v1/jobs", {"jobs": [request("a blue chair", idempotency_key="k")]})
    assert again["jobs"] == [{"id": second, "is_new": False, "out": "/runs/a blue chair"}]
    assert [job["id"] for job in client.get("/v1/jobs", state=["queued"], user="ada")["jobs"]] == [first]
    shown = client.get(f"/v1/jobs/{first}")
    assert shown["job"]["spec"]["prompt"] == "a red table" and shown["job"]["memory_bytes"] > 0
    assert shown["events"][0]["text"] == "queued: submitted" and shown["shards"] is None
    for action, state in [("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled"), ("retry", "queued")]:
        assert client.post(f"/v1/jobs/{first}/{action}")["state"] == state
    assert client.get("/v1/status")["jobs"]["queued"] == 2
    assert client.put("/v1/users/ada", weight=2.5) == {"name": "ada", "weight": 2.5}
    assert client.get("/v1/status")["weights"]["ada"] == 2.5


def test_a_submission_whose_answer_was_lost_can_be_repeated(rig: Rig, client: Client):
    body = {"jobs": [request(), request("a blue chair"), request(out="/runs/./a red table/")]}
    first = client.post("/v1/jobs", body)["jobs"]
    again = client.post("/v1/jobs", body)["jobs"]
    assert [job["is_new"] for job in first] == [True, True, False] and not any(job["is_new"] for job in again)
    assert [job["id"] for job in again] == [job["id"] for job in first] and len(rig.ledger.jobs.recent()) == 2
    bucket = table_request(out="s3://bucket/out/")
    assert client.post("/v1/jobs", {"jobs": [table_request(), bucket]})["jobs"][1]["is_new"] is False


def test_a_group_whose_answer_was_lost_can_be_repeated(rig: Rig, client: Client):
    jobs = [request(prompt, idempotency_key=prompt) for prompt in ("a red table", "a blue chair")]
    body = {"jobs": jobs, "group": {"name": "the better one", "metric": "volume"}}
    first, again = client.post("/v1/jobs", body), client.post("/v1/jobs", body)
    assert first["group"] == again["group"] == rig.ledger.groups.undecided()[0].id and len(rig.ledger.groups.undecided()) == 1
    with pytest.raises(InputError, match="2 of the 3 jobs of group 'the better one' were submitted before"):
        client.post("/v1/jobs", body | {"jobs": [*jobs, request("a chair")]})
    assert len(rig.ledger.jobs.recent()) == 2
    assert client.post("/v1/jobs", {"jobs": jobs})["group"] is None


def test_another_job_in_the_folder_of_one_that_waits_is_refused(rig: Rig, client: Client):
    (first,) = client.post("/v1/jobs", {"jobs": [request()]})["jobs"]
    with pytest.raises(InputError, match=rf"Job {first['id']}, which is queued and has another spec.*\(--out\).*jobs cancel"):
        client.post("/v1/jobs", {"jobs": [request("a blue chair"), request("a chair", out=first["out"])]})
    client.post(f"/v1/jobs/{first['id']}/cancel")
    (second,) = client.post("/v1/jobs", {"jobs": [request("a chair", out=first["out"])]})["jobs"]
    with pytest.raises(InputError, match=f"cannot be retried now: job {second['id']} writes into the same folder"):
        client.post(f"/v1/jobs/{first['id']}/retry")
    assert len(rig.ledger.jobs.recent()) == 2


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"jobs": [request(idempotency_key="k"), request("another", idempotency_key="k")]}, "key 'k' belongs to another line"),
        ({"jobs": [request(out="runs/a")]}, "'runs/a' is not a full path"),
        ({"jobs": [request(), request(prioritty=3)]}, r"no setting 'the request.jobs\[1\].prioritty' \(did you mean priority"),
        ({"jobs": [request(settings={"export": {"preview_size": 1}})]}, "preview_size is 1"),
        ({"jobs": [{"spec": {"kind": "video"}, "out": "/a"}]}, "of kind 'video'"),
        ({"jobs": [request(), request(priority=9999)]}, "Job 2 of this request: The priority is 9999"),
        ({"job": []}, "no setting 'the request.job'"),
    ],
)
def test_bad_requests_get_one_sentence_and_submit_nothing(rig: Rig, client: Client, body: dict, sentence: str):
    with pytest.raises(InputError, match=sentence):
        client.post("/v1/jobs", body)
    assert rig.ledger.jobs.recent() == []


def test_bad_calls(client: Client):
    for path, sentence in [
        ("/v1/jobs/7", "no job 7"),
        ("/v1/jobs?state=runing", r"no state 'runing' \(did you mean running"),
        ("/v1/jobs/seven", "."),
    ]:
        with pytest.raises(InputError, match=sentence):
            client.get(path)
    with pytest.raises(InputError, match=r"Not Found \(POST /v1/jobs/1/explode\)"):
        client.post("/v1/jobs/1/explode")


def table_request(**changes) -> dict:
    table = {"files": [{"name": "t.txt", "num_bytes": 9, "sha256": "a" * 64, "num_rows": 3}], "columns": {"prompt": "text"}}
    batch = {"prompts": "/tables/t.txt", "num_workers": 2}
    spec = {"kind": "batch-images", "table": table}
    return {"spec": spec, "out": "s3://bucket/out", "settings": {"batch": batch}} | changes


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (request(out="s3://bucket/out"), "'s3://bucket/out' is not a full path"),
        (table_request(settings={}), r"must say where its table lies: batch\.prompts"),
        (table_request(settings={"batch": {"prompts": "t.txt"}}), "The table 't.txt' is not a full path"),
        (table_request(settings={"batch": {"prompts": "/t.txt", "num_workers": 0}}), "--num-workers is 0"),
        (
            {"spec": ImagesSpec(prompt="a red table", init_image="a" * 64).to_json(), "out": "/runs/a"},
            "settings must say in which folder that lies: pictures",
        ),
    ],
)
def test_places_that_the_orchestrator_could_not_find(client: Client, body: dict, sentence: str):
    with pytest.raises(InputError, match=sentence):
        client.post("/v1/jobs", {"jobs": [body]})


def test_a_table_of_prompts_is_one_job_and_its_bad_rows_can_be_retried(rig: Rig, client: Client):
    (answer,) = client.post("/v1/jobs", {"jobs": [table_request()]})["jobs"]
    job = client.get(f"/v1/jobs/{answer['id']}")["job"]
    assert (job["kind"], job["out"]) == ("batch-images", "s3://bucket/out")
    assert job["settings"]["batch"]["num_workers"] == 2 and job["memory_bytes"] > 10**9
    for num_failed in (1, 0):
        rig.tick()
        rig.worker(job["id"]).reports = [Succeeded(metrics={"num_rows": 3, "num_failed": num_failed})]
        rig.tick()
        assert rig.state(job["id"]) == State.SUCCEEDED
        if num_failed:
            assert client.post(f"/v1/jobs/{job['id']}/retry")["state"] == "queued"
    with pytest.raises(InputError, match="only failed and cancelled jobs can be retried"):
        client.post(f"/v1/jobs/{job['id']}/retry")


def test_logs_are_read_in_pieces(rig: Rig, client: Client):
    (job,) = (answer["id"] for answer in client.post("/v1/jobs", {"jobs": [request()]})["jobs"])
    assert client.get(f"/v1/jobs/{job}/log") == {"text": "", "offset": 0, "is_over": False}
    rig.folder.job_log(job).write_bytes(b"one\ntwo\nhalf")
    answer = client.get(f"/v1/jobs/{job}/log")
    assert (answer["text"], answer["offset"]) == ("one\ntwo\n", 8)
    assert client.get(f"/v1/jobs/{job}/log", offset=8)["text"] == ""


def test_the_command_line_over_the_same_api(rig: Rig, client: Client, capsys, tmp_path):
    state = ["--state", str(rig.folder.path)]
    table = tmp_path / "table.csv"
    table.write_text("prompt,seed,priority,fit.num_steps\na red table,4,7,\na blue chair,,,33\n")
    assert main(["submit", "text-to-3d", "--prompts", str(table), "--out", str(tmp_path / "runs"), "--json", *state]) == 0
    answer = json.loads(capsys.readouterr().out)
    one, two = (client.get(f"/v1/jobs/{job['id']}")["job"] for job in answer["jobs"])
    assert (one["spec"]["seed"], one["priority"], two["spec"]["fit"]["num_steps"]) == (4, 7, 33)
    assert one["out"].startswith(str(tmp_path / "runs")) and one["out"] != two["out"]

    assert main(["submit", "text-to-3d", "a red table", "--best-of", "3", *state]) == 0
    assert "Job 5" in capsys.readouterr().out and rig.ledger.groups.undecided()[0].num_wanted == 1
    assert main(["submit", "images", "a red table", "--num-images", "2", "--key", "k", "--user", "bob", *state]) == 0
    assert main(["submit", "images", "a red table", "--num-images", "2", "--key", "k", "--user", "bob", *state]) == 0
    assert "submitted before" in capsys.readouterr().out

    picture, prompts = tmp_path / "start.png", tmp_path / "prompts.txt"
    write_png(np.full((16, 16, 3), 200, np.uint8), picture)
    prompts.write_text("a red table\na blue chair\n")
    assert main(["submit", "images", "a red table", "--init-image", str(picture), "--strict", "--json", *state]) == 0
    edit = client.get(f"/v1/jobs/{json.loads(capsys.readouterr().out)['jobs'][0]['id']}")["job"]
    copies = EditPictures.read_from(Path(edit["settings"]["pictures"]))
    assert copies.hashes["init_image"] == edit["spec"]["init_image"] and edit["spec"]["strict"]
    assert main(["submit", "images", "--prompts", str(prompts), "--shard-size", "1", "--json", *state]) == 0
    batch = client.get(f"/v1/jobs/{json.loads(capsys.readouterr().out)['jobs'][0]['id']}")["job"]
    assert batch["settings"]["batch"]["prompts"] == str(prompts) and batch["spec"]["shard_size"] == 1
    lease = rig.ledger.attempts.start(batch["id"], "w", seconds=30)
    drawn = {"num_rows": 1, "num_failed": 0, "seconds": 2.0, "worker": "process 7 on a", "num_attempts": 2}
    rig.ledger.shards.record(lease, [ShardRecord(index=0, **drawn)])
    assert client.get(f"/v1/jobs/{batch['id']}")["shards"] == {
        "num_shards": 2,
        "num_committed": 1,
        "num_rows": 1,
        "num_failed": 0,
        "seconds": 2.0,
        "num_begun_again": 1,
        "workers": {"process 7 on a": 1},
    }
    assert main(["jobs", "show", str(batch["id"]), *state]) == 0
    said = "1 of 2 committed by 1 process in 0:02 of work, 1 of them begun again after its process died"
    assert said in capsys.readouterr().out
    assert main(["submit", "images", "--prompts", str(prompts), "--key", "k", "--overwrite", *state]) == 2
    assert "exclude each other" in capsys.readouterr().err

    assert main(["jobs", "list", "--only", "queued", *state]) == 0
    listed = capsys.readouterr().out
    assert "a blue chair" in listed and "bob" in listed
    assert main(["jobs", "show", "6", *state]) == 0 and "queued: submitted" in capsys.readouterr().out
    assert main(["jobs", "pause", "1", "2", *state]) == 0 and "Job 2: paused" in capsys.readouterr().out
    assert main(["jobs", "resume", "3", *state]) == 2 and "only a paused job" in capsys.readouterr().err
    assert main(["jobs", "cancel", "1", "99", *state]) == 2
    captured = capsys.readouterr()
    assert "Job 1: cancelled" in captured.out and "no job 99" in captured.err
    assert main(["jobs", "watch", "1", *state]) == 0 and "job 1 cancelled" in capsys.readouterr().out
    assert main(["jobs", "logs", "1", *state]) == 0
    assert main(["status", *state]) == 0 and "0 of 2 workers busy" in capsys.readouterr().out
    assert main(["status", "--json", *state]) == 0 and json.loads(capsys.readouterr().out)["jobs"]["paused"] == 1


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("prompt,seed\na table,1\na chair,many\n", r"table.csv, row 2 \(line 3\): the seed is 'many'"),
        ("prompt,fit.num_step\na table,1\n", r"row 1 .*no setting 'fit.num_step'"),
        ("prompt,fit.num_steps\na table,few\n", "row 1 .*fit.num_steps is 'few'"),
        ("words\na table\n", "prompt"),
        ("prompt\n", "no prompts"),
        ("prompt,key\na table,k\na chair,k\n", "key 'k' belongs to another line"),
        (
            "prompt,priority\na table,1\na chair,5000\n",
            r"table.csv, row 2 \(line 3\): the priority is 5,000, but -1,000 to 1,000",
        ),
    ],
)
def test_tables_that_cannot_be_used(rig: Rig, capsys, tmp_path, table, sentence):
    path = tmp_path / "table.csv"
    path.write_text(table)
    assert main(["submit", "text-to-3d", "--prompts", str(path), "--state", str(rig.folder.path)]) == 2
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(capsys.readouterr().err)
    assert rig.ledger.jobs.recent() == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["submit", "text-to-3d", "a table", "--best-of", "1000000"], "--best-of is 1,000,000; give 1 to 1,000"),
        (["submit", "text-to-3d", "a table", "--best-of", "2", "--metric", "volum"], "no metric 'volum' (did you mean volume"),
        (["submit", "text-to-3d", "a table", "--metric", "volume"], "--metric chooses among the jobs of --best-of"),
        (["submit", "text-to-3d", "a table", "--prompts", "t.csv"], "There is a prompt ('a table') and a table of them"),
        (["submit", "images"], "There is no prompt"),
        (["submit", "images", "a table", "--overwrite"], "--overwrite does not go with the rest of the command"),
        (["down", "--timeout", "-1"], "'--timeout': '-1' should be greater than or equal to 0"),
    ],
)
def test_bad_usage_of_the_queue(rig: Rig, capsys, arguments, sentence):
    assert main([*arguments, "--state", str(rig.folder.path)]) == 2
    assert sentence in capsys.readouterr().err and rig.ledger.jobs.recent() == []


def test_watching_nothing(rig: Rig, capsys):
    assert main(["jobs", "watch", "--state", str(rig.folder.path)]) == 0
    assert capsys.readouterr().out == "No jobs.\n"


def test_shares_of_users(rig: Rig, client: Client, capsys):
    rig.submit(submission(1, user="ada"))
    state = ["--state", str(rig.folder.path)]
    assert main(["users", "weight", "ada", "2.5", *state]) == 0
    assert main(["users", "weight", "né/e", "3", "--json", *state]) == 0
    assert main(["users", "list", *state]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ada: weight 2.5",
        '{"ok": true, "name": "n\\u00e9/e", "weight": 3.0}',
        f"{'ada':24} weight 2.5, 0 s of work in the last day",
        f"{'né/e':24} weight 3, 0 s of work in the last day",
    ]
    assert rig.ledger.jobs.weights() == {"ada": 2.5, "né/e": 3.0}
    assert main(["users", "weight", "ada", "0", *state]) == 2
    assert "The weight of ada is 0, but a number above 0" in capsys.readouterr().err


def test_without_an_orchestrator(capsys, tmp_path):
    for command in (["status"], ["jobs", "list"], ["submit", "images", "a table"], ["jobs", "cancel", "1"]):
        assert main([*command, "--state", str(tmp_path)]) == 2
        assert "No orchestrator is running" in capsys.readouterr().err
    assert main(["down", "--state", str(tmp_path)]) == 0
    folder = StateFolder(tmp_path)
    folder.create()
    folder.announce(Endpoint(url="http://127.0.0.1:9", pid=1, ledger="x"))
    with pytest.raises(NotRunningError, match=r"does not answer .*'dreamkiln up' starts it again"):
        Client(folder).get("/health")


@pytest.mark.parametrize("port", [99_999, None])
def test_an_address_that_cannot_be_listened_at_is_named(rig: Rig, port: int | None):
    app = make_app(rig.ledger, rig.controller, rig.folder, rig.controller.close)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OutputError, match=r"Nothing can listen at 127\.0\.0\.1:\d+ .*choose another --port"):
            ApiServer(app, host="127.0.0.1", port=port or taken.getsockname()[1])


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a part of the path is a file, not a folder; choose another --state"):
        StateFolder(tmp_path / "file" / "state").create()


def raw(rig: Rig, method: str, path: str, body: bytes | None = None, *, token: str | None = None, **headers: str):
    """(status, parsed answer) of a request that no client of ours would send."""
    endpoint = rig.folder.endpoint()
    assert endpoint is not None
    address = urlsplit(endpoint.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    token = rig.folder.token() if token is None else token
    connection.request(method, path, body, {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **headers})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


BIG = "9" * 30


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", f"/v1/jobs/{BIG}", None, 404, "There is no job 9+; none has been submitted yet"),
        ("GET", "/v1/jobs/-1/log", None, 404, "There is no job -1"),
        ("POST", f"/v1/jobs/{BIG}/cancel", None, 404, "There is no job"),
        ("GET", "/v1/nothing", None, 404, r"Not Found \(GET /v1/nothing\)"),
        ("DELETE", "/v1/jobs", None, 405, "/v1/jobs may be asked to GET, POST, not to DELETE"),
        (
            "GET",
            f"/v1/jobs?before={BIG}",
            None,
            422,
            "before is '9+': input should be less than or equal to 92",
        ),
        ("GET", f"/v1/jobs?group={BIG}", None, 422, "group is '9+'"),
        ("GET", f"/v1/jobs/1/log?offset={BIG}", None, 422, "offset is '9+'"),
        ("GET", "/v1/jobs?limit=x", None, 422, "limit is 'x': input should be a valid integer"),
        ("GET", "/v1/jobs?user=%00", None, 422, r"The user is '\\x00', which holds the character U\+0000"),
        ("GET", "/v1/jobs?fingerprint=%1b", None, 422, r"U\+001B at position 0"),
        ("PUT", "/v1/users/%1b%5b31m?weight=1", None, 422, "The user is .*1 to 200 printable characters were expected"),
        ("PUT", "/v1/users/%00?weight=1", None, 422, "The user is"),
        ("PUT", f"/v1/users/{'x' * 5000}?weight=1", None, 422, "The user is 'x{60}', but 1 to 200"),
        ("PUT", "/v1/users/ada?weight=abc", None, 422, "weight is 'abc'"),
        ("POST", "/v1/jobs", b"{", 422, "The request is not JSON"),
        ("POST", "/v1/jobs", b"[" * 200_000, 400, "error parsing the body"),
        ("POST", "/v1/jobs", b'{"jobs": ' + b"9" * 10_000 + b"}", 400, "error parsing the body"),
        ("POST", "/v1/jobs", b'{"jobs": "\xff"}', 400, "error parsing the body"),
    ],
)
def test_nothing_that_a_client_sends_is_an_error_of_ours_and_all_have_one_shape(rig: Rig, method, path, body, status, words):
    found, answer = raw(rig, method, path, body)
    assert found == status and set(answer) == {"error", "kind", "exit_code"} and answer["exit_code"] == 2
    with pytest.raises(InputError, match=words):
        raise InputError(answer["error"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_bytes": 10**30}, r"memory_bytes is 1e\+30; give 0 to 1e\+15 bytes"),
        ({"max_failures": 10**30}, r"max_failures is 1e\+30; give 1 to 1,000,000 attempts"),
        ({"out": "/runs/\x1b[31mred"}, r"The run folder is .*U\+001B at position 6"),
        ({"out": "/runs/a\nb"}, r"The run folder is .*U\+000A"),
        ({"out": "/runs/a\u202eb"}, r"The run folder is .*U\+202E"),
        ({"out": "/" + "x" * 5000}, "The run folder has 5,001 characters, but at most 4,096"),
        ({"user": "\x1b[31mred"}, "The user is"),
        ({"settings": {"pictures": "/a\0b"}}, "The folder of pictures is"),
        ({"spec": {**TextTo3DSpec(prompt="a table").to_json(), "prior": "\x1btoybox"}}, "The prior is"),
        (
            {"spec": {**TextTo3DSpec(prompt="a table").to_json(), "prior": "/etc"}},
            "/etc is a folder without a model_index",
        ),
        ({"spec": {**TextTo3DSpec(prompt="a table").to_json(), "prior": "/etc/passwd"}}, "/etc/passwd is no file of weights"),
        ({"spec": {**TextTo3DSpec(prompt="a table").to_json(), "prior": "https://x/y"}}, "The prior 'https://x/y' is neither"),
    ],
)
def test_a_job_that_could_not_be_kept_shown_or_drawn_is_refused_before_it_is_queued(client: Client, changes, words):
    with pytest.raises(InputError, match=words):
        client.post("/v1/jobs", {"jobs": [{**request(), **changes}]})
    assert client.get("/v1/jobs")["jobs"] == []


def test_letters_of_every_script_may_name_a_folder(client: Client):
    for out in ("/runs/日本\u3000語", "/runs/ünï \xa0", "/runs/שלום", "/runs/👨\u200d👩"):
        (job,) = client.post("/v1/jobs", {"jobs": [request(out=out)]})["jobs"]
        assert job["out"] == out
        client.post(f"/v1/jobs/{job['id']}/cancel")


def test_a_body_is_not_read_without_the_token_and_bounded_with_it(rig: Rig):
    """Sent in chunks that never end: the refusal comes all the same."""
    endpoint = rig.folder.endpoint()
    assert endpoint is not None
    address = urlsplit(endpoint.url)
    for token, status in (("wrong", b"401"), ("", b"401")):
        with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
            head = f"POST /v1/jobs HTTP/1.1\r\nHost: [::1]\r\nAuthorization: Bearer {token}\r\n"
            connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n10\r\n" + b"x" * 16 + b"\r\n")
            assert connection.recv(200).split()[1] == status
    status, answer = raw(rig, "POST", "/v1/jobs", b"", **{"Content-Length": str(10**10)})
    assert status == 413 and "longer than 67,108,864 bytes" in answer["error"]


def test_half_a_request_is_waited_for_so_long_and_one_that_goes_on_slowly_is_answered(rig: Rig, monkeypatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.6)
    address = urlsplit(rig.folder.endpoint().url)
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    for sent in (b"", head, head + b"\r\nGET /hea"):
        with socket.create_connection((address.hostname, address.port), timeout=10) as client:
            client.sendall(sent)
            begin, answer = time.monotonic(), b""
            with contextlib.suppress(ConnectionResetError):
                while data := client.recv(1000):
                    answer += data
            assert 0.4 < time.monotonic() - begin < 20 and answer.count(b"200 OK") == sent.count(b"\r\n\r\n")
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {rig.folder.token()}\r\n"
        "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=10) as client:
        client.sendall(head.encode() + b"{")
        time.sleep(1)
        client.sendall(b"}")
        assert client.recv(1000).startswith(b"HTTP/1.1 4")


def test_connections_beyond_a_bound_end_those_that_have_asked_nothing_for_longest(rig: Rig, monkeypatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(server, "HEADER_SECONDS", 60.0)
    address = urlsplit(rig.folder.endpoint().url)
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_connection((address.hostname, address.port), timeout=5)) for _ in range(40)]
        held[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert held[-1].recv(100).startswith(b"HTTP/1.1 200")
        deadline, closed = time.monotonic() + 20, []
        while len(closed) < 20 and time.monotonic() < deadline:
            closed, _, _ = select.select(held[:-1], [], [], 0.1)
        assert closed == held[:20]


def test_a_token_that_a_full_disk_left_empty_lets_nobody_in_and_is_replaced_at_the_next_start(tmp_path: Path):
    folder = StateFolder(tmp_path / "state")
    folder.create()
    token = folder.token()
    folder.create()
    assert folder.token() == token
    folder.token_file.write_text("")
    with pytest.raises(InputError, match=r"token .* is empty, as a full disk may leave it"):
        folder.token()
    folder.create()
    assert len(folder.token()) >= 32 and folder.token() != token
    assert [path.name for path in folder.path.iterdir() if path.name.startswith(".writing")] == []


def test_a_full_disk_leaves_no_token_at_all(small_disk: Path):
    ballast = small_disk / "ballast"
    (small_disk / "state" / "logs").mkdir(parents=True)
    (small_disk / "state" / "ledger.db").touch()
    (small_disk / "state" / "daemon.log").touch()
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    folder = StateFolder(small_disk / "state")
    with pytest.raises(OutputError, match="the disk is full"):
        folder.create()
    assert not folder.token_file.exists()
    ballast.unlink()
    folder.create()
    assert len(folder.token()) >= 32


def test_what_the_orchestrator_keeps_is_its_owners_alone(tmp_path: Path):
    folder = StateFolder(tmp_path / "state")
    (tmp_path / "state" / "logs").mkdir(parents=True, mode=0o755)
    (tmp_path / "state" / "daemon.log").touch(mode=0o644)
    folder.create()
    folder.announce(Endpoint(url="http://x", pid=1, ledger="x"))
    JobLog(folder, 7, lambda: 0.0).write("a \x1b[31mred\u202e word")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "state").rglob("*")}
    assert {mode for name, mode in modes.items() if name != "logs"} == {0o600} and modes["logs"] == 0o700
    assert folder.job_log(7).read_text() == "1970-01-01 00:00:00 a \\u001b[31mred\\u202e word\n"
    assert StateFolder(tmp_path / "new").create() is None and (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_a_backup_that_is_taken_while_jobs_come_in_is_a_whole_ledger(rig: Rig, client: Client, tmp_path: Path):
    """As docs/orchestrator.md has it; a copy of the one file would lack what still stands in the journal beside it."""
    client.post("/v1/jobs", {"jobs": [request()]})
    live, backup = (sqlite3.connect(path) for path in (rig.folder.path / "ledger.db", tmp_path / "backup.db"))
    with contextlib.closing(live), contextlib.closing(backup):
        live.backup(backup)
    client.post("/v1/jobs", {"jobs": [request("a blue chair")]})
    with Ledger.own(f"sqlite:///{tmp_path / 'backup.db'}", name="restored") as restored:
        assert [job.spec["prompt"] for job in restored.jobs.recent()] == ["a red table"]
    assert len(client.get("/v1/jobs")["jobs"]) == 2


def test_jobs_prune(rig: Rig, client: Client, capsys):
    for prompt in ("a red table", "a blue chair", "a duck"):
        number = client.post("/v1/jobs", {"jobs": [request(prompt, user="ada")]})["jobs"][0]["id"]
        JobLog(rig.folder, number, lambda: 0.0).write("x" * 979)
        client.post(f"/v1/jobs/{number}/cancel")
    state = ["--state", str(rig.folder.path)]
    rig.clock.advance(3600)
    for arguments, code, words in [
        (["--older-than", "2h"], 0, "No job to forget ended more than 2h ago."),
        (["--older-than", "30m", "--user", "bob"], 0, "No job to forget ended more than 30m ago."),
        (["--older-than", "30m", "--dry-run"], 0, "Would forget 2 jobs and 2 logs (0.0 MB); run folders stay."),
        (["--older-than", "0.5h", "--user", "ada"], 0, "Forgot 2 jobs and 2 logs (0.0 MB); run folders stay."),
        (["--older-than", "soon"], 2, "--older-than is 'soon'; give a number and a unit, such as 30d, 12h, 90m or 0d."),
    ]:
        assert main(["jobs", "prune", *arguments, *state]) == code
        assert words in "".join(capsys.readouterr())
    assert [job["id"] for job in client.get("/v1/jobs")["jobs"]] == [3]
    assert main(["jobs", "prune", "--older-than", "0d", "--json", *state]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"ok": True, "jobs": [], "num_jobs": 0, "num_logs": 0, "num_pictures": 0, "num_bytes": 0}
    with pytest.raises(InputError, match="older_than_seconds is '-1'"):
        client.post("/v1/prune?older_than_seconds=-1")


def test_everything_that_is_wrong_with_a_table_is_said_at_once(rig: Rig, client: Client, tmp_path: Path, capsys):
    rows = ["a red table,1,", "a blue chair,x,", ",2,", "a duck,3,0", "a house,4,20", "!!!,5,", "a cat,-6,"]
    (tmp_path / "t.csv").write_text("prompt,seed,fit.num_steps\n" + "\n".join(rows) + "\n")
    command = ["submit", "text-to-3d", "--prompts", str(tmp_path / "t.csv"), "--state", str(rig.folder.path)]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"5 rows of {tmp_path / 't.csv'} cannot be used, so none is queued: t.csv, row 2 (line 3): the seed is 'x'" in said
    assert [number for number in range(1, 8) if f"row {number} " in said] == [2, 3, 4, 6, 7]
    assert client.get("/v1/jobs")["jobs"] == []


def test_a_prior_is_read_to_its_last_number_before_a_job_for_it_is_queued(rig: Rig, client: Client, tmp_path: Path):
    """Its header is whole and every file has its size: only who reads all of it sees what a failed merge left."""
    broken = shutil.copytree(TOYBOX, tmp_path / "broken", ignore=shutil.ignore_patterns("judge", "clip"))
    file = max((broken / "unet").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-4] + struct.pack("<f", float("nan")))
    job = {"spec": TextTo3DSpec(prompt="a red table", prior=str(broken)).to_json(), "out": "/runs/x"}
    with pytest.raises(InputError, match=rf"The weights in {broken}/unet hold numbers that are not finite"):
        client.submit([request(), job])
    begin = time.monotonic()
    with pytest.raises(InputError, match="not finite"):
        client.submit([job])
    assert time.monotonic() - begin < 1, "it was read again"
    shutil.copyfile(next(TOYBOX.glob(f"unet/{file.name}")), file)
    client.submit([job])
    assert [job["spec"]["prior"] for job in client.get("/v1/jobs")["jobs"]] == [str(broken)]
