"""benchmarks/gpu_check.py works the first time: all of its parts, reduced, on the device that is not there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.ghost_cuda import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_answers(tmp_path):
    out = tmp_path / "check.json"
    subprocess.run([sys.executable, "-m", "benchmarks.gpu_check", "--ghost", "--out", str(out)], cwd=ROOT, check=True)
    parts = json.loads(out.read_text())["parts"]
    assert len(parts) == 12 and not any("error" in part for part in parts.values())
    on_cpu, on_cuda = parts["parity"]["num_samples"]
    assert on_cpu > 10_000 and abs(on_cuda - on_cpu) < 0.002 * on_cpu and parts["parity"]["rgb"] < 0.01
    assert parts["parity"]["network"] < 1e-4
    # After two steps the dense pyramid's blob lies at the threshold, and rays are jittered one by one there, not by sample.
    assert parts["fit_hash_grid"]["overlap_with_the_cpus"] > 0.8
    assert parts["fit_dense_pyramid"]["last_loss"] > 0
    assert parts["resume"]["last_step_apart"] < 1e-6
    assert parts["device_assert"]["is_as_meant"] and parts["profile"]["launches"] > 100
    assert parts["shapes_sdxl"].keys() >= {"ours x1", "diffusers x1"}
