"""What a prior leaves to the device, dtype=auto, is decided once and written out."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.memory import hollow_file
from diffusion import precision
from diffusion.checkpoints.architectures import SDXL
from diffusion.checkpoints.errors import PriorError
from diffusion.checkpoints.footprint import footprint
from diffusion.checkpoints.source import Source
from diffusion.prior import Prior
from jobs.errors import InputError
from jobs.prior_client import GenerateRequest
from jobs.specs import ImagesSpec
from orchestrator.cli.main import main
from orchestrator.daemon.job_request import JobRequest
from orchestrator.prior.local import LocalPrior
from orchestrator.runtimes.base import with_settled_prior


@pytest.fixture(params=[True, False])
def fast(request, monkeypatch):
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device_type: request.param)
    return request.param


def test_it_follows_the_device_unless_strict_or_named(fast):
    auto = ImagesSpec(prompt="a cup", num_images=1, prior="sd15?dtype=auto&clip_skip=2")
    settled = with_settled_prior(auto, "cuda:1")
    assert settled.prior == f"sd15?dtype={'bfloat16' if fast else 'float32'}&clip_skip=2"
    strict = ImagesSpec(prompt="a cup", num_images=1, prior="sd15?dtype=auto", strict=True)
    assert with_settled_prior(strict, "cuda").prior == "sd15?dtype=float32"
    for source in ("sd15", "sd15?dtype=float16", "toybox"):
        spec = ImagesSpec(prompt="a cup", num_images=1, prior=source, strict=True)
        assert with_settled_prior(spec, "cuda") is spec
    with pytest.raises(InputError, match="devices are not seen from here; name it: dtype=bfloat16"):
        with_settled_prior(auto, "cuda", is_elsewhere=True)


@pytest.mark.parametrize(
    ("gigabytes", "device", "told"),
    # In float16 a row takes 0.186 GB, and weights but for the towers, encoded prompts and CUDA 6.6 of 0.95 of the memory.
    [((8, 24), "cuda", "&strict_rows=4"), ((8, 24), "cuda:1", ""), ((10, 10), "cuda", "&strict_rows=8"), ((6, 6), "cuda", "")],
)
def test_strict_forwards_have_fewer_rows_where_the_smallest_gpu_holds_no_more(gigabytes, device, told, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(gigabytes))
    properties = [SimpleNamespace(total_memory=size * 10**9) for size in gigabytes]
    monkeypatch.setattr("torch.cuda.get_device_properties", properties.__getitem__)
    source = f"{hollow_file(SDXL, tmp_path / 'xl.safetensors')}?dtype=float16"
    spec = ImagesSpec(prompt="a cup", num_images=1, prior=source, strict=True)
    settled = with_settled_prior(spec, device)
    assert settled.prior == source + told
    assert with_settled_prior(settled, device) == settled, "every later attempt has the same"
    assert Source.parse(settled.prior).strict_rows == int(told[-1:] or 16)
    for other in (replace(spec, strict=False), replace(spec, prior=f"{source}&strict_rows=2"), replace(spec, prior="toybox")):
        assert with_settled_prior(other, device) is other
    assert with_settled_prior(spec, device, is_elsewhere=True) is spec


def test_strict_forwards_have_the_rows_that_the_prior_is_told(tiny_prior):
    prior = LocalPrior(Prior.load(f"{tiny_prior}?strict_rows=4"))
    request = GenerateRequest(prompts=("a red table",) * 3, seeds=(1, 2, 3), num_steps=2, strict=True)
    pending = prior.begin_generate(request)
    rows = set()
    while not pending.finished:
        rows.add(prior.engine.step().batch_rows)
    assert rows - {0} == {4} and pending.result().shape[0] == 3
    with pytest.raises(PriorError, match="strict_rows"):
        Prior.load(f"{tiny_prior}?strict_rows=3")


def test_it_stands_in_the_manifest_and_the_queue_and_the_same_command_goes_on(fast, tiny_prior, tmp_path, capsys):
    words = ["images", "a red table", "--num-images", "2", "--steps", "2", "--prior", f"{tiny_prior}?dtype=auto"]
    words += ["--out", str(tmp_path / "out"), "--runtime", "inline", "runtime.num_threads=1"]
    assert main(words) == 0
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    chosen = f"{tiny_prior}?dtype={'bfloat16' if fast else 'float32'}"
    assert manifest["spec"]["prior"] == chosen
    capsys.readouterr()
    assert main(words) == 0 and "Already" in capsys.readouterr().out
    spec = ImagesSpec(prompt="a red table", num_images=2, prior=f"{tiny_prior}?dtype=auto")
    assert JobRequest(spec=spec.to_json(), out=str(tmp_path / "queued")).to_submission().prior == chosen


def test_the_autoencoder_is_in_bfloat16_where_the_unet_is():
    half, other, full = (Prior.load(f"toybox?dtype={dtype}") for dtype in ("bfloat16", "float16", "float32"))
    assert half._autoencoder_dtype == torch.bfloat16 and other._autoencoder_dtype == torch.float32
    slope = torch.linspace(0, 1, 64)
    images = torch.stack([slope.expand(64, 64), slope[:, None].expand(64, 64), torch.full((64, 64), 0.3)])[None]
    latents = full.encode(images)
    pull = torch.ones_like(latents)
    answers = [(half.encode(images), latents), (half.decode(latents), full.decode(latents))]
    answers.append((half.encoder_gradient(images, pull), full.encoder_gradient(images, pull)))
    for ours, theirs in answers:
        assert ours.dtype == torch.float32 and (ours - theirs).norm() < 0.08 * theirs.norm()
    sizes = [footprint(f"toybox?dtype={dtype}").weights for dtype in ("bfloat16", "float32")]
    assert sizes[0] == pytest.approx(sizes[1] / 2, rel=0.01)
