"""Figures that a training reports beside its loss."""

from torch import Tensor


def by_noise(values: Tensor, t: Tensor, num_timesteps: int, *, prefix: str = "") -> dict[str, float]:
    """Means over the rows with low, middle and high noise, thirds of the timesteps; without those that have no rows.

    Args:
        values: (B,). t: (B,) in [0, num_timesteps). prefix: of the names.
    """
    third = (3 * t // num_timesteps).clamp(max=2)
    parts = {name: values[third == number] for number, name in enumerate(("low", "middle", "high"))}
    return {prefix + name: rows.mean().item() for name, rows in parts.items() if len(rows)}
