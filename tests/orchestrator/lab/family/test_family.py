"""`dreamkiln train objective=…` and `dreamkiln sample model=…`, as a user runs them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import family_pictures
from diffusion.models import MODELS
from nerf3d.toybox.shards import write_shards
from nerf3d.toybox.studio import PART_COLOURS
from orchestrator.cli.main import main
from orchestrator.exports import read_png_metadata
from orchestrator.host.progress_display import SilentDisplay
from orchestrator.lab.family.data import MIXTURE, MixturePoints
from orchestrator.lab.family.folder import load_model
from orchestrator.lab.family.train import SMALL, Plan, loss_of, train_family
from orchestrator.run.folder import held_folder
from tests.orchestrator.conftest import command_environment

POINTS = {"objective": "ddpm", "data": "mixture2d", "data.num_pictures": "512", "network.hidden": "16", "loop.num_steps": "3"}
TINY = {
    "network.block_out_channels": "[8,16]",
    "network.attention_levels": "[false,true]",
    "network.sample_size": "16",
    "network.num_classes": "auto",
    "loop.num_steps": "2",
    "loop.batch_size": "4",
}


def train_points(out: Path, **more: str) -> Path:
    settings = POINTS | {key.replace("__", "."): value for key, value in more.items()}
    return train_family(settings, out, device="cpu", display=SilentDisplay())


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one sentence of a command that ends with exit code 2."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.strip().splitlines() if line.startswith("dreamkiln: ")]
    assert len(lines) == 1 and captured.out == "", captured
    return lines[0].removeprefix("dreamkiln: ")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of points, hardly trained."""
    return train_points(tmp_path_factory.mktemp("points") / "ddpm")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of labelled pictures, hardly trained, from shards of twice its size."""
    root = tmp_path_factory.mktemp("pictures")
    list(write_shards(root / "shards", 96, shard_size=48, size=32))
    settings = {"objective": "improved_ddpm", "data.folder": str(root / "shards"), "data.kinds": "car,mushroom,chair", **TINY}
    return train_family(settings, root / "model", device="cpu", display=SilentDisplay())


# -- training --------------------------------------------------------------------------------------


def test_training_leaves_a_model_a_log_a_plot_and_samples(points: Path) -> None:
    card = json.loads((points / "model.json").read_text())
    assert card["model"] == "ddpm" and card["config"]["network"]["hidden"] == 16
    assert card["data"] == {"name": "mixture2d", "shape": [2], "num_items": 512, "classes": ["0", "1", "2", "3", "4"]}
    assert [json.loads(line)["step"] for line in (points / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    for name in ("loss.png", "samples.png"):
        with Image.open(points / name) as image:
            image.verify()


def test_pictures_are_resized_labelled_and_captioned(pictures: Path) -> None:
    model, card = load_model(pictures)
    assert model.shape == (3, 16, 16) and model.condition == "labels"
    assert card.classes == ("mushroom", "chair", "car"), "in the order of the catalogue"
    assert model.config.network.num_classes == 3
    with Image.open(pictures / "samples.png") as image:
        assert image.size == (4 * 20 + 4,) * 2


def test_pictures_are_rendered_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.lab.family.data.SHARD_SIZE", 64)
    settings = {"objective": "ddpm", "data.num_pictures": "64", **TINY}
    for _ in range(2):
        train_family(settings, tmp_path / "model", device="cpu", display=SilentDisplay())
    assert [path.name for path in (tmp_path / "training/scene-16").glob("*.safetensors")] == ["items-000000000.safetensors"]


def test_a_preset_lies_under_what_is_given_and_knows_other_networks() -> None:
    plan = Plan.parse({"objective": "bit_diffusion", "preset": "small", "data.look": "parts", "loop.num_steps": "7"})
    assert (plan.data.look, plan.data.kinds) == ("parts", SMALL["data.kinds"])
    assert plan.loop == {"batch_size": 16, "learning_rate": 1e-3, "warmup_steps": 50, "ema_decay": 0.99, "num_steps": 7}
    assert plan.config == {name: value for name, value in SMALL.items() if name.startswith("network.")}
    for objective in ("glide_upsampler", "noisy_clip"):
        assert Plan.parse({"objective": objective, "preset": "small"}).config == {}, "their networks are of other sizes"


def test_label_maps_of_some_kinds_are_rendered_and_sampled_in_their_colours(tmp_path: Path) -> None:
    settings = {"objective": "bit_diffusion", "palette": "auto", "data.look": "parts", "data.kinds": "car,mushroom", **TINY}
    del settings["network.num_classes"]
    settings |= {"data.num_pictures": "40", "network.patch_size": "2"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.lab.family.data.SHARD_SIZE", 20)
        train_family(settings, tmp_path / "model", device="cpu", display=SilentDisplay())
    assert len(list((tmp_path / "training/parts-16-mushroom-car").glob("*.safetensors"))) == 2
    model, card = load_model(tmp_path / "model")
    assert card.data["look"] == "parts" and card.data["num_items"] == 40
    assert tuple(model.config.palette) == PART_COLOURS
    with Image.open(tmp_path / "model/samples.png") as image:
        pixels = image.convert("RGB").crop((4, 4, 20, 20)).getcolors()
    assert pixels is not None
    assert {"#%02x%02x%02x" % colour for _, colour in pixels} <= set(PART_COLOURS)  # noqa: UP031


def test_the_weights_that_are_saved_are_the_averaged_ones(points: Path) -> None:
    checkpoint = torch.load(points / "checkpoint.pt", weights_only=True)
    model, _ = load_model(points)
    for parameter, average in zip(model.parameters(), checkpoint["ema"], strict=True):
        torch.testing.assert_close(parameter, average, rtol=0, atol=0)


def test_training_goes_on_and_ends_where_one_go_ends(tmp_path: Path) -> None:
    # No decay: its length depends on num_steps.
    train_points(tmp_path / "two", loop__num_steps="2", loop__decay_fraction="0")
    train_points(tmp_path / "two", loop__num_steps="5", loop__decay_fraction="0")
    train_points(tmp_path / "one", loop__num_steps="5", loop__decay_fraction="0")
    assert (tmp_path / "two/model.safetensors").read_bytes() == (tmp_path / "one/model.safetensors").read_bytes()
    assert len((tmp_path / "two/log.jsonl").read_text().splitlines()) == 5


def test_a_log_that_a_kill_left_behind_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    train_points(tmp_path / "model")
    with (tmp_path / "model/log.jsonl").open("a") as log:
        log.write('{"step": 4, "seconds": 0.1, "loss": 9.0}\n{"step": 5, "sec')
    train_points(tmp_path / "model", loop__num_steps="4")
    rows = [json.loads(line) for line in (tmp_path / "model/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[-1]["loss"] < 9.0


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_training_is_repeated_to_the_same_model(tmp_path: Path, stop: signal.Signals) -> None:
    settings = POINTS | {"loop.num_steps": "300"}

    def start(out: str, checkpoint_seconds: float) -> subprocess.Popen[str]:
        script = (
            "import sys, orchestrator.lab.family.train as t; from orchestrator.cli.main import main; "
            f"t.CHECKPOINT_SECONDS = {checkpoint_seconds}; sys.exit(main(sys.argv[1:]))"
        )
        arguments = ["train", *(f"{key}={value}" for key, value in settings.items()), "--out", out]
        command = [sys.executable, "-c", script, *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env=command_environment(), stderr=subprocess.PIPE, text=True)

    process = start("killed", 0.2)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed/checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(stop)
    error = process.communicate()[1]
    assert process.returncode == (130 if stop == signal.SIGTERM else -signal.SIGKILL), error
    assert stop == signal.SIGKILL or "repeat the same command to go on" in error
    for name in ("killed", "whole"):
        process = start(name, 60)
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("killed", "whole")]
    assert weights[0] == weights[1]


def test_the_points_are_of_the_mixture_that_is_written_down() -> None:
    drawn = MixturePoints.draw(40_000)
    weights, means = torch.tensor(MIXTURE.weights), torch.tensor(MIXTURE.means)
    for component in range(5):
        mine = drawn.points[drawn.labels == component]
        share = len(mine) / len(drawn)
        assert abs(share - weights[component]) < 4 * (weights[component] * (1 - weights[component]) / len(drawn)) ** 0.5
        assert float((mine.mean(0) - means[component]).abs().max()) < 4 * MIXTURE.deviation / len(mine) ** 0.5
        assert float((mine.std(0) / MIXTURE.deviation - 1).abs().max()) < 4 / (2 * len(mine)) ** 0.5


def test_points_are_trained_in_float32(points: Path) -> None:
    model, _ = load_model(points)
    loss = loss_of(model, MixturePoints.draw(64), "cpu")
    rows = torch.arange(64)
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = loss(rows, torch.Generator().manual_seed(0))
    expected, _ = model.loss(MixturePoints.draw(64).batch(rows), torch.Generator().manual_seed(0))
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


# -- sampling --------------------------------------------------------------------------------------


def test_samples_say_how_they_were_made_and_do_not_depend_on_their_number(points: Path, tmp_path: Path) -> None:
    assert main(["sample", f"model={points}", "num_steps=5", "num_samples=3", "seed=7", "--out", "a.csv"]) == 0
    assert main(["sample", f"model={points}", "num_steps=5", "num_samples=1", "seed=8", "--out", "b.csv"]) == 0
    a, b = ([[float(v) for v in row.split(",")] for row in Path(n).read_text().split()[1:]] for n in ("a.csv", "b.csv"))
    assert len(a) == 3
    torch.testing.assert_close(torch.tensor(a[1]), torch.tensor(b[0]), rtol=1e-4, atol=1e-5)
    arguments = ["num_steps=4", "sampler=ddim", "options.eta=0.5", "num_samples=2"]
    assert main(["sample", f"model={points}", *arguments, "--out", "c.png"]) == 0
    told = read_png_metadata(tmp_path / "c.png")
    assert (told["model"], told["sampler"], told["steps"], told["options"]) == ("ddpm", "ddim", "4", '{"eta": "0.5"}')
    assert len(told["weights_sha256"]) == 64


def test_labels_by_name_and_guidance(pictures: Path, tmp_path: Path) -> None:
    arguments = ["labels=car,0", "guidance_scale=2", "num_samples=3", "num_steps=2"]
    assert main(["sample", f"model={pictures}", *arguments, "--out", "grid.png"]) == 0
    with Image.open(tmp_path / "grid.png") as image:
        assert image.size == (2 * 20 + 4, 2 * 20 + 4)


def test_the_sheet_of_a_model_has_whole_pixels_and_the_names_of_labels(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(pictures), "labels=car,chair", "num_steps=2", "num_samples=3", "--out", str(tmp_path / "sheet.webp")]
    assert family_pictures.main(arguments) == 0
    with Image.open(tmp_path / "sheet.webp") as image:
        assert image.width > 3 * 96 and image.height > 96
    assert family_pictures.main([*arguments, "colour=red"]) == 2
    assert "There is no setting 'colour'" in capsys.readouterr().err


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["objective=dpm"], r"There is no objective 'dpm' (did you mean ddpm?)"),
        (["denoiser", "objective=ddpm"], "'denoiser' and objective=ddpm were given"),
        (["objective=ddpm", "--start-from", "x"], "--start-from belongs to the parts"),
        (["objective=ddpm", "data=mixtur2d"], "There is no data 'mixtur2d' (did you mean mixture2d?)"),
        (["objective=ddpm", "data=mixture2d", "network.hiden=3"], "no setting 'network.hiden' (did you mean hidden?)"),
        (["objective=ddpm", "data=mixture2d", "network=3"], "network is 3"),
        (["objective=ddpm", "data=mixture2d", "beta_start.x=3"], "beta_start is a plain value"),
        (["objective=ddpm", "data=mixture2d", "beta_start=-1"], "expected every beta strictly between 0 and 1"),
        (["objective=ddpm", "data=mixture2d", "loop.num_steps=many"], "loop.num_steps is 'many'"),
        (["objective=ddpm", "data=mixture2d", "loop.num_steps=0"], "num_steps is 0; give at least 1"),
        (["objective=ddpm", "data=mixture2d", "loop.learning_rate=-1"], "learning_rate is -1.0; give a number over 0"),
        (["objective=ncsn", "data=mixture2d", "sigma_min=-1"], "expected 0 < sigma_min < sigma_max"),
        (["objective=ncsn", "bogus=3"], "There is no setting 'bogus'"),  # before pictures are rendered
        (["objective=ncsn", "loop.colour=1"], "There is no setting 'loop.colour'"),
        (["--start-from", "nowhere"], "'nowhere' is neither 'toybox' nor a folder"),
        (["objective=ddpm", "data=mixture2d", "loop.colour=1"], "There is no setting 'loop.colour'"),
        (["objective=ddpm", "data=mixture2d", "data.num_pictures=0"], "num_pictures is 0"),
        (["objective=ddpm", "data.kinds=car,dragon"], "There is no label 'dragon'"),
        (["objective=ddpm", "preset=smal"], "There is no preset 'smal' (did you mean small?)"),
        (["objective=ddpm", "preset=small", "data=mixture2d"], "preset=small is for pictures"),
        (["objective=ddpm", "data.look=studo"], "data.look is 'studo' (did you mean studio?)"),
        (["objective=ddpm", "data.look=studio", "--data", "x"], "leave out one: that look is rendered on demand"),
        (["objective=ddpm", "--data", "nowhere"], "nowhere holds no training shards"),
        (["objective=ddpm", "network.sample_size=big"], "network.sample_size is 'big'"),
        (["objective=improved_ddpm", "data=mixture2d", "loss=both"], "loss is 'both'"),
    ],
)
def test_bad_training_commands(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert sentence in refused(capsys, "train", *arguments)


def test_a_checkpoint_of_another_optimiser_is_one_sentence(points: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = [f"{key}={value}" for key, value in POINTS.items()]
    assert "was written with 1 optimisers" in refused(capsys, "train", *same, "loop.optimizer=muon", "--out", points)


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held_folder(tmp_path / "busy"):
        said = refused(capsys, "train", "objective=ddpm", "data=mixture2d", "loop.num_steps=1", "--out", tmp_path / "busy")
    assert "busy is in use by another dreamkiln process" in said


@pytest.mark.parametrize("num_pages", [1, 4])
def test_a_full_disk_is_one_sentence_and_the_training_goes_on_when_there_is_room(
    small_disk: Path, capsys: pytest.CaptureFixture[str], num_pages: int
) -> None:
    """With one page beside the card the log is the first that finds no room, with four the checkpoint."""
    same = [f"{key}={value}" for key, value in POINTS.items()]
    out, page = small_disk / "model", 4096
    (small_disk / "filler").write_bytes(b"\0" * (256 * 1024 - num_pages * page))
    said = refused(capsys, "train", *same, "--out", out)
    assert said.startswith(str(out)) and "could not be written: the disk is full; free some space" in said
    assert {path.name for path in out.iterdir()} == {"model.json", "log.jsonl"}
    (small_disk / "filler").unlink()
    assert main(["train", *same, "--out", str(out)]) == 0
    assert (out / "checkpoint.pt").exists() and not list(out.glob("*.tmp"))


def test_another_training_is_not_overwritten(points: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = [f"{key}={value}" for key, value in POINTS.items()]
    said = refused(capsys, "train", *same, "network.layers=5", "--out", points)
    assert "holds the training of 'ddpm' with other settings (network.layers=3, here 5)" in said
    assert "data.num_items=512, here 64" in refused(capsys, "train", *same, "data.num_pictures=64", "--out", points)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["sampler=dim"], "there is no sampler 'dim'; expected one of 'ddpm', 'ddim'"),
        (["num_steps=1001"], "num_steps is 1001; expected 1 to 1000"),
        (["num_steps=few"], "num_steps is 'few', but a whole number"),
        (["num_samples=0"], "num_samples is '0'"),
        (["guidance_scale=much"], "guidance_scale is 'much'"),
        (["guidance_scale=3"], "guidance scale is 3 without labels"),
        (["labels=1"], "this model takes neither labels nor a prompt"),
        (["prompt=a car"], "this model takes neither labels nor a prompt"),
        (["colour=red"], "There is no setting 'colour'"),
        (["options.et=1"], "there is no option 'et'"),
        (["sampler=ddim", "options.eta=2"], "eta is 2; expected 0 to 1"),
        (["sampler=ddim", "options.eta=yes"], "the option 'eta' is 'yes'"),
        (["options.variance=learned", "num_steps=3"], "the network predicts none"),
        (["options.picture=nowhere.png"], "nowhere.png is no readable picture"),
        (["--out", "samples.jpg"], "give a file that ends in .png"),
    ],
)
def test_bad_sampling_commands(points: Path, capsys: pytest.CaptureFixture[str], settings: list[str], sentence: str) -> None:
    assert sentence in refused(capsys, "sample", f"model={points}", *settings)


def test_no_such_label(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no label 'cat'" in refused(capsys, "sample", f"model={pictures}", "labels=cat")
    assert "There is no label '3'" in refused(capsys, "sample", f"model={pictures}", "labels=3")
    assert "give a file that ends in .png" in refused(capsys, "sample", f"model={pictures}", "--out", "a.csv")


def test_damaged_folders(points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def copy_with(name: str, content: bytes | None) -> Path:
        folder = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for file in ("model.json", "model.safetensors"):
            (folder / file).write_bytes((points / file).read_bytes())
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        return folder

    card = json.loads((points / "model.json").read_text())
    wider = json.dumps(card | {"config": card["config"] | {"network": card["config"]["network"] | {"hidden": 32}}})
    cases = [
        ("model.json", None, "is no trained model: it has no model.json"),
        ("model.json", b"{", "model.json is damaged (JSONDecodeError"),
        ("model.json", b"{}", "model.json is damaged (KeyError: 'model')"),
        ("model.json", json.dumps(card | {"model": "glow"}).encode(), "there is no model 'glow'"),
        ("model.json", json.dumps(card | {"config": {"depth": 3}}).encode(), "There is no setting 'config.depth'"),
        ("model.json", wider.encode(), "network.time_embedding.linear_1.weight is (16, 16), expected (32, 32)"),
        ("model.safetensors", None, "has no model.safetensors yet"),
        ("model.safetensors", (points / "model.safetensors").read_bytes()[:2000], "(2000 bytes) is truncated"),
    ]
    for name, content, sentence in cases:
        assert sentence in refused(capsys, "sample", f"model={copy_with(name, content)}"), sentence
    assert "No model was named" in refused(capsys, "sample", "seed=3")


def test_help_lists_the_objectives(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("train", "sample"):
        assert main([verb, "--help"]) == 0
        shown = "".join(capsys.readouterr().out.split())
        assert all(name in shown for name in MODELS), verb
