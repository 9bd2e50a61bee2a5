"""`--lora` as a user gives it: pictures, manifest, resuming, and what is said of a wrong one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jobs.errors import InputError
from orchestrator.cli.main import main
from orchestrator.client.prepared_job import compose_here, prepare_text_to_3d
from orchestrator.client.remote import RemoteClient
from orchestrator.exports.png_metadata import read_png_metadata
from orchestrator.exports.reading import read_file
from tests.fakes import FAST_OVERRIDES, save_tiny_lora

PROMPT = "a red table"
QUICK = ("--num-images", "2", "--steps", "2", "--runtime", "inline", "--local", "runtime.num_threads=1")


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["images", PROMPT, *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_pictures_with_a_lora_say_so_and_are_resumed_with_the_same(capsys, tmp_path, monkeypatch, tiny_prior):
    monkeypatch.chdir(tmp_path)
    save_tiny_lora(tmp_path / "ink.safetensors", Path(tiny_prior), seed=1)
    prior = ("--prior", tiny_prior, *QUICK)
    assert command(capsys, *prior, "--out", "plain")[0] == 0
    arguments = (*prior, "--out", "out", "--lora")
    assert command(capsys, *arguments, "ink.safetensors:0.8")[0] == 0
    (lora,) = json.loads(Path("out/manifest.json").read_text())["spec"]["loras"]
    assert (lora["file"], lora["scale"], len(lora["sha256"])) == (str(tmp_path / "ink.safetensors"), 0.8, 64)
    text = read_png_metadata(Path("out/000000000.png"))
    assert (text["lora"], text["lora_sha256"]) == ("ink.safetensors:0.8", lora["sha256"])
    assert "lora" not in read_png_metadata(Path("plain/000000000.png"))
    assert Path("out/000000000.png").read_bytes() != Path("plain/000000000.png").read_bytes()
    # The same content elsewhere is the same job.
    (tmp_path / "ink.safetensors").rename(tmp_path / "moved.safetensors")
    assert command(capsys, *arguments, "moved.safetensors:0.8")[1].startswith("Already finished")
    code, _, err = command(capsys, *arguments, "moved.safetensors:0.7")
    assert code == 2 and "out belongs to another job (loras" in err
    code, _, err = command(capsys, *arguments, "ink.safetensors")
    assert code == 2 and "There is no LoRA" in err and "Traceback" not in err
    Path("bad.safetensors").write_bytes(b"x")
    code, _, err = command(capsys, *prior, "--out", "bad", "--lora", "bad.safetensors")
    assert code == 2 and "bad.safetensors (1 bytes) is truncated or not a safetensors file" in err and "Traceback" not in err


def test_pictures_with_an_embedding_say_so_and_are_resumed_with_the_same(capsys, tmp_path, monkeypatch, tiny_prior):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("oak", "elm")):
        save_file({"<wood>": torch.randn(2, 32, generator=torch.manual_seed(seed))}, f"{name}.safetensors")
    prior = ("--prior", tiny_prior, *QUICK)
    monkeypatch.setattr("tests.orchestrator.cli.test_lora_option.PROMPT", "a red <wood> table")
    assert command(capsys, *prior, "--out", "plain")[0] == 0
    assert command(capsys, *prior, "--out", "out", "--embedding", "oak.safetensors")[0] == 0
    (embedding,) = json.loads(Path("out/manifest.json").read_text())["spec"]["embeddings"]
    sha256 = hashlib.sha256(Path("oak.safetensors").read_bytes()).hexdigest()
    assert embedding == {"file": str(tmp_path / "oak.safetensors"), "sha256": sha256, "word": "oak", "replaces": False}
    text = read_png_metadata(Path("out/000000000.png"))
    assert (text["textual_inversion"], text["textual_inversion_sha256"]) == ("oak.safetensors", sha256)
    assert Path("out/000000000.png").read_bytes() != Path("plain/000000000.png").read_bytes()
    code, _, err = command(capsys, *prior, "--out", "out", "--embedding", "elm.safetensors")
    assert code == 2 and "out belongs to another job (embeddings" in err
    code, _, err = command(capsys, *prior, "--out", "bad", "--embedding", "nowhere.pt:<x>")
    assert code == 2 and "There is no embedding" in err and "Traceback" not in err
    Path("bad.pt").write_bytes(b"x")
    code, _, err = command(capsys, *prior, "--out", "bad", "--embedding", "bad.pt")
    assert code == 2 and "bad.pt" in err and "Traceback" not in err
    job = prepare_text_to_3d("a cup", compose_here([], {"prior.embeddings": ["oak.safetensors:<w>"]}), seed=0, out=None)
    assert job.spec.embeddings[0].replaces and job.spec.adapters == job.spec.embeddings
    with pytest.raises(
        InputError, match=r"--embedding names a file of this machine, which the orchestrator at --url does not see"
    ):
        RemoteClient("http://kiln.example", "token").request_of(job)


def test_a_3d_job_takes_loras_too_and_a_remote_orchestrator_does_not_see_them(tmp_path):
    file = tmp_path / "ink.safetensors"
    file.write_bytes(b"ink")
    jobs = [
        prepare_text_to_3d("a cup", compose_here([], {"prior.loras": loras}), seed=0, out=None)
        for loras in (None, [], [f"{file}:0.5"], [f"{file}:0.5", str(file)])
    ]
    assert [len(job.spec.loras) for job in jobs] == [0, 0, 1, 2]
    assert jobs[0].spec.fingerprint() == jobs[1].spec.fingerprint() and len({job.spec.fingerprint() for job in jobs}) == 3
    settings = compose_here([f"prior.loras=['{file}:0.5']"], {})
    painted = settings.texture_job("a cup", seed=0, mesh_sha256="0" * 64, up="y")
    assert painted.loras == jobs[2].spec.loras and settings.text_to_3d("a cup", seed=0) == jobs[2].spec
    with pytest.raises(InputError, match=r"--lora names a file of this machine, which the orchestrator at --url does not see"):
        RemoteClient("http://kiln.example", "token").request_of(jobs[2])


def test_an_object_and_a_skin_with_a_lora_say_so_and_are_resumed_with_the_same(capsys, tmp_path, monkeypatch, tiny_prior):
    """`text-to-3d --lora` and `texture --lora` from the command line to the mesh file."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("clay", "ink")):
        save_tiny_lora(tmp_path / f"{name}.safetensors", Path(tiny_prior), seed=seed)
    export = ("export.preview_size=16", "export.turntable_frames=0")
    common = ("--prior", tiny_prior, "--local", "--format", "glb", *export, "runtime.num_threads=1", "runtime.device=cpu")
    fit = (*FAST_OVERRIDES[1:], "fit.num_steps=6", "runtime.kind=inline")
    skin = (
        "texture.num_steps=6",
        "texture.rate=0.3",
        "texture.num_views=4",
        "texture.resolutions=[4,8]",
        "texture.texture_size=64",
    )

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return code, output.out, output.err

    def made(out: str) -> tuple[dict, bytes]:
        return json.loads(Path(out, "manifest.json").read_text()), Path(out, "mesh.glb").read_bytes()

    for verb in (("text-to-3d", "a red table", *fit), ("texture", "text-to-3d/mesh.glb", "a red table", *skin)):
        name = verb[0]
        command = (*verb, *common)
        assert run(*command, "--out", name)[0] == 0
        assert run(*command, "--out", f"{name} clay", "--lora", "clay.safetensors:0.8")[0] == 0
        (plain, without), (manifest, mesh) = made(name), made(f"{name} clay")
        (lora,) = manifest["spec"]["loras"]
        assert (Path(lora["file"]).name, lora["scale"]) == ("clay.safetensors", 0.8)
        assert lora["sha256"] == hashlib.sha256(Path("clay.safetensors").read_bytes()).hexdigest()
        assert plain["spec"].get("loras", []) == [] and manifest["fingerprint"] != plain["fingerprint"]
        assert manifest["prior"]["weights_hash"] == plain["prior"]["weights_hash"] and mesh != without
        again = run(*command, "--out", f"{name} clay", "--lora", "clay.safetensors:0.8")
        assert again[0] == 0 and again[1].startswith("Already finished")
        for other in ("ink.safetensors:0.8", "clay.safetensors"):
            code, _, err = run(*command, "--out", f"{name} clay", "--lora", other)
            assert code == 2 and f"{name} clay belongs to another job (loras" in err and "Traceback" not in err
        assert made(f"{name} clay")[1] == mesh
    skins = [read_file(Path(out, "mesh.glb")).picture for out in ("texture", "texture clay")]
    assert (skins[0] != skins[1]).mean() > 0.2
