"""The fit: a field is optimised until a guide likes its pictures from all sides. Written as a generator.

DreamFusion's loop (Poole et al. 2022, section 3): draw cameras, lights and backgrounds; render; ask the guide; descend.
All randomness of step k comes from (seed, k) and the optimiser's moments are part of the state, so a fit that was stopped
after step k and continued equals one that never stopped: on a CPU bit by bit (same machine, same number of threads), on
CUDA up to rounding, because sums there add in an order that changes from run to run, and later steps amplify that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf3d.errors import BackendUnavailable
from nerf3d.fields import Field
from nerf3d.fields.base import FieldQuery
from nerf3d.fit import terms
from nerf3d.fit.collapse import check_collapse, check_finite
from nerf3d.fit.config import FitConfig, Reduction
from nerf3d.fit.scene import Scene, draw_scene, object_colours
from nerf3d.fit.state import FitState
from nerf3d.guide import Guide, GuideReply, PromptGuide, ResizingGuide
from nerf3d.rendering import Occupancy, RenderOutput, build_cuda_kernels, render
from nerf3d.streams import fit_stream


@dataclasses.dataclass(frozen=True)
class FitProgress:
    """After each step. step: steps done, 1 to num_steps. state: live, for previews and checkpoints; copy to keep.

    metrics: loss, guide, opacity (mean alpha), occupied (share of cells), gradient_norm, render_size, and seconds per
    stage as seconds_render, seconds_guide, seconds_backward, seconds_update.
    """

    step: int
    num_steps: int
    metrics: dict[str, float]
    state: FitState


@dataclasses.dataclass(frozen=True)
class FitResult:
    """The fitted field, its occupancy, and the configuration that made it."""

    field: Field
    occupancy: Occupancy
    config: FitConfig


def fit(
    config: FitConfig,
    guide: Guide,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    state: FitState | Mapping[str, Tensor] | None = None,
) -> Generator[FitProgress, None, FitResult]:
    """Optimises a field from a blob, or goes on from a saved state.

    Args:
        config: settings of the fit. guide: judges the rendered pictures.
        seed: every random number of the fit follows from it.
        device: where the field lives and is rendered.
        state: a FitState, or the tensors of its `state_dict`, of any shapes that `config` gives them.

    Yields:
        FitProgress after every step.

    Returns:
        The field, its occupancy and the settings.

    Raises:
        FitCollapsed: nothing is left, everything is full, or a number is not finite.
        StateMismatch: a state of another seed or with tensors of other shapes.
    """
    if torch.device(device).type == "cuda":
        # Minutes the first time, which no step shall be charged with; without them the renderer's torch path does.
        with contextlib.suppress(BackendUnavailable):
            build_cuda_kernels()
    if not isinstance(state, FitState):
        saved, state = state, FitState.create(config, seed=seed, device=device)
        if saved is not None:
            state.load_state_dict(saved)
    if state.step == 0:
        _refresh_occupancy(state)
    while state.step < config.num_steps:
        yield _advance(state, guide, device)
    return FitResult(state.field, state.occupancy, config)


@dataclasses.dataclass(frozen=True)
class Shown:
    """Some views of a step before the guide.

    Args:
        background: (V, 3), or (V, 3, H, W) where it is learned. picture: as it was rendered.
        rgb: (v, 3, h, w) in [0, 1], as the guide takes it: as rendered, or of guide_size.
        reply: waits for the guide's opinion.
    """

    background: Tensor
    picture: RenderOutput
    rgb: Tensor
    reply: Callable[[], GuideReply]


def _advance(state: FitState, guide: Guide, device: torch.device | str) -> FitProgress:
    """One optimisation step."""
    config, step = state.config, state.step
    progress = step / config.num_steps
    clock = _Clock()
    avoid = object_colours(state.field, generator=fit_stream(state.seed, "colours", step))
    drawn = draw_scene(config, seed=state.seed, step=step, avoid=avoid)
    scene = drawn.to(device)
    query = state.field.query(normals=scene.shading != "albedo" or config.orientation.value(progress) > 0)
    samples = fit_stream(state.seed, "samples", step)
    parts = zip(scene.parts(config.guide_parts), drawn.parts(config.guide_parts), strict=True)
    shown = [_show(state, query, *part, guide, index, samples) for index, part in enumerate(parts)]
    clock.lap("render")
    replies = [part.reply() for part in shown]
    clock.lap("guide")
    # Means over all views: those over equal parts, averaged.
    guide_losses = [_guide_loss(part.rgb, reply, config.guide_reduction) for part, reply in zip(shown, replies, strict=True)]
    guide_loss = torch.stack(guide_losses).mean()
    on_views = [
        terms.on_views(config, part.picture, target=reply.target, background=part.background, progress=progress)
        for part, reply in zip(shown, replies, strict=True)
    ]
    loss = config.guide_weight.value(progress) * guide_loss + torch.stack(on_views).mean()
    loss = loss + terms.on_field(config, query, progress=progress, draws=fit_stream(state.seed, "regularisers", step))
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    gradient_norm = _gradient_norm(state.field)
    clock.lap("backward")
    _set_rates(state, progress)
    state.optimiser.step()
    state.step += 1
    if state.step % config.occupancy_every == 0:
        _refresh_occupancy(state)
    # One read a step: at each the host waits for all that a GPU was given to do. So what is not finite is found after the
    # update, which nobody sees, because the fit ends with it.
    opacity_there = torch.stack([part.picture.alpha.detach().mean() for part in shown]).mean()
    occupied_there = state.occupancy.fraction(config.field.radius)
    scalars = torch.stack([loss.detach(), guide_loss.detach(), gradient_norm, opacity_there, occupied_there]).tolist()
    check_finite(step, loss=scalars[0], gradient_norm=scalars[2])
    check_collapse(state, opacity=scalars[3], occupied=scalars[4])
    clock.lap("update")
    metrics = {
        **dict(zip(("loss", "guide", "gradient_norm", "opacity", "occupied"), scalars, strict=True)),
        "render_size": float(config.render_size(progress)),
        **clock.seconds,
    }
    return FitProgress(state.step, config.num_steps, metrics, state)


def _show(
    state: FitState, query: FieldQuery, scene: Scene, drawn: Scene, guide: Guide, index: int, samples: torch.Generator
) -> Shown:
    """Render part `index` of a step's views and ask the guide; where there are several parts, without waiting for it.

    drawn: the scene as it was drawn, on the CPU, whose cameras the guide is told: words for a view need numbers.
    """
    config, step = state.config, state.step
    size = config.render_size(step / config.num_steps)
    background = scene.background if state.background is None else state.background(scene.cameras, size)
    picture = render(
        query,
        state.occupancy,
        scene.cameras,
        size,
        background=background,
        shading=scene.shading,
        lights=scene.lights,
        num_samples=config.num_samples,
        radius=config.field.radius,
        generator=samples,
    )
    rgb = picture.rgb if isinstance(guide, ResizingGuide) else resized(picture.rgb, config.guide_size)
    question = (rgb.detach().clamp(0, 1), drawn.cameras)
    behind = background.detach() if background.ndim == 2 else background.detach().mean((2, 3))
    when: dict[str, Any] = {"background": behind, "step": step, "num_steps": config.num_steps}
    if config.guide_parts == 1:
        return Shown(background, picture, rgb, functools.partial(guide, *question, **when))
    if not isinstance(guide, PromptGuide):
        raise TypeError(f"guide_parts is {config.guide_parts}, but a {type(guide).__name__} has no `ask`; give guide_parts=1")
    first = index * len(scene.cameras)
    return Shown(background, picture, rgb, guide.ask(*question, **when, first_view=first, num_views=config.num_views))


def resized(rgb: Tensor, size: int) -> Tensor:
    """(V, 3, H, W) -> (V, 3, size, size), bilinear; autograd carries the guide's gradient back.

    Shrinking is antialiased: plain interpolation reads four pixels for each new one and would leave most rays unseen.
    """
    if rgb.shape[-1] == size:
        return rgb
    shrinks = rgb.shape[-1] > size
    return F.interpolate(rgb, size=(size, size), mode="bilinear", align_corners=False, antialias=shrinks)


def _guide_loss(shown: Tensor, reply: GuideReply, reduction: Reduction) -> Tensor:
    """Mean over all values, so that weights do not depend on the number of views or pixels; or the sum over a view's."""
    if reply.num_values is not None:  # of the pictures that the guide made of these
        sums = (shown * reply.gradient.detach()).flatten(1).sum(1)
        if reply.loss is not None:
            sums = sums - sums.detach() + reply.loss.detach()
        return sums.mean() / (reply.num_values if reduction == "mean" else 1)
    if reply.target is not None:
        values = (shown - reply.target.detach()).square()
    else:
        # A surrogate whose gradient is the guide's (DreamFusion, equation 3).
        values = shown * reply.gradient.detach()
    return values.mean() if reduction == "mean" else values.flatten(1).sum(1).mean()


def _refresh_occupancy(state: FitState) -> None:
    with torch.no_grad():
        query = state.field.query()
        state.occupancy.refresh(query.density, seed=state.seed, step=state.step, radius=state.config.field.radius)


def _set_rates(state: FitState, progress: float) -> None:
    config = state.config
    late = max(0.0, 2 * progress - 1)
    factor = config.rate_decay + (1 - config.rate_decay) * 0.5 * (1 + math.cos(math.pi * late))
    rates = (config.density_rate, config.colour_rate, config.background_rate)
    for group, rate in zip(state.optimiser.param_groups, rates, strict=False):  # the last is there if it is learned
        group["lr"] = rate * factor


def _gradient_norm(field: Field) -> Tensor:
    norms = [p.grad.norm() for p in field.parameters() if p.grad is not None]
    return torch.stack(norms).norm() if norms else torch.zeros((), device=next(field.parameters()).device)


class _Clock:
    """Seconds per stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{name}"] = now - self._last
        self._last = now
