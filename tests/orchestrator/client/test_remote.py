"""`dreamkiln --url`: over a real socket, with workers that leave files at once."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image
from safetensors.numpy import save

from diffusion.prior import TOYBOX
from orchestrator.cli.main import main
from orchestrator.client.prepared_job import compose_here, prepare_texture
from orchestrator.exports import write_png
from orchestrator.run.folder import CHECKPOINT
from orchestrator.run.given_mesh import GivenMesh
from tests.orchestrator.daemon.test_api_guard import Api
from tests.orchestrator.daemon.test_dialects import api, picture  # noqa: F401 - a fixture


def write_finished_run(out: Path, spec: dict) -> None:
    """What an export reads of a run before it is queued."""
    (out / "manifest.json").write_text(json.dumps({"kind": "text-to-3d", "spec": spec, "settings": {}}))
    (out / CHECKPOINT).write_bytes(save({"field": np.zeros(1, np.float32)}, metadata={"step": "2"}))


@pytest.fixture
def url(api: Api, monkeypatch) -> str:  # noqa: F811
    monkeypatch.setenv("DREAMKILN_TOKEN", api.tokens["submit"])
    return f"http://127.0.0.1:{api.port}"


def test_pictures_are_made_there_and_come_here(api: Api, url: str, tmp_path: Path, capsys):  # noqa: F811
    command = [
        "images",
        "a blue chair",
        "--num-images",
        "2",
        "--seed",
        "7",
        "--out",
        str(tmp_path / "out"),
        "--url",
        url,
        "--json",
    ]
    for _ in range(2):  # repeated, nothing is fetched again
        assert main(command) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer["folder"] == str(tmp_path / "out")
    for index in range(2):
        found = np.asarray(Image.open(tmp_path / "out" / f"{index:09d}.png"))
        assert np.array_equal(found, picture(7 + index))


def test_what_is_submitted_there_is_what_would_run_here(api: Api, url: str, tmp_path: Path, capsys, monkeypatch):  # noqa: F811
    from orchestrator.client.prepared_job import compose_here, prepare_images, prepare_text_to_3d

    monkeypatch.setenv("DREAMKILN_URL", url)
    overrides = ["fit.num_steps=33", "field=hash_grid", "mesh.max_faces=500"]
    assert (
        main(
            ["submit", "text-to-3d", "a red table", *overrides, "--preset", "draft", "--key", "k", "--priority", "3", "--json"]
        )
        == 0
    )
    (made,) = json.loads(capsys.readouterr().out)["jobs"]
    job = api.ok("read", "GET", f"/v1/jobs/{made['id']}")["job"]
    here = prepare_text_to_3d("a red table", compose_here(overrides, {"preset": "draft"}), seed=0, out=None)
    assert job["spec"] == json.loads(json.dumps(here.spec.to_json())) and (job["user"], job["priority"]) == ("submit-user", 3)

    write_png(picture(5), tmp_path / "start.png")
    assert (
        main(["submit", "images", "a house", "--init-image", str(tmp_path / "start.png"), "--strength", "0.5", "--json"]) == 0
    )
    (made,) = json.loads(capsys.readouterr().out)["jobs"]
    job = api.ok("read", "GET", f"/v1/jobs/{made['id']}")["job"]
    edit = prepare_images(
        "a house", compose_here([], {"images.strength": 0.5}), seed=0, out=None, init_image=tmp_path / "start.png"
    )
    assert job["spec"] == json.loads(json.dumps(edit.spec.to_json()))

    (tmp_path / "prompts.csv").write_text("prompt\na red table\n")
    table = ["submit", "images", "--prompts", str(tmp_path / "prompts.csv"), "--shard-size", "10", "--paused", "--json"]
    assert main(table) == 0
    (made,) = json.loads(capsys.readouterr().out)["jobs"]
    job = api.ok("read", "GET", f"/v1/jobs/{made['id']}")["job"]
    assert job["spec"]["table"]["files"][0]["num_rows"] == 1 and (job["spec"]["shard_size"], job["state"]) == (10, "paused")
    assert main(["jobs", "cancel", str(made["id"])]) == 0 and main(["jobs", "list"]) == 0 and main(["status"]) == 0


def test_the_best_of_several_seeds_is_a_group_there(api: Api, url: str, capsys):  # noqa: F811
    command = ["submit", "text-to-3d", "a blue vase", "--best-of", "3", "--seed", "5", "--metric", "volume", "--key", "v"]
    for is_new in (True, False):
        assert main([*command, "--paused", "--url", url, "--json"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert [job["is_new"] for job in answer["jobs"]] == [is_new] * 3
    jobs = api.ok("read", "GET", f"/v1/jobs?group={answer['group']}")["jobs"]
    assert sorted(job["spec"]["seed"] for job in jobs) == [5, 6, 7] and {job["state"] for job in jobs} == {"paused"}
    assert len({job["out"] for job in jobs}) == 3 and {job["settings"]["runtime"]["preview_every"] for job in jobs} == {40}
    (group,) = [one for one in api.rig.ledger.groups.undecided() if one.id == answer["group"]]
    assert group.metric == "volume"
    for job in jobs:
        api.ok("submit", "POST", f"/v1/jobs/{job['id']}/cancel")
    form = {"prompt": "a blue vase", "num_seeds": 2000}
    assert api("submit", "POST", "/v1/best-of", form)[0] == 422


def test_an_export_is_made_there_of_a_job_there_and_its_files_come_here(api: Api, url: str, tmp_path: Path, capsys):  # noqa: F811
    made = api.ok("submit", "POST", "/v1/text-to-3d", {"prompt": "a red vase", "out": "vase", "settings": {"fit.num_steps": 2}})
    while api.ok("read", "GET", f"/v1/jobs/{made['id']}")["job"]["state"] != "succeeded":
        time.sleep(0.05)
    assert main(["export", str(made["id"]), "--url", url]) == 2
    assert "is not a run folder" in capsys.readouterr().err  # nothing was fitted there
    write_finished_run(Path(made["out"]), made["job"]["spec"])
    command = ["export", str(made["id"]), "mesh.max_faces=500", "--format", "glb,stl", "--out", str(tmp_path / "out")]
    assert main([*command, "--url", url, "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["runs"]
    assert run["folder"] == str(tmp_path / "out") and (tmp_path / "out" / "mesh.stl").read_bytes() == b"an export's mesh.stl"
    newest = api.ok("read", "GET", "/v1/jobs?limit=1")["jobs"][0]
    assert newest["kind"] == "export" and newest["spec"]["run"] == made["out"]
    assert newest["spec"]["settings"] == {"mesh.max_faces": "500", "export.formats": '["glb","stl"]'}
    assert main(["submit", "export", str(made["id"]), "--paused", "--url", url, "--json"]) == 0
    api.ok("submit", "POST", f"/v1/jobs/{json.loads(capsys.readouterr().out)['jobs'][0]['id']}/cancel")


def test_a_mesh_is_sent_to_be_painted_there(api: Api, url: str, tmp_path: Path, capsys):  # noqa: F811
    for name in ("ball.glb", "ball.obj"):
        trimesh.creation.icosphere(subdivisions=2).export(tmp_path / name)
    command = ["submit", "texture", str(tmp_path / "ball.glb"), "a red ball", "--seed", "3", "--steps", "9", "--url", url]
    settings = ["texture.keep_texture=true", "distillation.t_max_start=0.5"]
    assert main([*command, *settings, "--paused", "--json"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["jobs"]
    job = api.ok("read", "GET", f"/v1/jobs/{made['id']}")["job"]
    given = GivenMesh.read(tmp_path / "ball.glb")
    here = prepare_texture(
        given, "a red ball", compose_here([*settings, "texture.num_steps=9"], {}), seed=3, out=tmp_path / "out"
    )
    assert job["spec"] == json.loads(json.dumps(here.spec.to_json())) and job["kind"] == "texture"
    kept = Path(job["settings"]["mesh"])
    assert kept.read_bytes() == (tmp_path / "ball.glb").read_bytes() and kept.name == f"{given.digest}.glb"
    again = {"settings": {"texture.num_steps": 5}, "paused": True}
    status, answer, _ = api("submit", "POST", f"/v1/jobs/{made['id']}/again", again)
    assert status == 201 and answer["job"]["spec"]["texture"]["num_steps"] == 5
    for number in (made["id"], answer["id"]):
        api.ok("submit", "POST", f"/v1/jobs/{number}/cancel")
    assert main(["submit", "texture", str(tmp_path / "ball.obj"), "a red ball", "--url", url]) == 2
    assert "may need files beside it" in capsys.readouterr().err
    status, answer, _ = api("submit", "POST", "/v1/textures", {"prompt": "a red ball", "mesh": made["id"]})
    assert status == 409 and "has no mesh.glb" in answer["error"]
    status, answer, _ = api("submit", "POST", "/v1/textures", {"prompt": "a red ball", "mesh": "0" * 64})
    assert status == 404 and "has no upload" in answer["error"]


def test_a_program_submits_there_and_waits(api: Api, url: str, tmp_path: Path):  # noqa: F811
    import dreamkiln

    job = dreamkiln.images_job("a green chair", {"images.num_images": 1}, seed=3, out=tmp_path / "out")
    submitted = dreamkiln.submit(job, client=dreamkiln.connect(url))
    outcome = submitted.wait()
    assert outcome.folder == tmp_path / "out"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "000000000.png")), picture(3))


def test_what_cannot_be_done_over_a_url_is_said(url: str, capsys, monkeypatch):
    for arguments, words in (
        (["export", "runs/a", "--url", url], "names a job there by its number, but 'runs/a' was given"),
        (["export", "99", "--url", url], "no job 99"),
        (["submit", "export", "1", "fit.num_steps=3", "--url", url], "fit.num_steps cannot be changed by an export"),
        (
            ["submit", "text-to-3d", "a table", "--clip", str(TOYBOX / "judge"), "--url", url],
            "--clip names a folder of this machine",
        ),
        (["submit", "text-to-3d", "a table", "--clip", "nowhere", "--url", url], "nowhere holds no CLIP"),
        (["status", "--url", "kiln"], "The orchestrator's address is 'kiln'"),
        (["status", "--url", "http://127.0.0.1:9"], "does not answer"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err
    monkeypatch.delenv("DREAMKILN_TOKEN")
    assert main(["status", "--url", url]) == 2 and "needs a token" in capsys.readouterr().err
