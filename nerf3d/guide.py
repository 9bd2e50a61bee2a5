"""The border of this package: pictures go out to a guide, gradients of the same shape come back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from nerf3d.cameras import Cameras


@dataclasses.dataclass(frozen=True)
class GuideReply:
    """A guide's opinion on V pictures.

    Args:
        gradient: (V, 3, H, W), d loss / d rgb of a loss summed over pixels; a step against it pleases the guide. The fit
            divides by the number of values, so that its weights do not depend on V, H and W.
        target: (V, 3, H, W) in [0, 1], the pictures that the guide would rather see, or None if it has none. Where it is
            given, the fit descends the squared difference to it (the x0 form, whose gradient is 2 * (rgb - target)).
        num_values: of a view: how many values the loss sums over, where the guide judges another size than H and W.
        loss: (V,) the loss's value there, whose gradient `gradient` is, of a guide with a target; the fit then descends that.
    """

    gradient: Tensor
    target: Tensor | None = None
    num_values: int | None = None
    loss: Tensor | None = None


class Guide(Protocol):
    """Anything that judges pictures: score distillation, a CLIP loss, a photograph."""

    def __call__(self, rgb: Tensor, views: Cameras, *, background: Tensor, step: int, num_steps: int) -> GuideReply:
        """Judge V pictures: a pure function of its arguments, as a resumed fit differs otherwise.

        Args:
            rgb: (V, 3, H, W) in [0, 1], detached. views: their V cameras, on the CPU.
            background: (V, 3) in [0, 1], the colour behind each view; of a learned background its mean colour.
            step, num_steps: where the fit is; noise is drawn from (seed, step).
        """
        ...


@runtime_checkable
class ResizingGuide(Guide, Protocol):
    """A guide that takes pictures as they were rendered, judges them at its own size and pulls its gradient back from there.

    Others are shown pictures of the fit's guide_size.
    """

    @property
    def own_size(self) -> int:
        """Pixels per side."""
        ...


@runtime_checkable
class PromptGuide(Guide, Protocol):
    """A guide that can be asked about some views while the next ones are rendered."""

    def ask(
        self, rgb: Tensor, views: Cameras, *, background: Tensor, step: int, num_steps: int, first_view: int, num_views: int
    ) -> Callable[[], GuideReply]:
        """Begin to judge v of the step's views, rgb (v, 3, H, W) from first_view on; calling the result waits for the reply."""
        ...
