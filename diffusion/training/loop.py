"""One training loop for every part: AdamW or Muon, warm-up / hold / cosine decay, gradient clipping, EMA, exact resume.

The loop is a generator; progress bars, checkpoints and pictures live in the caller. The batch, the noise and the
dropout of step k come from (seed, k) alone, so a resumed run continues as if it had never stopped.
"""

import io
import math
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffusion.errors import DiffusionError
from diffusion.precision import autocast
from diffusion.seeding import stream
from diffusion.training.muon import Muon

Loss = Callable[[Tensor, torch.Generator], tuple[Tensor, dict[str, float]]]
"""(row indices (B,), the step's random stream) -> (scalar loss, figures to report)."""


@dataclass(frozen=True)
class LoopConfig:
    """Length, optimiser and averaging of one training run.

    With "muon", AdamW still trains what is no hidden matrix: vectors, embeddings, and the first and last convolution.

    Raises:
        DiffusionError: a value out of range, named.
    """

    num_steps: int
    batch_size: int = 48
    learning_rate: float = 7e-4
    warmup_steps: int = 200
    decay_fraction: float = 0.4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    optimizer: Literal["adamw", "muon"] = "adamw"

    def __post_init__(self) -> None:
        checks = {
            "num_steps": (self.num_steps >= 1, "at least 1"),
            "batch_size": (self.batch_size >= 1, "at least 1"),
            "learning_rate": (0 < self.learning_rate < math.inf, "a number over 0"),
            "warmup_steps": (self.warmup_steps >= 0, "0 or more"),
            "decay_fraction": (0 <= self.decay_fraction <= 1, "0 to 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "max_grad_norm": (self.max_grad_norm > 0, "a number over 0"),
            "ema_decay": (0 <= self.ema_decay < 1, "0 to under 1"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (is_valid, expected) in checks.items():
            if not is_valid:
                raise DiffusionError(f"{name} is {getattr(self, name)}; give {expected}")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, constant, then a cosine to zero over the last `decay_fraction` of the run."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decay_start = self.num_steps * (1 - self.decay_fraction)
        progress = max(0.0, (step - decay_start) / max(1.0, self.num_steps - decay_start))
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def ema_decay_at(self, step: int) -> float:
        """Short memory at first, so that the average forgets the initial weights."""
        return min(self.ema_decay, (1 + step) / (10 + step))


PACE_STEPS = 20
"""Over about so many steps the time that is left is averaged."""


@dataclass(frozen=True)
class TrainProgress:
    """What one step did. seconds: of this step. pace: seconds a step, averaged over about the last `PACE_STEPS`."""

    step: int
    num_steps: int
    metrics: dict[str, float]
    seconds: float
    pace: float

    @property
    def seconds_left(self) -> float:
        """At the present pace."""
        return (self.num_steps - self.step) * self.pace


NOT_HIDDEN = ("embedding", "conv_in", "conv_out", "_embed", "norm1.", "norm1_context.", "norm_out.", "network.proj_out.")
"""Matrices in whose name one of these occurs are no maps between hidden spaces: AdamW trains them. The last ones are a
transformer's: its modulations and its last layer, which begin at zero."""

CAMERA_PARTS = ("camera_embed", "to_position")
"""AdamW trains these at `CAMERA_RATE` times the rate: they begin at nothing beside a network that has learned."""

CAMERA_RATE = 4.0


def make_optimizers(module: nn.Module, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all trained parameters, or Muon for the hidden matrices and AdamW for the rest."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    of_cameras = [p for name, p in trained if any(part in name for part in CAMERA_PARTS)]
    named = [(name, p) for name, p in trained if not any(part in name for part in CAMERA_PARTS)]
    hidden = [p for name, p in named if p.ndim >= 2 and not any(part in name for part in NOT_HIDDEN)]
    if config.optimizer == "adamw":
        hidden = []
    taken = {id(p) for p in hidden}
    rest = [p for _, p in named if id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    if of_cameras:
        groups.append({"params": of_cameras, "weight_decay": 0.0, "rate_scale": CAMERA_RATE})
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)]
    if hidden:
        optimizers.append(Muon(hidden, lr=config.learning_rate, weight_decay=config.weight_decay))
    return optimizers


class TrainState:
    """A module in training with its optimisers, moving average and step count."""

    def __init__(self, module: nn.Module, config: LoopConfig) -> None:
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizers = make_optimizers(module, config)
        self.ema = [p.detach().clone() for p in self.parameters]
        self.step = 0

    def save(self, path: Path) -> None:
        """Writes a resume point: after a crash `path` holds the old or the new one, never a part.

        Raises:
            OSError: it cannot be written, such as on a full disk; nothing is left of it.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        payload = {
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema,
            "step": self.step,
        }
        whole = io.BytesIO()  # torch's own writing to a file turns a full disk into an error without a number
        torch.save(payload, whole)
        try:
            with temporary.open("wb") as file:
                file.write(whole.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def load(self, path: Path) -> None:
        """Reads a resume point.

        Raises:
            DiffusionError: it was written with another optimiser.
        """
        payload = torch.load(path, weights_only=True, map_location=self.parameters[0].device)
        kept = payload["optimizers"]
        if len(kept) != len(self.optimizers):
            raise DiffusionError.explained(
                f"{path} was written with {len(kept)} optimisers, this run has {len(self.optimizers)}",
                expected="the optimiser that the run began with",
                fix="set the part's 'optimizer' back, or start in another folder",
            )
        self.module.load_state_dict(payload["module"])
        for optimizer, state in zip(self.optimizers, kept, strict=True):
            optimizer.load_state_dict(state)
        self.ema, self.step = payload["ema"], payload["step"]

    def averaged(self) -> "Averaged":
        """Context in which the module holds its averaged weights."""
        return Averaged(self)


def load_average(module: nn.Module, path: Path) -> None:
    """Gives a module the averaged weights of a resume point."""
    payload = torch.load(path, weights_only=True, map_location="cpu")
    module.load_state_dict(payload["module"])
    with torch.no_grad():
        for parameter, average in zip(module.parameters(), payload["ema"], strict=True):
            parameter.copy_(average)


class Averaged:
    """Swaps the averaged weights in, and back out."""

    def __init__(self, state: TrainState) -> None:
        self.state = state

    def swap(self) -> None:
        """Exchanges trained and averaged values."""
        with torch.no_grad():
            for parameter, average in zip(self.state.parameters, self.state.ema, strict=True):
                value = parameter.detach().clone()
                parameter.copy_(average)
                average.copy_(value)

    def __enter__(self) -> nn.Module:
        self.swap()
        return self.state.module

    def __exit__(self, *_: object) -> None:
        self.swap()


def train(
    state: TrainState, loss: Loss, config: LoopConfig, *, num_rows: int, device: str
) -> Generator[TrainProgress, None, None]:
    """Optimises `state.module` until `config.num_steps`; yields after every step.

    Args:
        loss: the objective over a batch of row indices.
        num_rows: size of the data set that indices are drawn from.
        device: "cpu" or "cuda"; the forward pass runs in bfloat16 where that is fast (`diffusion.precision`).

    Raises:
        FloatingPointError: the loss is not finite.
    """
    state.module.train()
    pace = 0.0
    while state.step < config.num_steps:
        started = time.perf_counter()
        generator = stream(config.seed, "train", state.step)
        rows = torch.randint(num_rows, (config.batch_size,), generator=generator)
        with autocast(device):
            value, metrics = loss(rows, generator)
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value.item()} at step {state.step}; resume from the last checkpoint with a learning rate "
                f"below {config.learning_rate}"
            )
        value.backward()
        norm = nn.utils.clip_grad_norm_(state.parameters, config.max_grad_norm)
        rate = config.learning_rate_at(state.step)
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_scale", 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = config.ema_decay_at(state.step)
        torch._foreach_lerp_(state.ema, [p.detach() for p in state.parameters], 1 - decay)
        state.step += 1
        figures = {"loss": value.item(), **metrics, "grad_norm": norm.item(), "learning_rate": rate}
        seconds = time.perf_counter() - started
        pace = pace + (seconds - pace) / PACE_STEPS if pace else seconds
        yield TrainProgress(state.step, config.num_steps, figures, seconds, pace)
