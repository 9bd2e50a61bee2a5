"""The scripts behind the engine's published figures run, and count what they say they count."""

from __future__ import annotations

import json

import pytest

from benchmarks import engine, service_latency

pytestmark = pytest.mark.slow


def test_added_latency_is_taken_round_by_round():
    seconds = {"bare": [0.010, 0.020, 0.030], "actor": [0.012, 0.023, 0.031]}
    rows = service_latency.summary(seconds, against="bare")
    assert rows["actor"] == {"p10": 12.0, "p50": 23.0, "p90": 31.0, "added_p50": 2.0}


def test_the_engine_benchmark_measures_all_three_ways(tiny_prior, tmp_path, capsys):
    out = tmp_path / "engine.json"
    arguments = ["--prior", str(tiny_prior), "--device", "cpu", "--seconds", "1", "--repeats", "1", "--num-steps", "3"]
    arguments += ["--streams", "1", "--views", "2", "--num-images", "2", "--num-threads", "1", "--out", str(out)]
    assert engine.main(arguments) == 0
    document = json.loads(out.read_text())
    assert document["overhead"]["batch_rows"] == 4 and len(document["overhead"]["row_steps_per_second"]) == 3
    for name, copies in (("(a) a process and a prior each", 2), ("(b) static batch per job", 1), ("engine", 1)):
        figures = document["mixed"][name]
        assert figures["copies_of_the_prior"] == copies and figures["row_steps_per_second"] > 0
    assert "knee" in capsys.readouterr().out
