"""Losses and fields of one's own: found, sent to the prior, hashed into the manifest, resumed, and blamed where they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dreamkiln
from jobs.errors import InputError
from jobs.extensions import absolute_name, load_extension, name_of, own_form
from orchestrator.prior import local
from orchestrator.prior.wire import Wire
from tests.fakes import FAST_OVERRIDES, load_fake_prior
from tests.orchestrator.conftest import command_environment, tiny_prior  # noqa: F401 - a fixture
from tests.orchestrator.run.test_interruption import wait_for_checkpoint

ROOT = Path(__file__).parents[2]
FAST = [*FAST_OVERRIDES, "runtime.kind=inline", "runtime.num_threads=1", "export.turntable_frames=0", "export.preview_size=16"]
LOSS = '''
from dreamkiln import DecodeRequest, Distilled

PULL = 1.0

def pulled(step):
    """The x0 form again."""
    target = yield DecodeRequest(step.prediction.x0)
    return Distilled(step.weighted(step.images - target) * PULL, target)

def simple(step):
    return Distilled(step.images - 0.5)

def broken(step):
    yield DecodeRequest(step.prediction.x0)
    raise KeyError("oops")

def lazy(step):
    return None

def narrow(step):
    return Distilled(step.images[:, :1])

NUMBER = 3
'''


@pytest.fixture
def loss(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(local, "load_prior", load_fake_prior)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loss.py").write_text(LOSS)
    return tmp_path / "loss.py"


def mesh(form: str, out: Path) -> bytes:
    settings = {"distillation.form": form}
    dreamkiln.text_to_3d("a red ball", settings, overrides=[*FAST, "fit.num_steps=5"], out=out)
    return (out / "mesh.glb").read_bytes()


def test_the_x0_form_written_again_makes_the_same_mesh(loss, tmp_path):
    assert mesh(f"{loss}:pulled", tmp_path / "own") == mesh("x0", tmp_path / "ours")
    mesh("loss:simple", tmp_path / "simple")  # a module beside the caller, and a form that asks for nothing
    assert json.loads((tmp_path / "simple/manifest.json").read_text())["spec"]["distillation"]["form"] == f"{loss}:simple"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("loss.py:broken", r"loss\.py:broken' failed in line 16 \(KeyError: 'oops'\); mend it, and begin again"),
        ("loss.py:lazy", "returned a NoneType; a form returns a Distilled with the gradient"),
        ("loss.py:NUMBER", "has a int there"),
        ("loss.py:nothing", "has no such name"),
        ("gone.py:x", r"There is no file .*gone\.py"),
        ("gone:x", r"There is no module 'gone' for 'gone:x'; install it, or give the file: gone\.py:x"),
        ("loss.py:a b", "names no code"),
    ],
)
def test_what_is_wrong_with_it_is_one_sentence(loss, tmp_path, form, message):
    with pytest.raises(InputError, match=message):
        mesh(form, tmp_path / "out")


def test_a_gradient_of_another_shape_is_refused(loss, tmp_path):
    with pytest.raises(Exception, match="the form's gradient has shape"):
        mesh("loss.py:narrow", tmp_path / "out")


def test_a_module_that_cannot_be_imported_names_its_line(loss):
    loss.write_text("import json\n\nraise RuntimeError('no')\n")
    with pytest.raises(InputError, match=r"failed in line 3 \(RuntimeError: no\)"):
        load_extension("loss.py:x")
    loss.write_text("def f(:\n")
    with pytest.raises(InputError, match=r"failed in line 1 \(SyntaxError"):
        load_extension("loss.py:f")


def test_names_that_another_process_finds(loss):
    assert absolute_name("loss:pulled") == absolute_name("loss.py:pulled") == f"{loss}:pulled"
    assert absolute_name("x0") == "x0" and absolute_name("json:dumps") == "json:dumps"
    assert name_of(load_extension("loss.py:pulled")) == f"{loss}:pulled"
    assert name_of(pytest.raises) == "_pytest.raises:raises"
    with pytest.raises(InputError, match="define it at the top of a file"):
        name_of(lambda step: None)


def test_a_form_travels_to_a_process_without_its_file(loss, tmp_path):
    from ray import cloudpickle

    query = dreamkiln.DistillationQuery(
        images=torch.rand(1, 3, 4, 4), prompts=("x",), t=torch.tensor([5]), noise_keys=((0,),), form=own_form(f"{loss}:simple")
    )
    (tmp_path / "query").write_bytes(cloudpickle.dumps(Wire(query)))
    loss.unlink()
    code = (
        "import pickle, types, torch; query = pickle.load(open('query', 'rb')).open();"
        "gen = query.form(types.SimpleNamespace(images=torch.ones(1)))\n"
        "try: next(gen)\n"
        "except StopIteration as end: print(end.value.gradient.item())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "0.5\n", done.stderr


def test_other_code_is_not_continued(loss, tmp_path):
    mesh("loss.py:pulled", tmp_path / "out")
    (tmp_path / "out/mesh.glb").unlink()
    loss.write_text(LOSS.replace("PULL = 1.0", "PULL = 2.0"))
    with pytest.raises(InputError, match=r"was begun with other code in .*loss\.py:pulled"):
        mesh("loss.py:pulled", tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["inline", "ray"])
def test_the_researchers_loss_goes_on_after_sigkill(tiny_prior, tmp_path, runtime):  # noqa: F811
    loss = ROOT / "examples/own_loss.py"
    settings = [*FAST, "fit.num_steps=60", "fit.density_rate=0.01", "runtime.checkpoint_every=5", f"runtime.kind={runtime}"]
    arguments = ["text-to-3d", "a red table", "--prior", tiny_prior, f"distillation.form={loss}:classifier_score", *settings]
    command = [sys.executable, "-m", "dreamkiln", *map(str, arguments)]

    def run(out: Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, "--out", out], env=command_environment(), stderr=subprocess.PIPE)

    killed = run(tmp_path / "killed")
    wait_for_checkpoint(tmp_path / "killed", killed)
    killed.kill()
    killed.communicate()
    for out in ("killed", "whole"):
        process = run(tmp_path / out)
        _, said = process.communicate()
        assert process.returncode == 0, said
    assert (tmp_path / "killed/mesh.glb").read_bytes() == (tmp_path / "whole/mesh.glb").read_bytes()
    assert len(json.loads((tmp_path / "killed/manifest.json").read_text())["attempts"]) == 2
