"""OpenAI's images API with OpenAI's client, and Hunyuan3D's server: real sockets, workers that leave files at once."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from jobs.errors import InputError
from jobs.states import State
from orchestrator.daemon.http.dialects import _size_settings
from orchestrator.daemon.http.routes import make_app
from orchestrator.daemon.http.server import ApiServer
from orchestrator.daemon.reports import Failed, FailureKind, Succeeded
from orchestrator.exports import write_png
from tests.orchestrator.daemon.test_api_guard import Api
from tests.orchestrator.daemon.test_controller import Rig


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def do(rig: Rig, stop: threading.Event) -> None:
    """Finish whatever was started: picture i is a function of its seed, a mesh is its prompt."""
    while not stop.wait(0.02):
        rig.tick()
        for job in rig.ledger.jobs.recent(states=[State.RUNNING]):
            out = Path(job.out)
            out.mkdir(parents=True, exist_ok=True)
            if job.kind == "export":
                files = {f"mesh.{name}": b"an export's " for name in json.loads(job.spec["settings"]["export.formats"])}
                for name, data in files.items():
                    (out / name).write_bytes(data + name.encode())
                whole = {name: (out / name).read_bytes() for name in files}
                artefacts = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in whole.items()}
                rig.worker(job.id).reports = [Succeeded(artefacts=artefacts)]
            elif job.spec["prompt"] == "a failure":
                rig.worker(job.id).reports = [Failed(FailureKind.BAD_INPUT, "It cannot be drawn.")]
            elif job.spec["prompt"] == "a collapse":
                rig.worker(job.id).reports = [Failed(FailureKind.COLLAPSED, "It has collapsed.")]
            elif job.kind == "images":
                for index in range(job.spec["num_images"]):
                    write_png(picture(job.spec["seed"] + index), out / f"{index:09d}.png")
                files = {path.name: path.read_bytes() for path in out.glob("*.png")}
                artefacts = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()}
                rig.worker(job.id).reports = [Succeeded(artefacts=artefacts)]
            else:
                (out / f"mesh.{job.spec['formats'][0]}").write_bytes(b"glTF" + job.spec["prompt"].encode())
                rig.worker(job.id).reports = [Succeeded()]
        rig.tick()


@pytest.fixture(scope="module")
def api(tmp_path_factory) -> Iterator[Api]:
    rig = Rig(tmp_path_factory.mktemp("dialects") / "state")
    server = ApiServer(make_app(rig.ledger, rig.controller, rig.folder, rig.controller.close), host="127.0.0.1", port=0)
    server.start()
    stop = threading.Event()
    thread = threading.Thread(target=do, args=(rig, stop))
    thread.start()
    yield Api(rig, int(server.url.rpartition(":")[2]))
    stop.set()
    thread.join()
    server.stop()
    rig.ledger.close()


@pytest.fixture(scope="module")
def client(api: Api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{api.port}/v1", api_key=api.tokens["submit"], max_retries=0, timeout=60
    ) as made:
        yield made


def pixels(data: str | None) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data or ""))))


def test_openai_draws_the_same_pixels_as_the_job(api: Api, client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["toybox"]
    extra = {"seed": 7, "steps": 3, "guidance_scale": 2.5, "negative_prompt": "a red table"}
    answer = client.images.generate(model="toybox", prompt="a blue chair", n=2, size="64x64", extra_body=extra)  # type: ignore[call-overload]
    assert [np.array_equal(pixels(one.b64_json), picture(7 + index)) for index, one in enumerate(answer.data)] == [True, True]
    spec = api.ok("read", "GET", f"/v1/jobs/{answer.model_extra['job']}")["job"]["spec"]
    assert (spec["seed"], spec["num_steps"], spec["guidance_scale"], spec["negative_prompt"]) == (7, 3, 2.5, "a red table")
    url = client.images.generate(prompt="a blue chair", response_format="url").data[0].url
    status, found, _ = api("read", "GET", url.partition(str(api.port))[2])
    assert status == 200 and np.array_equal(np.asarray(Image.open(io.BytesIO(found))), picture(0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": "1024x1024"}, "The size is '1024x1024', but the prior 'toybox' draws 64x64"),
        ({"n": 17}, "n is 17: input should be less than or equal to 16"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_openai_is_told_what_cannot_be_in_its_own_shape(client: openai.OpenAI, given: dict[str, Any], words: str):
    with pytest.raises(openai.BadRequestError, match=words) as raised:
        client.images.generate(**{"prompt": "a table", **given})
    assert raised.value.type == "invalid_request_error"


def test_openai_edits_with_a_mask_that_is_transparent_where_it_changes(api: Api, client: openai.OpenAI):
    image, mask = io.BytesIO(), io.BytesIO()
    Image.fromarray(picture(1)).save(image, "PNG")
    alpha = np.full((64, 64, 4), 255, np.uint8)
    alpha[:32, :, 3] = 0
    Image.fromarray(alpha).save(mask, "PNG")
    answer = client.images.edit(
        image=("a.png", image.getvalue()),
        mask=("m.png", mask.getvalue()),
        prompt="a house",
        extra_body={"seed": 3, "strength": 0.7},
    )
    assert np.array_equal(pixels(answer.data[0].b64_json), picture(3))
    job = api.ok("read", "GET", f"/v1/jobs/{answer.model_extra['job']}")["job"]
    kept = Path(job["settings"]["pictures"])
    assert job["spec"]["strength"] == 0.7 and np.array_equal(np.asarray(Image.open(kept / "init.png")), picture(1))
    white = np.asarray(Image.open(kept / "mask.png").convert("L")) == 255
    assert white[:32].all() and not white[32:].any()


def test_a_job_that_fails_is_an_error_of_who_is_to_blame(client: openai.OpenAI):
    with pytest.raises(openai.BadRequestError, match=r"failed: It cannot be drawn\."):
        client.images.generate(prompt="a failure")
    with pytest.raises(openai.InternalServerError, match=r"failed: It has collapsed\."):
        client.images.generate(prompt="a collapse")


def test_a_size_reaches_the_job_of_a_prior_of_free_text_and_is_refused_where_it_is_none():
    assert _size_settings("512x768", "sd15.safetensors") == {"images.width": 512, "images.height": 768}
    assert _size_settings("auto", "sd15.safetensors") == _size_settings("64x64", "toybox") == _size_settings(None, "x") == {}
    with pytest.raises(InputError, match="the prior 'toybox' draws 64x64"):
        _size_settings("512x768", "toybox")
    with pytest.raises(InputError, match="size is 'large', but width and height such as 512x768"):
        _size_settings("large", "sd15.safetensors")


def test_pictures_of_another_size_and_spacing_by_their_settings(api: Api):
    settings = {"images.width": 96, "images.height": 48, "images.timestep_spacing": "trailing"}
    job = api.ok("submit", "POST", "/v1/images", {"prompt": "a chair", "settings": settings, "paused": True})["job"]
    assert {name: job["spec"][name.partition(".")[2]] for name in settings} == settings
    for value, words in (({"images.width": 7}, "width is 7, but 8 to 16,384"), ({"images.timestep_spacing": "x"}, "spacing")):
        status, answer, _ = api("submit", "POST", "/v1/images", {"prompt": "a chair", "settings": value})
        assert status == 422 and words in answer["error"], answer


def test_hunyuan_makes_meshes_of_text_at_once_and_later(api: Api):
    status, mesh, got = api(
        "submit", "POST", "/generate", {"text": "a red table", "seed": 5, "texture": False, "face_count": 500}
    )
    assert (status, mesh, got["content-type"]) == (200, b"glTFa red table", "model/gltf-binary")
    uid = api.ok("submit", "POST", "/send", {"text": "a blue chair", "num_inference_steps": 20})["uid"]
    answer = {"status": "processing"}
    while answer["status"] == "processing":
        answer = api.ok("submit", "GET", f"/status/{uid}")
    assert base64.b64decode(answer["model_base64"]) == b"glTFa blue chair"
    spec = api.ok("read", "GET", f"/v1/jobs/{uid}")["job"]["spec"]
    assert spec["fit"]["num_steps"] == 20 and spec["seed"] == 1234
    status, refused, _ = api("submit", "POST", "/send", {"image": "aGVsbG8="})
    assert status == 422 and "Only sentences can be made into meshes" in refused["error"]
    assert api("submit", "GET", "/status/99999")[0] == 404
