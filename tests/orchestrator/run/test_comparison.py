"""Runs side by side on one page: what is embedded, what is told apart, and what is refused."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest

from jobs.errors import InputError
from orchestrator.cli.main import main
from orchestrator.cli.verbs.compare import write_page


def run(folder: Path, *, seed: int, prompt: str = "a red house", score: float | None = 0.25, state: str = "succeeded") -> Path:
    folder.mkdir(parents=True)
    spec = {"prompt": prompt, "seed": seed, "formats": ["glb", "obj"][: seed + 1], "fit": {"num_steps": 4, "lights": "studio"}}
    metrics = {"num_faces": 100, "quality_flags": ["thin"], **({} if score is None else {"prior_score": score})}
    manifest = {"kind": "text-to-3d", "state": state, "spec": spec, "metrics": metrics, "timings": {"fit": 12.34}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = [{"stage": "fit", "step": step, "total": 4, "loss": 1 / step, "opacity": 0.5} for step in range(1, 5)]
    (folder / "progress.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "mesh.glb").write_bytes(b"glTF" + bytes([seed]))
    return folder


def data_of(page: Path):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def test_what_differs_is_named_and_what_is_measured_stands_beside_it(tmp_path):
    runs = [run(tmp_path / "a", seed=0), run(tmp_path / "b", seed=1, score=0.5)]
    data = data_of(write_page(runs, tmp_path / "pages/compare.html"))
    assert [column["name"] for column in data["columns"]] == ["seed", "score", "faces", "fit seconds", "flags"]
    assert [one["values"]["score"] for one in data["runs"]] == [0.25, 0.5] and data["columns"][1]["best"] == 0.5
    assert [one["changed"] for one in data["runs"]] == ["seed 0", "seed 1"] and data["runs"][0]["name"] == "a"
    assert data["runs"][1]["values"]["flags"] == "thin" and data["runs"][1]["values"]["fit seconds"] == 12.3
    assert data["runs"][0]["curves"]["loss"] == [[1, 2, 3, 4], [1, 0.5, 0.33333, 0.25]]
    assert [chart["name"] for chart in data["charts"]] == ["opacity", "loss"]
    head, _, body = data["runs"][1]["mesh"].partition(",")
    assert head == "data:model/gltf-binary;base64" and base64.b64decode(body) == b"glTF\x01"


def test_the_page_needs_nothing_else(tmp_path):
    text = write_page([run(tmp_path / "a", seed=0)], tmp_path / "compare.html").read_text()
    assert "globalThis.DreamkilnViewer=" in text and not re.search(r"__(TITLE|FOOTER|DATA|VIEWER)__", text)
    page = re.sub(r'<script type="module">var .*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)\s*=\s*["']?https?:|@import|\bfetch\(""", page)


def test_a_prompt_cannot_break_out_of_the_page(tmp_path):
    prompt = 'a </script><script>alert(1)</script> "<b>" \\1 __DATA__'
    page = write_page(
        [run(tmp_path / "a", seed=0, prompt=prompt), run(tmp_path / "b", seed=0)], tmp_path / "x.html", title=prompt
    )
    assert "<script>alert" not in page.read_text()
    assert data_of(page)["runs"][0]["values"]["prompt"] == prompt


def test_runs_that_failed_or_are_not_finished_are_shown_as_such(tmp_path):
    unfinished = run(tmp_path / "a", seed=0, score=None, state="failed")
    (unfinished / "mesh.glb").unlink()
    (unfinished / "progress.jsonl").unlink()
    shown = data_of(write_page([unfinished], tmp_path / "x.html"))["runs"][0]
    assert shown["mesh"] is None and shown["curves"] == {} and shown["values"]["flags"] == "failed, thin"


def test_names_are_as_long_as_it_takes_to_tell_them_apart(tmp_path):
    runs = [run(tmp_path / "x/run", seed=0), run(tmp_path / "y/run", seed=1)]
    assert [one["name"] for one in data_of(write_page(runs, tmp_path / "x.html"))["runs"]] == ["x/run", "y/run"]


def test_other_folders_are_refused_by_name(tmp_path, capsys):
    one = run(tmp_path / "a", seed=0)
    with pytest.raises(InputError, match=r"a is named twice; give every run once"):
        write_page([one, one], tmp_path / "x.html")
    with pytest.raises(InputError, match=r"nothing is not a run folder: its manifest\.json cannot be read"):
        write_page([tmp_path / "nothing"], tmp_path / "x.html")
    (one / "manifest.json").write_text('{"kind": "images", "spec": {}}')
    assert main(["compare", str(one), "--out", str(tmp_path / "x.html")]) == 2
    assert "holds a run of 'images', but one of 'text-to-3d' was expected" in capsys.readouterr().err
