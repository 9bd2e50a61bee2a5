"""`dreamkiln --url`: over a real socket, with workers that leave files at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.prior import TOYBOX
from orchestrator.cli.main import main
from orchestrator.exports import write_png
from tests.orchestrator.daemon.test_api_guard import Api
from tests.orchestrator.daemon.test_dialects import api, picture  # noqa: F401 - a fixture


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


def test_a_program_submits_there_and_waits(api: Api, url: str, tmp_path: Path):  # noqa: F811
    import dreamkiln

    job = dreamkiln.images_job("a green chair", {"images.num_images": 1}, seed=3, out=tmp_path / "out")
    submitted = dreamkiln.submit(job, client=dreamkiln.connect(url))
    outcome = submitted.wait()
    assert outcome.folder == tmp_path / "out"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "000000000.png")), picture(3))


def test_what_cannot_be_done_over_a_url_is_said(url: str, capsys, monkeypatch):
    for arguments, words in (
        (
            ["submit", "text-to-3d", "a table", "--best-of", "2", "--url", url],
            "--best-of is for the orchestrator's own machine",
        ),
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
