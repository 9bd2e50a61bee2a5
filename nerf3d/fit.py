"""The fit: a field is optimised until a guide likes its pictures from all sides. Written as a generator.

DreamFusion's loop (Poole et al. 2022, section 3): draw cameras, lights and backgrounds; render; ask the guide; descend.
All randomness of step k comes from (seed, k) and the optimiser's moments are part of the state, so a fit that was stopped
after step k and continued equals, bit by bit, one that never stopped (same machine, same number of threads).
"""

# ruff: noqa: RUF009 - Schedule and FieldConfig are frozen, so they are safe as defaults.
from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nerf3d import regularisers
from nerf3d.cameras import Cameras
from nerf3d.errors import FitCollapsed, StateMismatch, check_settings
from nerf3d.fields import Field, FieldConfig, make_field
from nerf3d.fields.base import FieldQuery
from nerf3d.guide import Guide, GuideReply, PromptGuide
from nerf3d.regularisers import Schedule
from nerf3d.rendering import Lights, Occupancy, RenderOutput, Shading, render, sample_backgrounds, sample_lights
from nerf3d.rendering.volume import ray_interval
from nerf3d.streams import stream, uniform

PRESETS = ("draft", "default", "fine")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Everything that shapes a fit besides the guide, the seed and the device.

    num_steps, num_views: optimisation steps and pictures per step. guide_parts: a step's pictures are rendered and shown to
    the guide in so many equal parts, each judged while the next is rendered: worth it where the guide computes on another
    device. render_sizes: (progress, pixels) pairs; from that
    progress on, pictures are rendered at this size. guide_size: pixels per side that the guide is shown (smaller renders
    are enlarged bilinearly). num_samples: per ray.
    elevations (degrees), low_view_share, radius, fov_degrees: of the cameras, as in the toybox's training pictures: that
    share of the views lies between the first two elevations, the others between the last two.
    lit_from: progress from which pictures are shaded by random lights; unlit albedo before. textureless_share: of the lit
    steps that show white material.
    density_rate, colour_rate: Adam's. rate_decay: the rates fall to this share along a cosine in the last half.
    guide_weight and the others: factors of the loss terms, each a Schedule over the fit's progress.
    occupancy_*: cells per side, steps between refreshes, threshold on opacity per sample.
    patience: share of the steps for which pictures may be empty or full before the fit counts as collapsed.
    """

    num_steps: int = 400
    num_views: int = 4
    guide_parts: int = 1
    render_sizes: tuple[tuple[float, int], ...] = ((0.0, 32), (0.4, 64))
    guide_size: int = 64
    num_samples: int = 48
    elevations: tuple[float, float, float] = (-10.0, 40.0, 65.0)
    low_view_share: float = 0.78
    radius: float = 2.7
    fov_degrees: float = 40.0
    lit_from: float = 0.3
    textureless_share: float = 0.0
    density_rate: float = 0.12
    colour_rate: float = 0.03
    rate_decay: float = 0.1
    guide_weight: Schedule = Schedule(1.0)
    sparsity: Schedule = Schedule(0.0)
    opaqueness: Schedule = Schedule(0.0, 0.3, 0.3, 1.0)
    background: Schedule = Schedule(0.1)
    orientation: Schedule = Schedule(0.0, 0.02, 0.3, 1.0)
    depth_variance: Schedule = Schedule(0.0, 4.0, 0.3, 0.6)
    density_variation: Schedule = Schedule(0.01)
    colour_variation: Schedule = Schedule(0.01)
    outer_density: Schedule = Schedule(0.01)
    outer_radius: float = 0.85
    occupancy_resolution: int = 64
    occupancy_every: int = 8
    occupancy_threshold: float = 0.004
    patience: float = 0.15
    field: FieldConfig = FieldConfig()

    def __post_init__(self):
        """Raises ValueError for a value out of range, named."""
        begins = [begin for begin, _ in self.render_sizes]
        a_share = "a share, 0 to 1"
        checks = {
            "num_steps": (self.num_steps >= 1, "at least 1"),
            "num_views": (1 <= self.num_views <= 1024, "1 to 1024 pictures a step"),
            "guide_parts": (
                1 <= self.guide_parts <= self.num_views and self.num_views % self.guide_parts == 0,
                f"a number that divides num_views, {self.num_views}",
            ),
            "render_sizes": (
                begins[:1] == [0] and begins == sorted(begins) and all(4 <= pixels <= 1024 for _, pixels in self.render_sizes),
                "pairs such as [[0.0,32],[0.4,64]] that begin with the size of the first step, in order, 4 to 1024 pixels each",
            ),
            "guide_size": (8 <= self.guide_size <= 2048, "8 to 2048 pixels"),
            "num_samples": (1 <= self.num_samples <= 4096, "1 to 4096 samples a ray"),
            "elevations": (
                -90 < self.elevations[0] <= self.elevations[1] <= self.elevations[2] < 90,
                "three ascending angles between -90 and 90 degrees",
            ),
            "low_view_share": (0 <= self.low_view_share <= 1, a_share),
            "radius": (1 < self.radius <= 100, "a distance over 1 metre, outside the object, and at most 100"),
            "fov_degrees": (1 <= self.fov_degrees <= 150, "1 to 150 degrees"),
            "lit_from": (0 <= self.lit_from <= 1, a_share),
            "textureless_share": (0 <= self.textureless_share <= 1, a_share),
            "density_rate": (0 < self.density_rate <= 10, "a learning rate over 0 and at most 10"),
            "colour_rate": (0 < self.colour_rate <= 10, "a learning rate over 0 and at most 10"),
            "rate_decay": (0 <= self.rate_decay <= 1, a_share),
            "outer_radius": (0 < self.outer_radius <= 2, "metres over 0 and at most 2"),
            "occupancy_resolution": (2 <= self.occupancy_resolution <= 512, "2 to 512 cells a side"),
            "occupancy_every": (self.occupancy_every >= 1, "at least 1 step"),
            "occupancy_threshold": (0 <= self.occupancy_threshold < 1, "an opacity from 0 to under 1"),
            "patience": (0 <= self.patience <= 1, a_share),
        }
        check_settings(self, checks)

    @classmethod
    def preset(cls, name: str, **changes) -> FitConfig:
        """The preset named draft (160 steps), default (400) or fine (1,200, one more grid), with changes to its fields.

        A hash grid gets learning rates of 0.01 (threestudio's dreamfusion-sd), because its network would break at those
        of plain grids. Raises ValueError for another name.
        """
        if name not in PRESETS:
            raise ValueError(f"There is no fit preset {name!r}; choose one of {', '.join(PRESETS)}.")
        if name == "draft":
            changes = {"num_steps": 160} | changes
        if name == "fine":
            fine = FieldConfig(resolutions=(16, 32, 64, 96))
            changes = {"num_steps": 1200, "num_samples": 64, "occupancy_resolution": 96, "field": fine} | changes
        if changes.get("field", FieldConfig()).kind == "hash_grid":
            changes = {"density_rate": 0.01, "colour_rate": 0.01} | changes
        return cls(**changes)

    def render_size(self, progress: float) -> int:
        """Pixels per side at this progress in [0, 1)."""
        return [size for begin, size in self.render_sizes if progress >= begin][-1]


@dataclasses.dataclass
class FitState:
    """Everything that changes during a fit, able to be saved as tensors.

    step: steps done. empty_steps, full_steps: how many steps in a row looked collapsed.
    """

    config: FitConfig
    seed: int
    field: Field
    occupancy: Occupancy
    optimiser: torch.optim.Adam
    step: int = 0
    empty_steps: int = 0
    full_steps: int = 0

    @classmethod
    def create(cls, config: FitConfig, *, seed: int, device: torch.device | str = "cpu") -> FitState:
        """The state before the first step."""
        field = make_field(config.field).to(device)
        step_size = 2 * config.field.radius / config.num_samples
        occupancy = Occupancy(config.occupancy_resolution, threshold=config.occupancy_threshold, step_size=step_size).to(device)
        groups = [
            {"params": field.density_parameters(), "lr": config.density_rate},
            {"params": field.colour_parameters(), "lr": config.colour_rate},
        ]
        # Fused Adam is three times faster than the others on CPU and equally deterministic.
        optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-12, fused=True)
        return cls(config, seed, field, occupancy, optimiser)

    def state_dict(self) -> dict[str, Tensor]:
        """Flat name -> CPU tensor, ready for safetensors; copies, so that the fit may go on."""
        counters = [self.step, self.empty_steps, self.full_steps, self.seed]
        tensors = {"counters": torch.tensor(counters, dtype=torch.int64)}
        tensors |= {f"field.{k}": v for k, v in self.field.state_dict().items()}
        tensors |= {f"occupancy.{k}": v for k, v in self.occupancy.state_dict().items()}
        for index, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v for k, v in slots.items()}
        return {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up a saved state. Raises StateMismatch if it is of another seed, field, or is incomplete."""
        try:
            step, empty_steps, full_steps, seed = tensors["counters"].tolist()
            if seed != self.seed:
                raise StateMismatch(f"The saved fit has seed {seed}, this one has {self.seed}; give the same seed.")
            self.field.load_state_dict(_under("field.", tensors))
            self.occupancy.load_state_dict(_under("occupancy.", tensors))
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
    """Optimises a field from a blob, or goes on from `state` (a FitState or its state_dict()).

    Yields after every step; returns the result. Raises FitCollapsed when nothing is left, when everything is full, or
    when a number is not finite, and StateMismatch for a state of another seed or configuration.
    """
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
class Scene:
    """What is drawn at random for one step: cameras, their lights and backgrounds (V, 3), and the shading."""

    cameras: Cameras
    lights: Lights
    background: Tensor
    shading: Shading

    def to(self, device: torch.device | str) -> Scene:
        return Scene(self.cameras.to(device), self.lights.to(device), self.background.to(device), self.shading)

    def parts(self, number: int) -> list[Scene]:
        """The views in so many equal groups, in order."""
        size = len(self.cameras) // number
        groups = [slice(first, first + size) for first in range(0, len(self.cameras), size)]
        return [Scene(self.cameras[g], self.lights[g], self.background[g], self.shading) for g in groups]


@dataclasses.dataclass(frozen=True)
class Shown:
    """Some views of a step before the guide. rgb: as large as it wants them. reply: waits for its opinion."""

    scene: Scene
    picture: RenderOutput
    rgb: Tensor
    reply: Callable[[], GuideReply]


def draw_scene(config: FitConfig, *, seed: int, step: int, avoid: Tensor | None = None) -> Scene:
    """The scene of a step, on CPU: always the same for the same arguments.

    avoid: (N, 3) colours that backgrounds keep away from; cameras and lights do not depend on them.
    """
    draws = stream(seed, "scene", step)
    num_views = config.num_views
    # One view in each azimuth slice, and all of them turned together: no side is missed.
    azimuth = (torch.arange(num_views) + uniform((num_views,), draws)) * (360 / num_views)
    azimuth = (azimuth + uniform((1,), draws, 0, 360)) % 360
    low, middle, high = config.elevations
    elevation = torch.where(
        uniform((num_views,), draws) < config.low_view_share,
        uniform((num_views,), draws, low, middle),
        uniform((num_views,), draws, middle, high),
    )
    cameras = Cameras.orbit(azimuth, elevation, radius=config.radius, fov_degrees=config.fov_degrees)
    shading: Shading = "albedo"
    if step >= config.lit_from * config.num_steps:
        shading = "textureless" if float(uniform((), draws)) < config.textureless_share else "lambert"
    lights = sample_lights(cameras, generator=draws)
    return Scene(cameras, lights, sample_backgrounds(num_views, generator=draws, avoid=avoid), shading)


@torch.no_grad()
def object_colours(field: Field, *, generator: torch.Generator, num_points: int = 2048, density: float = 5.0) -> Tensor:
    """(N, 3) on CPU: albedo at those of num_points random places that are at least this dense (1/m), and its shade.

    The toybox never shows an object before a background of its own lit or shaded colour, so neither should a fit.
    """
    points = uniform((num_points, 3), generator, -1, 1).to(next(field.parameters()).device)
    values = field.query().samples(points)
    albedo = values.colour[values.density > density].cpu()
    return torch.cat([albedo, 0.75 * albedo])


def _advance(state: FitState, guide: Guide, device: torch.device | str) -> FitProgress:
    """One optimisation step."""
    config, step = state.config, state.step
    progress = step / config.num_steps
    clock = _Clock()
    avoid = object_colours(state.field, generator=stream(state.seed, "colours", step))
    scene = draw_scene(config, seed=state.seed, step=step, avoid=avoid).to(device)
    query = state.field.query(normals=scene.shading != "albedo")
    samples = stream(state.seed, "samples", step)
    shown = [_show(state, query, part, guide, index, samples) for index, part in enumerate(scene.parts(config.guide_parts))]
    clock.lap("render")
    replies = [part.reply() for part in shown]
    clock.lap("guide")
    # Means over all views: those over equal parts, averaged.
    guide_loss = torch.stack([_guide_loss(part.rgb, reply) for part, reply in zip(shown, replies, strict=True)]).mean()
    on_views = [_view_regularisation(config, part, reply, progress) for part, reply in zip(shown, replies, strict=True)]
    loss = config.guide_weight.value(progress) * guide_loss + torch.stack(on_views).mean()
    loss = loss + _field_regularisation(config, query, progress, stream(state.seed, "regularisers", step))
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    gradient_norm = _gradient_norm(state.field)
    clock.lap("backward")
    _check_finite(step, loss=float(loss.detach()), gradient_norm=gradient_norm)
    _set_rates(state, progress)
    state.optimiser.step()
    state.step += 1
    if state.step % config.occupancy_every == 0:
        _refresh_occupancy(state)
    opacity = float(torch.stack([part.picture.alpha.detach().mean() for part in shown]).mean())
    occupied = state.occupancy.fraction(config.field.radius)
    _check_collapse(state, opacity, occupied)
    clock.lap("update")
    metrics = {
        "loss": float(loss.detach()),
        "guide": float(guide_loss.detach()),
        "opacity": opacity,
        "occupied": occupied,
        "gradient_norm": gradient_norm,
        "render_size": float(config.render_size(progress)),
        **clock.seconds,
    }
    return FitProgress(state.step, config.num_steps, metrics, state)


def _show(state: FitState, query: FieldQuery, scene: Scene, guide: Guide, index: int, samples: torch.Generator) -> Shown:
    """Render part `index` of a step's views and ask the guide; where there are several parts, without waiting for it."""
    config, step = state.config, state.step
    picture = render(
        query,
        state.occupancy,
        scene.cameras,
        config.render_size(step / config.num_steps),
        background=scene.background,
        shading=scene.shading,
        lights=scene.lights,
        num_samples=config.num_samples,
        radius=config.field.radius,
        generator=samples,
    )
    rgb = _enlarged(picture.rgb, config.guide_size)
    question = (rgb.detach().clamp(0, 1), scene.cameras)
    when: dict[str, Any] = {"background": scene.background, "step": step, "num_steps": config.num_steps}
    if config.guide_parts == 1:
        return Shown(scene, picture, rgb, functools.partial(guide, *question, **when))
    if not isinstance(guide, PromptGuide):
        raise TypeError(f"guide_parts is {config.guide_parts}, but a {type(guide).__name__} has no `ask`; give guide_parts=1")
    first = index * len(scene.cameras)
    return Shown(scene, picture, rgb, guide.ask(*question, **when, first_view=first, num_views=config.num_views))


def _enlarged(rgb: Tensor, size: int) -> Tensor:
    """Bilinear to the guide's size; autograd carries the guide's gradient back."""
    if rgb.shape[-1] == size:
        return rgb
    return F.interpolate(rgb, size=(size, size), mode="bilinear", align_corners=False)


def _guide_loss(shown: Tensor, reply: GuideReply) -> Tensor:
    """Mean over all values, so that weights do not depend on the number of views or pixels."""
    if reply.target is not None:
        return (shown - reply.target.detach()).square().mean()
    # A surrogate whose gradient is the guide's (DreamFusion, equation 3).
    return (shown * reply.gradient.detach()).mean()


def _view_regularisation(config: FitConfig, shown: Shown, reply: GuideReply, progress: float) -> Tensor:
    """The weighted sum of the terms that are means over views; a term with weight 0 is not computed."""
    picture, alpha = shown.picture, shown.picture.alpha
    total = alpha.new_zeros(())
    if weight := config.sparsity.value(progress):
        total = total + weight * regularisers.sparsity(alpha)
    if weight := config.opaqueness.value(progress):
        total = total + weight * regularisers.opaqueness(alpha)
    if (weight := config.background.value(progress)) and reply.target is not None:
        target = F.interpolate(reply.target, size=alpha.shape[-2:], mode="area")
        total = total + weight * regularisers.background_carving(alpha, target, shown.scene.background)
    if (weight := config.orientation.value(progress)) and picture.samples.normals is not None:
        total = total + weight * regularisers.orientation(picture.samples, alpha.numel())
    if weight := config.depth_variance.value(progress):
        total = total + weight * regularisers.depth_variance(picture.samples, picture.depth)
    return total


def _field_regularisation(config: FitConfig, query: FieldQuery, progress: float, draws: torch.Generator) -> Tensor | float:
    """The weighted sum of the terms on the field itself, likewise."""
    total: Tensor | float = 0.0
    density_weight = config.density_variation.value(progress)
    colour_weight = config.colour_variation.value(progress)
    if density_weight or colour_weight:
        density, colour = query.total_variation(draws)
        total = total + density_weight * density + colour_weight * colour
    if weight := config.outer_density.value(progress):
        total = total + weight * query.density_beyond(config.outer_radius, draws)
    return total


def _refresh_occupancy(state: FitState) -> None:
    with torch.no_grad():
        query = state.field.query()
        state.occupancy.refresh(query.density, seed=state.seed, step=state.step, radius=state.config.field.radius)


def _set_rates(state: FitState, progress: float) -> None:
    config = state.config
    late = max(0.0, 2 * progress - 1)
    factor = config.rate_decay + (1 - config.rate_decay) * 0.5 * (1 + math.cos(math.pi * late))
    for group, rate in zip(state.optimiser.param_groups, (config.density_rate, config.colour_rate), strict=True):
        group["lr"] = rate * factor


def _gradient_norm(field: Field) -> float:
    norms = [p.grad.norm() for p in field.parameters() if p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _check_finite(step: int, **values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise FitCollapsed("not_finite", step, f"{name} is {value}")


def _check_collapse(state: FitState, opacity: float, occupied: float) -> None:
    """Counts suspicious steps in a row; being full is normal at first, when the whole volume is fog."""
    patience = max(4, math.ceil(state.config.patience * state.config.num_steps))
    state.empty_steps = state.empty_steps + 1 if opacity < 0.005 else 0
    full = opacity > 0.95 * sphere_share(state.config) or (occupied > 0.9 and state.step > 2 * patience)
    state.full_steps = state.full_steps + 1 if full else 0
    if state.empty_steps >= patience:
        detail = f"mean opacity {opacity:.4f} stayed under 0.005 for {state.empty_steps} steps"
        raise FitCollapsed("empty", state.step, detail)
    if state.full_steps >= patience:
        detail = f"mean opacity {opacity:.2f} and {occupied:.0%} of the cells occupied, for {state.full_steps} steps"
        raise FitCollapsed("full", state.step, detail)


@functools.cache
def sphere_share(config: FitConfig) -> float:
    """The largest mean opacity that pictures can have: the share of their rays that meet the field's sphere."""
    cameras = Cameras.orbit(0, 0, radius=config.radius, fov_degrees=config.fov_degrees)
    origins, directions = (r.reshape(-1, 3) for r in cameras.rays(64, 64))
    near, far = ray_interval(origins, directions, radius=config.field.radius, bounds=None)
    return float((far > near).float().mean())


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


class _Clock:
    """Seconds per stage."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[f"seconds_{name}"] = now - self._last
        self._last = now
