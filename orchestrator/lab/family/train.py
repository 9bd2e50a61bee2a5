"""`dreamkiln train objective=NAME`: one model of the family from data to a folder that `dreamkiln sample` draws from."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from diffusion.checkpoints.checkpoint import PriorCard
from diffusion.errors import DiffusionError
from diffusion.models import MODELS, model_class
from diffusion.models.base import Model, SampleRequest
from diffusion.models.rectified_flow import RectifiedFlow
from diffusion.networks.joint_transformer import JointTransformer
from diffusion.networks.pixel_unet import PixelUNetConfig
from diffusion.precision import autocast
from diffusion.prior_folder import save_flow
from diffusion.text.frozen_tower import toybox
from diffusion.training.loop import LoopConfig, Loss, TrainProgress, TrainState, train
from jobs.codec import near_matches, to_plain
from jobs.errors import InputError, Interrupted, JobFailed
from jobs.events import Progress
from orchestrator.host.atomic import clear_output_errors, write_text
from orchestrator.host.progress_display import Display
from orchestrator.host.signals import signals_deferred
from orchestrator.lab.family.data import LATENTS, Data, DataSettings, load_data
from orchestrator.lab.family.folder import CARD, Card, load_model, save_weights
from orchestrator.lab.family.pictures import write_samples
from orchestrator.run.folder import held_folder
from orchestrator.settings.overrides import diffusion_errors_are_input, override, parse

CHECKPOINT, LOG, LOSS_PLOT, SAMPLES, PRIOR = "checkpoint.pt", "log.jsonl", "loss.png", "samples.png", "prior"
CHECKPOINT_SECONDS = 60.0
NUM_SAMPLES = 16

SMALL: Mapping[str, Any] = {
    "data.look": "studio",
    "data.kinds": "mushroom,cactus,mug,car",
    "data.num_pictures": 4096,
    "network.patch_size": 2,
    "network.block_out_channels": [64, 128],
    "network.attention_levels": [False, True],
    "loop.batch_size": 16,
    "loop.learning_rate": 1e-3,
    "loop.warmup_steps": 50,
    "loop.ema_decay": 0.99,
}
"""Four kinds before white and a small network: some hundred steps, minutes of one CPU core, draw what one can name."""

PRESETS: Mapping[str, Mapping[str, Any]] = {"small": SMALL}
"""Settings by name, under those that are given one by one."""

PICTURE_LOOP = LoopConfig(num_steps=20_000, batch_size=32, learning_rate=4e-4, warmup_steps=200, ema_decay=0.999)
LATENT_LOOP = LoopConfig(
    num_steps=1_250, batch_size=64, learning_rate=1.5e-3, warmup_steps=100, ema_decay=0.998, optimizer="muon"
)
POINT_LOOP = LoopConfig(num_steps=4_000, batch_size=256, learning_rate=2e-3, warmup_steps=100, ema_decay=0.995)


@dataclasses.dataclass(frozen=True)
class Plan:
    """One training, as the command line asked for it.

    Args:
        objective: name of the model.
        data_name, data: which data, and how much of it.
        config: settings of the model's configuration, dotted.
        loop: settings of the loop.
        start_from: folder of a trained model whose weights are the beginning.
    """

    objective: str
    data_name: str
    data: DataSettings
    config: Mapping[str, Any]
    loop: Mapping[str, Any]
    start_from: str | None = None

    @classmethod
    def parse(cls, settings: Mapping[str, str]) -> Plan:
        """From key=value texts.

        Raises:
            InputError: no objective, an unknown one, or a setting that is not there: found out before data are rendered.
        """
        values = {key: parse(text) for key, text in settings.items()}
        objective = str(values.pop("objective", ""))
        if objective not in MODELS:
            raise InputError(
                f"There is no objective {objective!r}{near_matches(objective, MODELS)}; choose one of {', '.join(MODELS)}."
            )
        data_name = str(values.pop("data", "toybox"))
        if data_name == LATENTS and objective != "rectified_flow":
            raise InputError(f"data={LATENTS} is for objective=rectified_flow, not {objective}; give data=toybox.")
        values = _preset(values.pop("preset", None), objective, data_name) | values
        start_from = str(values.pop("start_from")) if "start_from" in values else None
        groups: dict[str, dict[str, Any]] = {"data": {}, "loop": {}, "": {}}
        for key, value in values.items():
            group, _, name = key.partition(".")
            groups[group if group in groups else ""][name if group in groups else key] = value
        data = override(DataSettings(), groups["data"], path="data.")
        override(PICTURE_LOOP, groups["loop"], path="loop.")
        config = model_class(objective).Config()
        mistaken = {key.partition(".")[0] for key in groups[""]} - {field.name for field in dataclasses.fields(config)}
        override(config, dict.fromkeys(sorted(mistaken)))
        return cls(objective, data_name, data, groups[""], groups["loop"], start_from)

    def build(self, data: Data) -> Model:
        """The untrained model for the data; `network.num_classes=auto` is its number of labels, `palette=auto` its colours.

        Raises:
            InputError: a setting that the model does not have, or a value that it refuses.
        """
        cls = model_class(self.objective)
        automatic = {"num_classes": len(data.classes), "palette": data.palette}
        config = {
            key: automatic.get(key.rpartition(".")[2], value) if value == "auto" else value
            for key, value in self.config.items()
        }
        with diffusion_errors_are_input():
            return cls(override(cls.default_config(data.shape, len(data.classes)), config))

    @property
    def size(self) -> int:
        """Pixels a side that the network asks for."""
        network = getattr(model_class(self.objective).Config(), "network", None)
        size = self.config.get("network.sample_size", getattr(network, "sample_size", 32))
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"network.sample_size is {size!r}, but a whole number of at least 1 was expected.")
        return size

    def loop_config(self, data: Data) -> LoopConfig:
        """The loop: the common default for pictures or points, the model's own settings, then the user's.

        Raises:
            InputError: a setting that the loop does not have, or a value out of range.
        """
        default = POINT_LOOP if len(data.shape) == 1 else LATENT_LOOP if self.data_name == LATENTS else PICTURE_LOOP
        chosen = dataclasses.replace(default, **model_class(self.objective).loop_settings)
        return override(chosen, self.loop, path="loop.")


def _preset(name: Any, objective: str, data_name: str) -> dict[str, Any]:
    """A preset's settings for a model; those of the network only where the model's own is the common one."""
    if name is None:
        return {}
    if name not in PRESETS:
        raise InputError(f"There is no preset {name!r}{near_matches(str(name), PRESETS)}; choose one of {', '.join(PRESETS)}.")
    if data_name != "toybox":
        raise InputError(f"preset={name} is for pictures, and data={data_name} was given; leave out one of the two.")
    common = getattr(model_class(objective).Config(), "network", None) == PixelUNetConfig()
    return {key: value for key, value in PRESETS[name].items() if common or not key.startswith("network.")}


def train_family(settings: Mapping[str, str], out: Path, *, device: str, display: Display) -> Path:
    """Trains a model to its end, or on from its checkpoint; see `docs/models.md` for the settings.

    Writes OUT/model.json, model.safetensors, checkpoint.pt, log.jsonl, loss.png and samples.png.

    Returns:
        `out`.

    Raises:
        InputError: an unknown objective or setting, data that is not there, or a folder of another training.
        OutputError: the folder cannot be written, or another process trains in it.
        Interrupted: a stop signal came; the checkpoint is written.
        JobFailed: the loss is no longer finite.
    """
    plan = Plan.parse(settings)
    with display:
        data = load_data(plan.data_name, plan.data, size=plan.size, say=display.message)
        loop = plan.loop_config(data)
        torch.manual_seed(loop.seed)
        model = plan.build(data).to(device)
        if plan.start_from is not None:
            _start(model, Path(plan.start_from), device)
        with held_folder(out):
            _claim(out, Card.of(model, data.describe()))
            count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            display.message(f"{plan.objective}: {count:,} parameters, {len(data):,} items; checkpoints and plots in {out}")
            for step in _steps(model, data, loop, out, device=device):
                display.event(
                    Progress(
                        stage=plan.objective,
                        step=step.step,
                        total=step.num_steps,
                        metrics=step.metrics,
                        seconds_left=step.seconds_left,
                    )
                )
            if isinstance(model, RectifiedFlow) and isinstance(model.network, JointTransformer):
                write_prior(out)
                display.message(f"The prior is in {out / PRIOR}; use it with --prior {out / PRIOR}.")
            if model.draws:
                display.message(f"drawing {out / SAMPLES}")
                _draw_samples(model, data, out, display)
    return out


def write_prior(folder: Path) -> None:
    """FOLDER/prior, a prior like any other, from the averaged weights of a flow of the toybox prior's latents."""
    model, card = load_model(folder)
    assert isinstance(model, RectifiedFlow) and isinstance(model.network, JointTransformer)
    about = PriorCard("flow-toybox", toybox("cpu").image_size, tuple(card.data["vocabulary"]), view_words=True)
    save_flow(folder / PRIOR, card=about, transformer=model.network, schedule=model.schedule)


def next_command(objective: str, folder: Path) -> str:
    """The command that uses a model that was trained."""
    if (folder / PRIOR).is_dir():
        return f"dreamkiln images SENTENCE --prior {folder / PRIOR}"
    uses = {
        "glide": "model={} prompt=SENTENCE guidance_scale=3",
        "glide_inpainting": "model={} prompt=SENTENCE options.image=PICTURE options.mask=MASK",
        "glide_upsampler": "model={} prompt=SENTENCE options.low_res=PICTURE",
        "noisy_classifier": "model=MODEL labels=LABELS options.classifier={}",
        "noisy_clip": "model=GLIDE prompt=SENTENCE options.clip={}",
    }
    return f"dreamkiln sample {uses.get(objective, 'model={} num_samples=16').format(folder)} --out samples.png"


def _start(model: Model, folder: Path, device: str) -> None:
    """Gives a model the weights of a trained one."""
    trained, _ = load_model(folder, device=device)
    try:
        model.start_from(trained)
    except DiffusionError as error:
        raise InputError(f"start_from={folder} cannot be used: {error}.") from error


def _claim(out: Path, card: Card) -> None:
    """Writes the card, or checks that the folder's training is this one."""
    if not (out / CARD).exists():
        card.write(out)
        return
    found = Card.read(out)
    ours = json.loads(json.dumps([card.model, card.config, card.data]))
    if [found.model, found.config, found.data] != ours:
        raise InputError(
            f"{out} holds the training of {found.model!r} with other settings ({_first_difference(found, card)}); repeat its "
            "own command to go on with it, or choose another --out."
        )


def _first_difference(found: Card, card: Card) -> str:
    if found.model != card.model:
        return f"objective={found.model}, here {card.model}"
    for part in ("data", "config"):
        theirs = dict(_flat(getattr(found, part), "" if part == "config" else "data."))
        for key, value in _flat(json.loads(json.dumps(getattr(card, part))), "" if part == "config" else "data."):
            if theirs.get(key) != value:
                return f"{key}={theirs.get(key)}, here {value}"
    return "its settings"


def _flat(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _steps(model: Model, data: Data, loop: LoopConfig, out: Path, *, device: str) -> Iterator[TrainProgress]:
    """The training loop with its log, checkpoints and plot; stops between two steps, never within one."""
    from orchestrator.lab.training.parts import load_or_create_state

    state = load_or_create_state(model, out, loop)
    steps = train(state, loss_of(model, data, device), loop, num_rows=len(data), device=torch.device(device).type)
    _cut_log(out / LOG, state.step)
    saved = time.monotonic()
    # Outside of the log, whose closing writes what is left of it.
    with clear_output_errors(out), (out / LOG).open("a", encoding="utf-8") as log:
        try:
            while state.step < loop.num_steps:
                with signals_deferred():
                    progress = next(steps)
                    log.write(json.dumps({"step": progress.step, "seconds": progress.seconds, **progress.metrics}) + "\n")
                yield progress
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    _checkpoint(state, model, out, log)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            with signals_deferred():
                _checkpoint(state, model, out, log)
            raise Interrupted(f"Stopped at step {state.step}; repeat the same command to go on.") from None
        except FloatingPointError as error:
            raise JobFailed(f"The training cannot go on: {error}.") from error
        _checkpoint(state, model, out, log)


def loss_of(model: Model, data: Data, device: str) -> Loss:
    """The model's loss over numbers of items. Points are trained in float32: bfloat16 has too few digits for them."""
    points = len(data.shape) == 1

    def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch = data.batch(rows)
        labels = None if batch.labels is None else batch.labels.to(device)
        batch = dataclasses.replace(batch, x=batch.x.to(device), labels=labels)
        with autocast(torch.device(device).type, enabled=not points):
            return model.loss(batch, generator)

    return loss


def _checkpoint(state: TrainState, model: Model, out: Path, log: TextIO) -> None:
    """The resume point, the averaged weights and the plot."""
    from orchestrator.lab.training.run import plot_losses

    log.flush()
    state.save(out / CHECKPOINT)
    with state.averaged():
        save_weights(model, out)
    if (out / LOG).stat().st_size:
        plot_losses(out)


def _cut_log(path: Path, step: int) -> None:
    """Drops what a killed run logged after its last checkpoint, and a line that it did not finish."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    write_text(path, "".join(kept))


def _draw_samples(model: Model, data: Data, out: Path, display: Display) -> None:
    """samples.png, drawn with the averaged weights in the folder; none where the schedule is shorter than the preview."""
    trained, _ = load_model(out, device=str(model.device))
    seeds = tuple(range(NUM_SAMPLES if len(data.shape) == 3 else 1000))
    first = data.batch(torch.arange(len(seeds)) % len(data))
    labels = captions = None
    if trained.condition == "labels" and first.labels is not None:
        labels = tuple(first.labels.tolist())
    if trained.condition == "captions":
        captions = first.captions
    try:
        samples = trained.sample(SampleRequest(seeds, labels=labels, prompts=captions, **model.preview_request(first)))
    except DiffusionError as error:
        display.message(f"no {SAMPLES}: {error}", level="warning")
        return
    write_samples(
        samples, out / SAMPLES, metadata={"model": model.name, "seed": "0", "settings": json.dumps(to_plain(model.config))}
    )
