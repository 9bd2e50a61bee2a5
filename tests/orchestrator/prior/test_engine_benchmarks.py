"""The scripts behind the engine's published figures run, and count what they say they count."""

from __future__ import annotations

import json
import time

import pytest

from benchmarks import engine, mixed_load, service_latency

pytestmark = pytest.mark.slow


def test_added_latency_leaves_out_what_was_spent_inside():
    spent = iter([0.0, 0.005, 0.005, 0.015])
    seconds, added = service_latency.in_turns(
        {"actor": lambda: time.sleep(0.02)}, rounds=2, warm_up=0, inside={"actor": lambda: next(spent)}
    )
    assert added["actor"] == pytest.approx([seconds["actor"][0] - 0.005, seconds["actor"][1] - 0.010])
    rows = service_latency.summary({"actor": [0.012, 0.023, 0.031]}, added={"actor": [0.002, 0.003, 0.001]})
    assert rows["actor"] == {"p10": 12.0, "p50": 23.0, "p90": 31.0, "added_p50": 2.0}


def test_the_engine_benchmark_measures_overhead_and_company(tiny_prior, tmp_path, capsys):
    out = tmp_path / "engine.json"
    arguments = ["--prior", str(tiny_prior), "--device", "cpu", "--repeats", "1", "--num-steps", "3"]
    for _ in range(2):  # the same settings replace, others add
        assert engine.main([*arguments, "--num-images", "2", "--num-threads", "1", "--out", str(out)]) == 0
    (run,) = json.loads(out.read_text())["runs"]
    assert run["overhead"]["batch_rows"] == 4 and len(run["overhead"]["row_steps_per_second"]) == 3
    assert run["company"]["strict"]["picture_identical"] and run["company"]["strict"]["gradient_identical"]
    assert "knee" in capsys.readouterr().out


def test_the_mixed_load_benchmark_measures_all_three_ways(tiny_prior, tmp_path, capsys):
    out = tmp_path / "mixed.json"
    arguments = ["--prior", str(tiny_prior), "--device", "cpu", "--seconds", "1", "--rounds", "1", "--num-steps", "3"]
    arguments += ["--streams", "1", "--views", "2", "--num-images", "2", "--num-threads", "1", "--out", str(out)]
    assert mixed_load.main(arguments) == 0
    (run,) = json.loads(out.read_text())["runs"]
    assert [(name, way["priors"]) for name, way in run["ways"].items()] == [
        (mixed_load.NINE, 2),
        (mixed_load.STATIC, 1),
        (mixed_load.ENGINE, 1),
    ]
    for way in run["ways"].values():
        assert way["row_steps_per_second"] > 0
    assert 0.3 < run["ways"][mixed_load.ENGINE]["least_share_of_fair"] <= 1.01
    assert run["ways"][mixed_load.ENGINE]["engine_is"] == 1.0
    assert "mixed load" in capsys.readouterr().out
