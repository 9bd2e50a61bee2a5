"""Runs one part's training: progress with time left, a log, a checkpoint every two minutes, a loss plot, sample grids."""

import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from diffusion.training.denoiser import TextConditionedDenoiser
from diffusion.training.loop import LoopConfig, TrainProgress, TrainState
from jobs.codec import from_plain, to_plain
from jobs.errors import InputError
from jobs.events import Progress
from orchestrator.host.atomic import clear_output_errors
from orchestrator.host.progress_display import Display
from orchestrator.lab.training import recipe
from orchestrator.lab.training.assemble import assemble
from orchestrator.lab.training.gate import Gate, plot_gates
from orchestrator.lab.training.latents import encode
from orchestrator.lab.training.parts import CHECKPOINT, PARTS, measure_scaling, trained_autoencoder
from orchestrator.lab.training.pictures import Pictures
from orchestrator.run.folder import held_folder

CHECKPOINT_SECONDS = 120
GRID_STEPS = 500
GATE_STEPS = 250


def train_part(
    name: str, data: Pictures, root: Path, *, config: LoopConfig | None = None, device: str | None = None
) -> Iterator[TrainProgress]:
    """Trains a part to its end, or on from its checkpoint; yields every step.

    Writes ROOT/NAME/checkpoint.pt, log.jsonl and loss.png; for the denoiser also samples-STEP.png.

    Raises:
        InputError: an unknown part, or one whose predecessors are not trained.
        OutputError: the folder cannot be written, or another process trains in it.
    """
    if name not in PARTS:
        raise InputError(f"There is no part {name!r} to train; choose one of {', '.join(PARTS)}.")
    config = config or recipe.LOOPS[name]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = root / name
    with held_folder(folder):
        yield from _train_part(name, data, root, config, device)
        if name == "autoencoder":
            measure_scaling(data, root)


def _train_part(name: str, data: Pictures, root: Path, config: LoopConfig, device: str) -> Iterator[TrainProgress]:
    folder = root / name
    part = PARTS[name](data, root, config, device)
    saved = time.monotonic()
    # Outside of the log, whose closing writes what is left of it.
    with clear_output_errors(folder), (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        for progress in part.steps:
            log.write(json.dumps({"step": progress.step, "seconds": progress.seconds, **progress.metrics}) + "\n")
            last = progress.step == progress.num_steps
            if last or time.monotonic() - saved > CHECKPOINT_SECONDS:
                log.flush()
                part.state.save(folder / CHECKPOINT)
                plot_losses(folder)
                saved = time.monotonic()
            if name == "views" and (last or progress.step % GATE_STEPS == 0):
                ask_gate(part.state, root, progress.step)
            if name == "denoiser" and (last or progress.step % GRID_STEPS == 0):
                part.state.save(folder / CHECKPOINT)
                draw_samples(root, folder / f"samples-{progress.step:06d}.png")
            yield progress


def ask_gate(state: TrainState, root: Path, step: int) -> dict[str, float]:
    """What the averaged weights know of cameras: a line in ROOT/views/gate.jsonl, and its plot."""
    gate = _gate(root)
    with state.averaged() as module:
        assert isinstance(module, TextConditionedDenoiser)
        module.eval()
        figures = gate.figures(module, recipe.SCHEDULE)
        module.train()
    folder = root / "views"
    with (folder / "gate.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **figures}) + "\n")
    plot_gates(folder)
    return figures


@functools.cache
def _gate(root: Path) -> Gate:
    return Gate.make(trained_autoencoder(root), recipe.toybox_tokenizer())


def plot_losses(folder: Path) -> None:
    """loss.png beside log.jsonl: every step and a running mean, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps, losses = [r["step"] for r in rows], torch.tensor([r["loss"] for r in rows])
    width = max(1, len(losses) // 50)
    smooth = losses.unfold(0, width, 1).mean(dim=1)
    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.loglog(steps, losses, linewidth=0.4, alpha=0.4, color="tab:blue")
    axes.loglog(steps[width - 1 :], smooth, linewidth=1.5, color="tab:blue")
    axes.set(xlabel="step", ylabel="loss", title=folder.name)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(folder / "loss.png", dpi=110)
    plt.close(figure)


def draw_samples(root: Path, path: Path) -> None:
    """A grid of held-out prompts, one a kind, drawn with the averaged weights as they stand."""
    from diffusion.requests import Guidance
    from jobs.prior_client import GenerateRequest
    from nerf3d.toybox.heldout import held_out_prompts
    from nerf3d.toybox.kinds import KINDS
    from orchestrator.exports import write_image_grid
    from orchestrator.prior.local import load_prior

    assemble(root, root / "prior")
    prompts = tuple(f"{prompt}, front left view" for prompt in held_out_prompts(len(KINDS)))
    request = GenerateRequest(
        prompts=prompts, seeds=tuple(range(len(prompts))), num_steps=20, guidance=Guidance(scale=4.0, rescale=0.5)
    )
    write_image_grid(load_prior(str(root / "prior")).generate(request), path)


def train_parts(
    parts: Sequence[str], data: Path, root: Path, *, device: str, overrides: Mapping[str, str], display: Display
) -> None:
    """Trains some parts one after the other, showing their progress; "assemble" writes ROOT/prior.

    Args:
        overrides: PART.FIELD -> text, for the fields of `LoopConfig`, such as denoiser.num_steps -> "200".

    Raises:
        InputError: an unknown part or setting, missing data, or a part whose predecessors are not trained.
    """
    loops = loop_configs(overrides)
    pictures: Pictures | None = None
    with display:
        for name in parts:
            if name == "assemble":
                assemble(root, root / "prior")
                display.message(f"The prior is in {root / 'prior'}; use it with --prior {root / 'prior'}.")
                continue
            pictures = pictures or Pictures.load(data)
            if name == "views" and len(parts) > 1 and pictures.num_views == 1:
                display.message(
                    "views: left out, because each object is shown from one side; render with --views 4 to train them."
                )
                continue
            display.message(f"{name}: {len(pictures)} pictures; checkpoints, log and plots in {root / name}")
            if name in ("denoiser", "views"):
                for encoded in encode(pictures, trained_autoencoder(root), root, device=device):
                    display.event(encoded)
            for progress in train_part(name, pictures, root, config=loops[name], device=device):
                display.event(
                    Progress(
                        stage=name,
                        step=progress.step,
                        total=progress.num_steps,
                        metrics=progress.metrics,
                        seconds_left=progress.seconds_left,
                    )
                )


def loop_configs(overrides: Mapping[str, str]) -> dict[str, LoopConfig]:
    """The recipe's loops with settings changed.

    Raises:
        InputError: a setting that no part has, or a value of the wrong kind.
    """
    values = {name: to_plain(loop) for name, loop in recipe.LOOPS.items()}
    for key, text in overrides.items():
        part, _, field = key.partition(".")
        if part not in values:
            raise InputError(f"There is no training setting {key!r}; write PART.SETTING, with a part of {', '.join(values)}.")
        try:
            values[part][field] = json.loads(text)
        except json.JSONDecodeError:
            raise InputError(f"{key} is {text!r}, but a number was expected.") from None
    return {name: from_plain(LoopConfig, value, path=name) for name, value in values.items()}
