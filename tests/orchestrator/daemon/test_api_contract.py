"""What the API's schema says of its values holds: to the bound they are taken, beyond it refused. All of it: schemathesis."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import codec
from jobs.errors import InputError
from orchestrator.daemon.http.making import composed
from orchestrator.daemon.http.meanings import JOINT, settings_schema
from orchestrator.settings.compose import compose
from tests.orchestrator.daemon.test_api_guard import Api, api  # noqa: F401 - a fixture

TABLES = compose([]).tables()


def is_taken(name: str, value: Any) -> bool:
    group, _, key = name.partition(".")
    owner, _ = TABLES[group]
    try:
        codec.from_plain(owner, {key: value, **({"prompt": "any"} if group == "images" else {})})
    except InputError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fit.num_steps", {"type": "integer", "minimum": 1, "maximum": 1_000_000}),
        ("fit.radius", {"type": "number", "exclusiveMinimum": 1.0, "maximum": 100.0}),
        ("fit.occupancy_threshold", {"type": "number", "minimum": 0.0, "exclusiveMaximum": 1.0}),
        ("field.resolutions", {"type": "array", "items": {"type": "integer", "minimum": 2, "maximum": 512}, "minItems": 1}),
        ("mesh.texture_size", {"enum": [0, 64, 128, 256, 512, 1024, 2048, 4096]}),
        ("export.turntable_size", {"type": "integer", "multipleOf": 2, "minimum": 16, "maximum": 4096}),
        ("images.timestep_spacing", None),
        ("fit.num_views", {"type": "integer"}),
    ],
)
def test_settings_are_told_with_the_bounds_that_their_own_checks_have(name: str, said: dict | None):
    schema = settings_schema()["properties"][name]
    if said is None:
        assert schema["anyOf"][1] == {"type": "null"} and "karras" in schema["anyOf"][0]["enum"]
    else:
        assert schema == said


def test_at_every_bound_a_setting_is_taken_and_beyond_it_refused():
    num = 0
    for name, schema in settings_schema()["properties"].items():
        if name in JOINT or schema.get("type") not in ("integer", "number") or "multipleOf" in schema:
            continue
        for bound, beyond in (("minimum", -math.inf), ("maximum", math.inf)):
            exclusive = f"exclusive{bound.capitalize()}"
            if bound in schema:
                edge = schema[bound]
                step = edge + math.copysign(1, beyond) if schema["type"] == "integer" else math.nextafter(edge, beyond)
                assert is_taken(name, edge) and not is_taken(name, step), name
                num += 1
            elif exclusive in schema:
                assert not is_taken(name, schema[exclusive]) and is_taken(name, math.nextafter(schema[exclusive], -beyond)), (
                    name
                )
                num += 1
    assert num > 80
    assert composed({"fit.radius": 100.0}).fit.radius == 100.0
    with pytest.raises(InputError, match=r"radius is 1\.0"):
        composed({"fit.radius": 1.0})


def test_the_schema_names_every_setting_but_the_prior_and_who_may_call(api: Api):  # noqa: F811
    schema = api.ok("nobody", "GET", "/openapi.json")
    listed = api.ok("read", "GET", "/v1/settings")["groups"].values()
    names = {one["name"] for group in listed for one in group["settings"]} - {"prior.source"}
    models = schema["components"]["schemas"]
    assert names <= set(models["Settings"]["properties"]) and not models["Settings"]["additionalProperties"]
    assert models["ImagesForm"]["properties"]["settings"] == {"$ref": "#/components/schemas/Settings"}
    assert {name.partition(".")[0] for name in models["ExportSettings"]["properties"]} == {"mesh", "export"}
    assert models["ImagesForm"]["properties"]["seed"]["maximum"] == 2**63 - 2**20
    paths = schema["paths"]
    assert paths["/health"]["get"]["security"] == [] and paths["/v1/jobs"]["get"]["security"] == [{"token": []}]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/images", {"prompt": "a", "seed": 7.0, "paused": True, "out": "seven"}, 201, ""),
        ("/v1/images", {"prompt": "a", "seed": "7"}, 422, "seed is '7': input should be a valid integer"),
        ("/v1/images", {"prompt": "a", "paused": 1}, 422, "paused is 1: input should be a valid boolean"),
        ("/v1/images", {"prompt": "🍄"}, 422, "holds no letter or digit"),
        ("/v1/images", {"prompt": "a", "strength": 0.5}, 422, "there is none; give init_image too"),
        ("/v1/text-to-3d", {"prompt": "a", "formats": []}, 422, "formats is"),
        ("/v1/text-to-3d", {"prompt": "a", "out": "/etc/cron.d/x"}, 403, "is a path, which only the owner may name"),
        ("/v1/exports", {"job": 99, "settings": {"mesh.max_faces": 500}}, 404, "no job 99"),
        ("/send", {"text": "a", "image": "aGk="}, 422, "no pictures; give 'text'"),
        ("/send", {"text": ""}, 422, "The prompt is empty"),
    ],
)
def test_values_of_another_type_are_not_taken_for_what_they_are_not(api: Api, path, body, status, words):  # noqa: F811
    found, answer, _ = api("submit", "POST", path, body)
    assert found == status and words in answer.get("error", ""), answer


def test_openais_calls_are_refused_in_their_own_shape_by_everybody_who_refuses(api: Api):  # noqa: F811
    for who, body, headers, status in (
        ("nobody", {"prompt": "a"}, {}, 401),
        ("read", {"prompt": "a"}, {}, 403),
        ("submit", b"prompt", {"Content-Type": "text/plain"}, 415),
        ("submit", {"prompt": "a", "n": 17}, {}, 400),
        ("submit", {"prompt": "a", "size": "3x3"}, {}, 400),
        ("submit", b"{", {}, 400),
    ):
        found, answer, _ = api(who, "POST", "/v1/images/generations", body, **headers)
        assert found == status and set(answer["error"]) == {"message", "type", "param", "code"}, answer
    assert api("submit", "PUT", "/v1/images/edits", {})[1]["error"]["type"] == "invalid_request_error"


def test_again_with_what_a_job_has_not_is_a_conflict(api: Api):  # noqa: F811
    job = api.ok("submit", "POST", "/v1/images", {"prompt": "a table", "paused": True, "out": "again"})["id"]
    for settings, status in (({"fit.num_steps": 9}, 409), ({"recipe": "toybox"}, 409), ({"export.formats": ["stl"]}, 201)):
        found, answer, _ = api("submit", "POST", f"/v1/jobs/{job}/again", {"settings": settings, "paused": True})
        assert found == status, answer


def test_a_name_that_the_schema_takes_is_taken_and_no_other(api: Api):  # noqa: F811
    models = api.ok("nobody", "GET", "/openapi.json")["components"]["schemas"]
    for path, model, extra, most in (("text-to-3d", "TextTo3DForm", {}, 100), ("best-of", "BestOfForm", {"num_seeds": 2}, 75)):
        schema = next(one for one in models[model]["properties"]["out"]["anyOf"] if one["type"] == "string")
        for out in ("a" * most, "A.b-c_9", "a" * (most + 1), "a b", "O7gP\n\x1b0O|", ".hidden", "-a", "a/b"):
            is_name = re.search(schema["pattern"], out) is not None
            form = {"prompt": "a chair", "out": out, "seed": 2**63 - 2**20 - 2, "paused": True, **extra}
            status, answer, _ = api("submit", "POST", f"/v1/{path}", form)
            assert is_name == (out in ("a" * most, "A.b-c_9")) and (status == 201) == is_name, answer


def test_an_upload_of_nothing_is_refused(api: Api):  # noqa: F811
    status, answer, _ = api("submit", "POST", "/v1/uploads?name=a.csv", b"", Content_Type="text/csv")
    assert status == 422 and "'a.csv' is empty" in answer["error"]


def test_a_stream_of_events_ends_when_it_was_told_to(api: Api):  # noqa: F811
    job = api.ok("submit", "POST", "/v1/images", {"prompt": "a paused table", "paused": True, "out": "stream"})["id"]
    _, told, got = api("read", "GET", f"/v1/jobs/{job}/events?seconds=0.2")
    assert got["content-type"].startswith("text/event-stream") and told.count(b"event: state") == 1
    assert api("read", "GET", "/v1/events?seconds=0")[0] == 422


@pytest.mark.slow
def test_schemathesis_finds_nothing_with_every_check():
    command = [sys.executable, "-m", "benchmarks.api_contract", "--max-examples", "5"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
