"""The studio's page and the API's description, both from files and text of this package: nothing comes from another host."""

from __future__ import annotations

import html
import json
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from orchestrator.daemon.http.files import media_type
from orchestrator.daemon.http.guard import rule_of
from orchestrator.daemon.http.meanings import settings_schema

__all__ = ["STUDIO", "add_page", "described"]

STUDIO = Path(__file__).parent / "studio"
"""What `npm run build` makes of studio/; see CONTRIBUTING.md."""
POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "connect-src 'self' blob: data:; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
DOCS_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "code,pre{font:14px ui-monospace,monospace}pre{overflow:auto;padding:.75rem;border:1px solid #8886;border-radius:6px}"
    "section{border-top:1px solid #8886;padding:.5rem 0 1rem}dt{font-weight:600}dd{margin:0 0 .5rem 1rem}"
    ".m{display:inline-block;min-width:4.5em;font-weight:700}"
)


def add_page(app: FastAPI) -> None:
    """The page at `/`, its files below `/studio/`, and `/docs`."""

    def docs() -> HTMLResponse:
        return HTMLResponse(_docs(app), headers={"Content-Security-Policy": POLICY})

    app.add_api_route("/", _index, include_in_schema=False)
    app.add_api_route("/studio/{name:path}", _asset, include_in_schema=False)
    app.add_api_route("/favicon.svg", _icon, include_in_schema=False)
    app.add_api_route("/docs", docs, include_in_schema=False)


def _index(request: Request) -> Response:
    """The page; without a built one the description of the API."""
    page = STUDIO / "index.html"
    if not page.is_file():
        return RedirectResponse("/docs", 307)
    return FileResponse(page, media_type="text/html", headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})


def _asset(name: str) -> Response:
    """A file of the built page; their names hold hashes, so browsers keep them."""
    path = STUDIO / name
    if "\0" in name or not path.resolve().is_relative_to(STUDIO) or not path.is_file():
        raise HTTPException(404, "Not Found")
    kind = "text/javascript" if path.suffix == ".js" else media_type(name)
    return FileResponse(path, media_type=kind, headers={"Cache-Control": "public, max-age=31536000, immutable"})


def _icon() -> Response:
    return _asset("favicon.svg")


@cache
def described(app: FastAPI) -> dict[str, Any]:
    """The API's schema: what fastapi reads from the calls, who may call, and which values the settings take."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    models = found["components"]["schemas"]
    models["Settings"], models["ExportSettings"] = settings_schema(), settings_schema("mesh", "export")
    for model in models.values():
        if examples := model.get("properties", {}).get("settings", {}).get("examples"):
            name = "ExportSettings" if "mesh.max_faces" in examples[0] else "Settings"
            model["properties"]["settings"] = {"$ref": f"#/components/schemas/{name}"}
    _mend(found)
    found["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, calls in found["paths"].items():
        for method, call in calls.items():
            call["security"] = [] if rule_of(method.upper(), path).scope is None else [{"token": []}]
    return found


def _mend(tree: Any) -> None:
    """What fastapi's own model of a schema loses: whole bounds are whole again, and no parameter is null."""
    if isinstance(tree, list):
        for item in tree:
            _mend(item)
    elif isinstance(tree, dict):
        if tree.get("type") == "integer":
            tree |= {name: int(tree[name]) for name in ("minimum", "maximum") if isinstance(tree.get(name), float)}
        if tree.get("in") in ("query", "header") and "anyOf" in (schema := tree.get("schema", {})):
            (option,) = [one for one in schema.pop("anyOf") if one.get("type") != "null"]
            tree["schema"] = {**schema, **option}
        for item in tree.values():
            _mend(item)


@cache
def _docs(app: FastAPI) -> str:
    """Every call with its parameters, body and answers, as one page without scripts."""
    schema = app.openapi()
    parts = [_call(method, path, call) for path, calls in schema["paths"].items() for method, call in calls.items()]
    models = [
        f"<section id='{html.escape(name)}'><h3>{html.escape(name)}</h3>{_model(model)}</section>"
        for name, model in sorted(schema["components"]["schemas"].items())
    ]
    title = html.escape(schema["info"]["title"])
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>{title} API</title><style>{DOCS_STYLE}</style><main><h1>{title} API</h1>"
        f"<p>{html.escape(schema['info']['description'])} As a schema: <a href='/openapi.json'>/openapi.json</a>.</p>"
        f"<h2>Calls</h2>{''.join(parts)}<h2>Bodies and answers</h2>{''.join(models)}</main></html>"
    )


def _call(method: str, path: str, call: dict[str, Any]) -> str:
    about = html.escape(" ".join(call.get("description", "").split()))
    rows = [
        f"<dt><code>{html.escape(one['name'])}</code> ({one['in']}, {_kind(one['schema'])})</dt>"
        f"<dd>{html.escape(one.get('description', ''))}</dd>"
        for one in call.get("parameters", ())
    ]
    bodies = call.get("requestBody", {}).get("content", {})
    for kind, body in bodies.items():
        rows.append(f"<dt>body</dt><dd><code>{html.escape(kind)}</code>: {_kind(body.get('schema', {}))}</dd>")
    answers = [
        f"{status}: {_kind(next(iter(answer['content'].values())).get('schema', {}))}"
        for status, answer in call.get("responses", {}).items()
        if status.startswith("2") and answer.get("content")
    ]
    if answers:
        rows.append(f"<dt>answers</dt><dd>{'; '.join(answers)}</dd>")
    heading = f"<span class='m'>{method.upper()}</span> <code>{html.escape(path)}</code>"
    return f"<section><h3>{heading}</h3><p>{about}</p><dl>{''.join(rows)}</dl></section>"


def _model(model: dict[str, Any]) -> str:
    rows = [
        f"<dt><code>{html.escape(name)}</code> ({_kind(field)}{', needed' if name in model.get('required', ()) else ''})</dt>"
        f"<dd>{html.escape(field.get('description', ''))}</dd>"
        for name, field in model.get("properties", {}).items()
    ]
    values = f"<p><code>{html.escape(json.dumps(model['enum']))}</code></p>" if "enum" in model else ""
    return f"<p>{html.escape(' '.join(model.get('description', '').split()))}</p>{values}<dl>{''.join(rows)}</dl>"


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if "enum" in schema:
        return " or ".join(html.escape(json.dumps(value)) for value in schema["enum"])
    return html.escape(str(schema.get("type", "any value")))
