"""What changes during a fit, and its way into a checkpoint and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from nerf3d.errors import StateMismatch
from nerf3d.fields import Field, FieldConfig, make_field
from nerf3d.fit.config import FitConfig
from nerf3d.rendering import LearnedBackground, Occupancy


@dataclasses.dataclass
class FitState:
    """Everything that changes during a fit, able to be saved as tensors.

    background: what is learned of it, if anything. step: steps done. empty_steps, full_steps: how many steps in a row
    looked collapsed.
    """

    config: FitConfig
    seed: int
    field: Field
    occupancy: Occupancy
    optimiser: torch.optim.Adam
    background: LearnedBackground | None = None
    step: int = 0
    empty_steps: int = 0
    full_steps: int = 0

    @classmethod
    def create(cls, config: FitConfig, *, seed: int, device: torch.device | str = "cpu") -> FitState:
        """The state before the first step."""
        field = make_field(config.field, seed=seed).to(device)
        step_size = 2 * config.field.radius / config.num_samples
        occupancy = Occupancy(config.occupancy_resolution, threshold=config.occupancy_threshold, step_size=step_size).to(device)
        groups = [
            {"params": field.density_parameters(), "lr": config.density_rate},
            {"params": field.colour_parameters(), "lr": config.colour_rate},
        ]
        background = None
        if config.backgrounds == "learned":
            background = LearnedBackground(seed=seed).to(device)
            groups.append({"params": list(background.parameters()), "lr": config.background_rate})
        # Fused Adam is three times faster than the others on CPU and equally deterministic.
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-12, fused=True)
        return cls(config, seed, field, occupancy, optimiser, background)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat name -> CPU tensor, ready for safetensors; copies, so that the fit may go on."""
        counters = [self.step, self.empty_steps, self.full_steps, self.seed]
        tensors = {"counters": torch.tensor(counters, dtype=torch.int64)}
        tensors |= {f"field.{k}": v for k, v in self.field.state_dict().items()}
        tensors |= {f"occupancy.{k}": v for k, v in self.occupancy.state_dict().items()}
        if self.background is not None:
            tensors |= {f"background.{k}": v for k, v in self.background.state_dict().items()}
        for index, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v for k, v in slots.items()}
        return {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on from the tensors of `state_dict`. Raises StateMismatch for another seed or field, or if some miss."""
        try:
            step, empty_steps, full_steps, seed = tensors["counters"].tolist()
            if seed != self.seed:
                raise StateMismatch(f"The saved fit has seed {seed}, this one has {self.seed}; give the same seed.")
            self.field.load_state_dict(_under("field.", tensors))
            self.occupancy.load_state_dict(_under("occupancy.", tensors))
            if self.background is not None:
                self.background.load_state_dict(_under("background.", tensors))
            slots: dict[int, dict[str, Tensor]] = {}
            for name, value in _under("adam.", tensors).items():
                index, key = name.split(".")
                slots.setdefault(int(index), {})[key] = value.clone()
            groups = self.optimiser.state_dict()["param_groups"]
            self.optimiser.load_state_dict({"state": slots, "param_groups": groups})
        except (KeyError, ValueError, RuntimeError) as error:
            if isinstance(error, StateMismatch):
                raise
            raise StateMismatch(
                f"The saved fit does not fit this configuration ({error}). Continue with the configuration that it was "
                "started with, or start anew."
            ) from error
        self.step, self.empty_steps, self.full_steps = step, empty_steps, full_steps


def saved_field(config: FieldConfig, tensors: Mapping[str, Tensor], *, seed: int) -> Field:
    """The field alone, on the CPU, out of the tensors of `FitState.state_dict`. Raises StateMismatch if it is another."""
    field = make_field(config, seed=seed)
    try:
        field.load_state_dict(_under("field.", tensors))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise StateMismatch(f"The saved fit does not hold the field that its settings describe ({reason}).") from error
    return field.eval()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
