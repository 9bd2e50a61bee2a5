"""What can go wrong in `nerf3d`, drawn once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

CollapseKind = Literal["empty", "full", "not_finite"]

_STORY = {
    "empty": (
        "the object vanished",
        "Try another seed, a lower sparsity or background weight, or a prompt that the prior draws well.",
    ),
    "full": (
        "the volume filled up with fog",
        "Try another seed, a higher sparsity or background weight, or a lower learning rate of the density.",
    ),
    "not_finite": (
        "a number stopped being finite",
        "Try a lower learning rate, and look at the guide: its gradient must be finite.",
    ),
}


class Nerf3DError(Exception):
    """Base of all errors of this package."""


class FitCollapsed(Nerf3DError):
    """The fit ended without an object.

    kind: "empty" (nothing left), "full" (fog everywhere) or "not_finite" (NaN or infinity).
    step: the step that saw it. detail: the measured value and the bound that it broke.
    """

    def __init__(self, kind: CollapseKind, step: int, detail: str):
        what, remedy = _STORY[kind]
        super().__init__(f"The fit collapsed at step {step}: {what} ({detail}). {remedy}")
        self.kind, self.step, self.detail = kind, step, detail


class StateMismatch(Nerf3DError, ValueError):
    """A saved fit state is of another seed, or its tensors do not fit this configuration."""


class BackendUnavailable(Nerf3DError, RuntimeError):
    """nerfacc's CUDA kernels could not be built on this machine."""


def check_settings(config: Any, checks: Mapping[str, tuple[bool, str]]) -> None:
    """What a configuration's own validation calls. checks: field -> whether it is valid, and what is expected of it.

    Raises ValueError for the first field that is not, with its value.
    """
    for name, (is_valid, expected) in checks.items():
        if not is_valid:
            raise ValueError(f"{name} is {getattr(config, name)}; give {expected}.")
