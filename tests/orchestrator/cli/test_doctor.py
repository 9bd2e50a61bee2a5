"""The doctor finds what is wrong and says how to mend it."""

from __future__ import annotations

import json

import pytest

from orchestrator.cli import machine_checks
from orchestrator.cli.machine_checks import Check, examine, print_checks
from orchestrator.cli.main import main

NAMES = ["python", "torch", "device", "threads", "ray", "nerfacc", "open_clip", "ffmpeg", "prior", "disk"]


def test_every_check_answers(tiny_prior):
    checks = {check.name: check for check in examine(str(tiny_prior))}
    assert list(checks) == NAMES
    assert checks["prior"].level == "ok" and "knows 9 words" in checks["prior"].found
    assert all(check.fix for check in checks.values() if check.level != "ok")


def test_a_missing_prior_fails_with_a_fix_and_an_exit_code(capsys):
    assert main(["doctor", "--prior", "/nowhere", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    (prior,) = [check for check in answer["checks"] if check["name"] == "prior"]
    assert prior["level"] == "fail" and "--prior" in prior["fix"]


def test_a_full_disk_and_a_check_that_breaks(monkeypatch, tmp_path):
    monkeypatch.setattr(machine_checks.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    assert machine_checks._disk(tmp_path).level == "warn"
    assert machine_checks._guarded("x", lambda: 1 / 0).level == "fail"


def test_the_table_survives_brackets(capsys):
    print_checks([Check("ray", "warn", "not [here]", "pip install 'ray[default]'")])
    shown = capsys.readouterr().out
    assert "not [here]" in shown and "ray[default]" in shown


def test_on_a_gpu_it_names_the_compilers_that_are_missing(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda tool: None if tool == "c++" else f"/bin/{tool}")
    monkeypatch.delenv("CXX", raising=False)
    check = machine_checks._nerfacc()
    assert check.level == "warn" and check.found.endswith("no compiled kernels and no c++")


@pytest.mark.parametrize("columns", [80, 40])
def test_it_fits_the_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    print_checks(
        [Check("threads", "warn", "1 torch thread, 2 cores", "wait, or stop what runs"), Check("disk", "ok", "x" * 200)]
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns and "threads" in lines[0] and "1 torch thread" in lines[0]
    assert any("-> wait, or stop" in line for line in lines)
    assert sum(line.count("x") for line in lines) == 200


def test_on_a_gpu_it_compares_the_compilers_cuda_with_torchs(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    nvcc = tmp_path / "nvcc"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for release, level in (("12.8", "warn"), ("13.0", "ok"), ("13.2", "ok")):
        nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.61'\n")
        nvcc.chmod(0o755)
        check = machine_checks._nerfacc()
        assert check.level == level and (level == "ok" or f"nvcc is of CUDA {release}, torch of CUDA 13.0" in check.found)
