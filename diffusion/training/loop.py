"""One training loop for every part: AdamW, warm-up / hold / cosine decay, gradient clipping, EMA, exact resume.

The loop is a generator; progress bars, checkpoints and pictures live in the caller. The batch, the noise and the
dropout of step k come from (seed, k) alone, so a resumed run continues as if it had never stopped.
"""

import math
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.seeding import stream

Loss = Callable[[Tensor, torch.Generator], tuple[Tensor, dict[str, float]]]
"""(row indices (B,), the step's random stream) -> (scalar loss, figures to report)."""


@dataclass(frozen=True)
class LoopConfig:
    """Length, optimiser and averaging of one training run."""

    num_steps: int
    batch_size: int = 48
    learning_rate: float = 7e-4
    warmup_steps: int = 200
    decay_fraction: float = 0.4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, constant, then a cosine to zero over the last `decay_fraction` of the run."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        decay_start = self.num_steps * (1 - self.decay_fraction)
        progress = max(0.0, (step - decay_start) / max(1.0, self.num_steps - decay_start))
        return self.learning_rate * warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def ema_decay_at(self, step: int) -> float:
        """Short memory at first, so that the average forgets the initial weights."""
        return min(self.ema_decay, (1 + step) / (10 + step))


@dataclass(frozen=True)
class TrainProgress:
    """What one step did."""

    step: int
    num_steps: int
    metrics: dict[str, float]
    seconds: float

    @property
    def seconds_left(self) -> float:
        """At this step's pace."""
        return (self.num_steps - self.step) * self.seconds


class TrainState:
    """A module in training with its optimiser, moving average and step count."""

    def __init__(self, module: nn.Module, *, weight_decay: float) -> None:
        self.module = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        decayed = [p for p in self.parameters if p.ndim >= 2]
        plain = [p for p in self.parameters if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
        self.ema = [p.detach().clone() for p in self.parameters]
        self.step = 0

    def save(self, path: Path) -> None:
        """Writes a resume point atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        payload = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema,
            "step": self.step,
        }
        torch.save(payload, temporary)
        os.replace(temporary, path)

    def load(self, path: Path) -> None:
        """Reads a resume point."""
        payload = torch.load(path, weights_only=True, map_location=self.parameters[0].device)
        self.module.load_state_dict(payload["module"])
        self.optimizer.load_state_dict(payload["optimizer"])
        self.ema, self.step = payload["ema"], payload["step"]

    def averaged(self) -> "Averaged":
        """Context in which the module holds its averaged weights."""
        return Averaged(self)


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
        device: "cpu" or "cuda"; the forward pass runs in bfloat16 autocast on both.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    state.module.train()
    while state.step < config.num_steps:
        started = time.perf_counter()
        generator = stream(config.seed, "train", state.step)
        rows = torch.randint(num_rows, (config.batch_size,), generator=generator)
        with torch.autocast(device, torch.bfloat16):
            value, metrics = loss(rows, generator)
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value.item()} at step {state.step}; resume from the last checkpoint with a learning rate "
                f"below {config.learning_rate}"
            )
        value.backward()
        norm = nn.utils.clip_grad_norm_(state.parameters, config.max_grad_norm)
        rate = config.learning_rate_at(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        decay = config.ema_decay_at(state.step)
        torch._foreach_lerp_(state.ema, [p.detach() for p in state.parameters], 1 - decay)
        state.step += 1
        figures = {"loss": value.item(), **metrics, "grad_norm": norm.item(), "learning_rate": rate}
        yield TrainProgress(state.step, config.num_steps, figures, time.perf_counter() - started)
