"""The command line: what bad input earns, what --json prints, what --help costs."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from jobs.errors import DreamKilnError, InputError, UnexpectedError
from jobs.words.vocabulary import _near, warn_of_unknown_words
from orchestrator.batch.tables.source import TableSource
from orchestrator.cli import common
from orchestrator.cli.main import app, main
from orchestrator.cli.verb_settings import as_options
from orchestrator.host.signals import stop_signals_interrupt
from orchestrator.host.user import user_name
from orchestrator.prior.local import LocalPrior
from orchestrator.run.edit_pictures import EditPictures
from tests.fakes import FAST_OVERRIDES, FakePrior
from tests.orchestrator.conftest import COMMAND, command_environment

INLINE = ("--runtime", "inline", "runtime.num_threads=1")
SENTENCE = "dreamkiln: "


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence on stderr of a command that ends with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(SENTENCE), captured.err
    return lines[0].removeprefix(SENTENCE)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("verb", ["text-to-3d", "images"])
@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [("", "prompt is empty"), ("x" * 10_000, "10,000 characters"), ("🍄🔥", "no letter or digit")],
)
def test_bad_prompts(capsys, verb, prompt, sentence):
    assert sentence in refused(capsys, verb, prompt)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["text-to-3d"], "Missing argument"),
        (["text-to3d", "a chair"], "No such command 'text-to3d'"),
        (["text-to-3d", "a chair", "--sed", "3"], "No such option: --sed"),
        (["images", "a chair", "--num-images", "many"], "Invalid value for '--num-images': 'many' "),
        (["images", "a chair", "--prompts"], "requires an argument; see 'dreamkiln images --help'"),
        (["image", "a chair"], "Did you mean 'images'? See 'dreamkiln --help'"),
        (["jobs", "frobnicate"], "No such command 'frobnicate'; see 'dreamkiln jobs --help'"),
        (["images", "a chair", "--num-images", "0"], "num_images is 0"),
        (["images", "a chair", "--sampler", "dim"], "no sampler 'dim' (did you mean ddim"),
        (["images", "a chair", "--seed", "-1"], "seed is -1"),
        (["text-to-3d", "a chair", "--format", "glb,fbx"], "no mesh format"),
        (["text-to-3d", "a chair", "--format", ","], "formats is"),
        (["text-to-3d", "a chair", "--preset", "drft"], "no preset 'drft' (did you mean draft"),
        (["text-to-3d", "a chair", "--runtime", "slurm"], "no runtime 'slurm'"),
        (["text-to-3d", "a", "red", "chair"], "put the whole prompt in quotes"),
        (["text-to-3d", "a chair", "fit.num_step=3"], "no setting 'fit.num_step' (did you mean fit.num_steps"),
        (["text-to-3d", "a chair", "fti.num_steps=3"], "no setting 'fti.num_steps' (did you mean fit.num_steps"),
        (["text-to-3d", "a chair", "fit.num_steps=few"], "fit.num_steps is 'few', but a whole number"),
        (["text-to-3d", "a chair", "fit.num_steps=[1"], "could not be read"),
        (["text-to-3d", "a chair", "+fit.x=1"], "would add or remove a setting"),
        (["text-to-3d", "a chair", "field=cube"], "no field 'cube'"),
        (["text-to-3d", "a chair", "colour=red"], "no setting 'colour'"),
        (["text-to-3d", "a chair", "distillation.t_min=2"], "t_min is 2.0"),
        (["text-to-3d", "a chair", "--prior", "/nowhere"], "'/nowhere' is neither 'toybox' nor a folder"),
        (["text-to-3d", "a chair", "runtime.device=cuda:9x"], "runtime.device"),
        (
            ["images", "a chair", "runtime.device=mps"],
            "made; give runtime.device=cpu, which works on every machine",
        ),
        (["train", "denoisr"], "no part 'denoisr' (did you mean denoiser"),
        (["toybox", "render", "--num-items", "0"], "--num-items is 0"),
        (["toybox", "render", "--start", "-1"], "--start is -1; give 0 to"),
        (["toybox", "render", "--size", "100000", "--preview"], "--size is 100,000; give 8 to 1,024"),
        (["toybox", "render", "--workers", "-1"], "--workers is -1"),
        (["toybox", "render", "kind=mug"], "unexpected extra argument"),
    ],
)
def test_bad_usage(capsys, arguments, sentence):
    assert sentence in refused(capsys, *arguments)


def test_a_bad_command_leaves_no_folder(capsys, tmp_path):
    refused(capsys, "images", "a chair", "--prior", "/nowhere")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    sentence = refused(capsys, "images", "a chair", "--out", tmp_path / "file" / "run")
    assert "could not be written" in sentence and "--out" in sentence


def test_priors_that_lack_a_file_or_a_byte(capsys, tmp_path, tiny_prior):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_prior, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    run = ("images", "a red table", "--prior", copy, *INLINE)
    assert "truncated" in _last_line(capsys, *run)
    weights.unlink()
    assert "diffusion_pytorch_model.safetensors" in _last_line(capsys, *run)


def _last_line(capsys, *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_images_end_to_end(capsys, tmp_path, tiny_prior):
    arguments = ["images", "a red table, ../../etc", "--prior", str(tiny_prior), *INLINE]
    arguments += ["--num-images", "3", "--steps", "2", "--json", "images.chunk_size=2"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    folder = Path(answer["folder"])
    assert answer["ok"] and folder.parent == Path("runs") and ".." not in folder.name
    names = {"000000000.png", "000000001.png", "000000002.png", "grid.png", "manifest.json", "progress.jsonl", "_shards"}
    assert {path.name for path in folder.iterdir()} == names
    assert set(Path.cwd().iterdir()) == {tmp_path / "runs"}
    assert "never shown: etc" in captured.err

    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["did"] == "nothing to do"


def test_errors_are_json_too(capsys):
    assert main(["images", "", "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and answer["exit_code"] == 2 and "prompt is empty" in answer["error"]


def test_what_nobody_expected_is_one_line_and_a_log(capsys, tmp_path, monkeypatch, tiny_prior):
    monkeypatch.setattr("orchestrator.run.artefacts.write_images_summary", lambda *a, **k: 1 / 0)
    arguments = ["images", "a table", "--prior", str(tiny_prior), *INLINE, "--num-images", "1", "--steps", "1"]
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error and "ZeroDivisionError" in error
    (log,) = (tmp_path / "run").glob("error-*.log")
    assert "Traceback" in log.read_text() and str(log) in error
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["state"] == "failed"

    assert main([*arguments, "--out", str(tmp_path / "run"), "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_outside_our_own_writers(capsys, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "/data/run")

    monkeypatch.setattr(common, "run_job", full)
    assert "/data/run is full" in refused(capsys, "images", "a chair")


def test_ctrl_c_before_the_job_has_begun(capsys, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(common, "run_job", interrupted)
    assert main(["images", "a chair", "--json"]) == 130
    captured = capsys.readouterr()
    assert captured.err == "dreamkiln: Stopped.\n" and json.loads(captured.out)["exit_code"] == 130


def test_a_user_without_a_name_has_a_number(monkeypatch):
    """As under Kubernetes' runAsUser."""
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 4_000_000_001)
    assert user_name() == "uid-4000000001"
    monkeypatch.setenv("USER", "ada")
    assert user_name() == "ada"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_a_library_makes_of_an_interrupt_is_the_interrupt(capsys, monkeypatch, number):
    def swallows(*_: object, **__: object) -> None:
        with stop_signals_interrupt():
            try:
                signal.raise_signal(number)
            except BaseException:
                raise RuntimeError("half imported") from None

    monkeypatch.setattr(common, "run_job", swallows)
    assert main(["images", "a chair", "--json"]) == 130
    captured = capsys.readouterr()
    assert captured.err.startswith("dreamkiln: Stopped. What was interrupted said RuntimeError: half imported; the details")
    assert json.loads(captured.out)["exit_code"] == 130


@pytest.mark.parametrize("error", [InputError("the honest end"), RuntimeError("a mistake")])
def test_an_interrupt_of_before_does_not_explain_an_error(capsys, monkeypatch, error):
    def first(*_: object, **__: object) -> None:
        with stop_signals_interrupt(), contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        if isinstance(error, InputError):
            raise error  # on purpose, after the signal

    def second(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(common, "run_job", first)
    assert main(["images", "a chair"]) == (2 if isinstance(error, InputError) else 0)
    monkeypatch.setattr(common, "run_job", second)
    assert main(["images", "a chair"]) == (2 if isinstance(error, InputError) else 1)
    assert str(error) in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}]
)
def test_a_terminal_without_unicode(settings):
    result = subprocess.run(
        [*COMMAND, "images", "--help"], env=command_environment() | settings, capture_output=True, timeout=60
    )
    assert result.returncode == 0 and b"--num-images" in result.stdout and result.stderr == b""


@pytest.mark.parametrize(
    "arguments",
    [
        ["images", "a chair", "--prior", ""],
        ["images", "--prompts", " "],
        ["images", "a chair", "--out="],
        ["text-to-3d", "a chair", "--out", ""],
        ["submit", "text-to-3d", "--prompts", ""],
        ["jobs", "list", "--state", ""],
        ["up", "--address", ""],
        ["doctor", "--prior", ""],
        ["evaluate", "images", "--judge", ""],
    ],
)
def test_an_unset_variable_of_the_shell_is_not_the_default(capsys, arguments):
    option = next(argument for argument in arguments if argument.startswith("--")).rstrip("=")
    assert f"{option} is empty, perhaps from an unset variable of the shell" in refused(capsys, *arguments)


def test_a_negative_prompt_may_be_empty(capsys):
    assert "num_images is 0" in refused(capsys, "images", "a chair", "--negative-prompt", "", "--num-images", "0")


@pytest.mark.parametrize("pipe", ["settings | head -1", "settings --json | true", "--help | head -1"])
def test_a_reader_that_leaves_is_no_failure(pipe):
    script = f"set -o pipefail; '{sys.executable}' -m orchestrator.cli {pipe}"
    done = subprocess.run(["bash", "-c", script], env=command_environment(), capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_while_the_command_is_imported_ends_it_in_silence(tmp_path):
    """A module of typer's is replaced by one that says that it is being imported and takes its time."""
    (tmp_path / "typer.py").write_text("import sys, time\nprint('importing', flush=True)\ntime.sleep(30)\n")
    environment = command_environment()
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    process = subprocess.Popen(
        [*COMMAND, "settings"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (130, "", "")


def test_the_installed_command_answers_bad_input_with_one_sentence(dreamkiln):
    for arguments in (["text-to-3d", ""], ["images", "a", "--colour", "red"], ["images", "🍄"]):
        result = dreamkiln(*arguments)
        assert result.returncode == 2 and result.stdout == ""
        assert len(result.stderr.strip().splitlines()) == 1 and result.stderr.startswith(SENTENCE)


def test_help_imports_nothing_heavy():
    """What makes --help slow is imports; unlike seconds they can be counted on any machine."""
    code = (
        "import sys; from orchestrator.cli.main import main; code = main(['--help']);"
        "heavy = {'torch', 'numpy', 'ray', 'hydra', 'omegaconf', 'open_clip', 'nerfacc', 'PIL'} & set(sys.modules);"
        "print(sorted(heavy), code, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], env=command_environment(), capture_output=True, text=True, timeout=60)
    assert result.stderr.strip() == "[] 0"
    for verb in ("text-to-3d", "images", "train", "toybox", "evaluate", "doctor"):
        assert verb in result.stdout


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split()[0] == "dreamkiln"


def test_what_settings_prints_can_be_given_back(capsys):
    arguments = ["settings", "--preset", "draft", "field=hash_grid", "fit.sparsity=0.5"]
    assert main([*arguments, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["settings"]
    assert values["fit"]["sparsity"]["start"] == 0.5 and values["field"]["kind"] == "hash_grid"
    assert main(arguments) == 0
    lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert "mesh.resolution=96" in lines and "images.guidance_interval=[0,1000]" in lines
    copied = [word for line in lines for word in shlex.split(line, comments=True)]  # as a shell reads them
    assert len(copied) == len(lines) and main(["settings", *copied, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] == values


def test_settings_of_one_group_are_explained(capsys):
    assert main(["settings", "mesh"]) == 0
    out = capsys.readouterr().out
    assert "max_faces: face budget" in out and "fit." not in out
    assert "no group 'msh' (did you mean mesh?)" in refused(capsys, "settings", "msh")
    assert "images has no variants to choose from" in refused(capsys, "settings", "images=many")


def test_every_verb_explains_itself(capsys):
    for arguments in (["text-to-3d"], ["images"], ["train"], ["toybox", "render"], ["evaluate"], ["export"], ["doctor"]):
        assert main([*arguments, "--help"]) == 0
        assert "Usage" in capsys.readouterr().out


def test_toybox_renders_a_preview(capsys, tmp_path):
    assert main(["toybox", "render", "--preview", "--out", str(tmp_path / "toybox"), "--size", "16"]) == 0
    assert Path(capsys.readouterr().out.strip()).exists()


def test_an_error_of_ours_needs_no_log_but_a_mistake_in_another_process_does():
    from orchestrator.cli.main import _explained

    error = DreamKilnError("x")
    assert _explained(error) is error
    mistake = UnexpectedError("ValueError: y")
    mistake.add_note("the traceback over there")
    sentence = str(_explained(mistake))
    assert "(ValueError: y)" in sentence
    assert "the traceback over there" in Path(sentence.rsplit(" in ", 1)[1].rstrip(".")).read_text()


def test_text_to_3d_settings_reach_the_spec(capsys, tmp_path, tiny_prior):
    out = tmp_path / "run"
    overrides = [*FAST_OVERRIDES, "fit.num_steps=2", "export.turntable_frames=0", "export.preview_size=16"]
    arguments = ["text-to-3d", "a red table", "--prior", str(tiny_prior), "--out", str(out), *INLINE, *overrides]
    assert main([*arguments, "--seed", "5", "--format", "obj,stl"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seed"] == 5 and manifest["spec"]["fit"]["num_steps"] == 2
    assert set(manifest["artefacts"]) == {"mesh.obj", "mesh.mtl", "mesh.stl", "preview.png", "progress.png"}
    assert "mesh.obj" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["up", "up.port=8000", "--json"], ["up", "--port", "8000", "--json"]),
        (
            ["toybox", "render", "render.num_items=3", "render.preview=true"],
            ["toybox", "render", "--num-items", "3", "--preview"],
        ),
        (["evaluate", "images", "evaluate.held_out=false", "seed=3"], ["evaluate", "images", "--taught", "seed=3"]),
        (["jobs", "list", "list.limit=5", "list.json=false"], ["jobs", "list", "--limit", "5"]),
        (["images", "a b", "images.num_steps=3"], ["images", "a b", "images.num_steps=3"]),
        (["images", "up.port=3"], ["images", "up.port=3"]),
        (["export", "run", "export.origin=base"], ["export", "run", "export.origin=base"]),
        (["submit", "export", "run", "export.origin=base"], ["submit", "export", "run", "export.origin=base"]),
        (["texture", "a.glb", "a ball", "texture.rate=1"], ["texture", "a.glb", "a ball", "texture.rate=1"]),
        (["--version"], ["--version"]),
    ],
)
def test_every_verb_takes_its_options_as_settings(words, options):
    assert as_options(typer.main.get_command(app), words) == options


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["up", "up.prot=1"], r"There is no setting up\.prot \(did you mean port\?\); up has: up\.state, "),
        (["toybox", "render", "render.preview=maybe"], r"render\.preview is 'maybe', but true or false was expected"),
    ],
)
def test_a_verbs_own_settings_that_are_wrong(words, sentence, capsys):
    assert main(words) == 2
    assert re.search(sentence, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["text-to-3d", "a table", "--guide-parts", "4"],
            r"No such option: --guide-parts.*has that name: fit\.guide_parts=…",
        ),
        (["text-to-3d", "-a red table"], "a prompt that begins with a dash stands behind '--'"),
        (["text-to-3d", "a table", "seed=4"], "seed is no setting but an option: --seed 4"),
        (["text-to-3d", "a table", "--steps", "1000000000000"], "num_steps is 1000000000000; give 1 to 1,000,000"),
        (["text-to-3d", "a table", "mesh.max_faces=1000000000000"], "max_faces is 1000000000000; give 100 to 100,000,000"),
        (["text-to-3d", "a table", "runtime.num_threads=1000000"], "runtime.num_threads is 1000000; give 0"),
        (["images", "--prompts", "~/nothing.csv"], "There is no prompt table ~/nothing.csv"),
        (["images", "--prompts=~/nothing.csv"], r"There is no prompt table /home/ada/nothing\.csv"),
    ],
)
def test_what_was_meant_is_named(capsys, monkeypatch, arguments, words):
    monkeypatch.setenv("HOME", "/home/ada")
    assert main(arguments) == 2
    with pytest.raises(InputError, match=words):
        raise InputError(capsys.readouterr().err)


def test_unknown_words_are_told_with_their_neighbours_and_not_with_all_that_is_known():
    prior = LocalPrior(FakePrior())
    near = warn_of_unknown_words(prior, "a zeppelin")
    assert [message.level for message in near] == ["warning"]
    assert _near("lighthous", ["lighthouse", "house"]) == " (near: lighthouse)" and _near("zeppelin", ["house"]) == ""


def test_examples_are_what_the_commands_of_the_documentation_take(tmp_path, capsys):
    folder = tmp_path / "examples"
    assert main(["examples", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {
        "mask.png",
        "picture.png",
        "prompts.csv",
        "prompts.txt",
        "strokes.png",
        "table.parquet",
    }
    said = capsys.readouterr().out
    assert f"--init-image {folder}/strokes.png" in said
    for table in ("prompts.csv", "prompts.txt", "table.parquet"):
        source = TableSource.find(str(folder / table))
        assert source.scan().num_rows == 6 and next(source.rows()).values["prompt"] == "a red house"
    pictures = EditPictures.read(folder / "picture.png", folder / "mask.png")
    assert pictures.image.shape == (64, 64, 3) and pictures.image.std() > 10
    assert main(["examples", str(folder)]) == 2
    assert "is there already; give another folder" in capsys.readouterr().err
