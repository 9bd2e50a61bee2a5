"""The recipe of a text-to-3D job: a sentence, a prior that criticises renders, a field that follows, a mesh.

Stages: `prepare` (ask the prior who it is), `fit` (score distillation moves the field), `mesh` (the field is cut), `judge`
(the prior says what it takes the mesh for). This is the only place where `nerf3d` and `diffusion` meet: pictures go to the
prior, gradients come back (`PriorGuide`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from diffusion.distillation import DistillationConfig, Form, sample_timesteps
from diffusion.seeding import stream
from jobs.errors import CollapsedError, JobFailed
from jobs.events import Checkpoint, Event, Message, Progress, ViewsPreview
from jobs.extensions import is_extension, own_field, own_form
from jobs.fit_figures import GuideGradients
from jobs.mesh_stage import TextTo3DResult, cut, judge, reaches_edge
from jobs.opinion import score_of_views
from jobs.pace import Pace
from jobs.prior_client import DistillationQuery, PriorClient, PriorInfo, with_adapters
from jobs.specs import TextTo3DSpec
from jobs.words.vocabulary import warn_of_prompts, warn_of_unknown_words
from nerf3d.cameras import Cameras
from nerf3d.errors import FitCollapsed, Nerf3DError
from nerf3d.fields import FIELDS
from nerf3d.fit import FitConfig, FitProgress, FitResult, FitState, fit, look_around, preview_views
from nerf3d.guide import GuideReply
from nerf3d.mesh import MeshConfig, bytes_to_extract
from nerf3d.rendering import build_cuda_kernels, needs_compiling
from nerf3d.view_words import four_way_phrase, view_phrase

__all__ = ["PriorGuide", "TextTo3DResult", "in_the_priors_groups", "reaches_edge", "text_to_3d", "view_prompts"]


GRADIENTS_EVERY = 5
"""Steps whose gradients are told together, because the device is waited for then."""

LOOKS = (25, 50)
"""Per cent of a fit's steps after which the prior says what it sees of the sentence so far."""


@dataclass(frozen=True)
class PriorGuide:
    """nerf3d's `PromptGuide`, answered by a prior: a pure function of the pictures, the step and the seed.

    Args:
        form: what config.form names. strict: see `DistillationQuery`.
        asking: whose thread waits for the answers to `ask`. It has one thread: the parts of
            a step then never meet in the prior, where other rows would show in the last bits.
        gradients: notes every answer, if it is there.
    """

    prior: PriorClient
    info: PriorInfo
    prompt: str
    seed: int
    config: DistillationConfig
    form: str | Form = "x0"
    strict: bool = False
    asking: ThreadPoolExecutor | None = None
    gradients: GuideGradients | None = None

    @property
    def own_size(self) -> int:
        """Pixels per side at which the prior judges; renders travel to it as they are."""
        return self.info.image_size

    def __call__(self, rgb: Tensor, views: Cameras, *, background: Tensor, step: int, num_steps: int) -> GuideReply:
        """The prior's opinion on all views of a step."""
        del background  # the prior sees it in the pictures
        return self._reply(self._query(rgb, views, step=step, num_steps=num_steps, first_view=0, num_views=len(views)))

    def ask(
        self, rgb: Tensor, views: Cameras, *, background: Tensor, step: int, num_steps: int, first_view: int, num_views: int
    ) -> Callable[[], GuideReply]:
        """The guide's opinion of some of the views; calling what it returns waits for the answer."""
        del background
        assert self.asking is not None
        query = self._query(rgb, views, step=step, num_steps=num_steps, first_view=first_view, num_views=num_views)
        return self.asking.submit(self._reply, query).result

    def score(self, state: FitState) -> float:
        """What the prior sees of the sentence in the unfinished object, see `jobs.opinion.score_of_views`."""
        images, cameras = look_around(state, size=self.info.image_size)
        return score_of_views(images, cameras, self.prior, self.info, self.prompt, seed=self.seed, strict=self.strict)

    def _query(
        self, rgb: Tensor, views: Cameras, *, step: int, num_steps: int, first_view: int, num_views: int
    ) -> DistillationQuery:
        """Draws each view's timestep and names its noise from (seed, step, view), so that a resumed fit goes on exactly."""
        t = sample_timesteps(
            self.config,
            self.info.schedule,
            progress=step / num_steps,
            num_views=num_views,
            group_views=self.info.num_views or 1,
            generator=stream(self.seed, "distillation", "timesteps", step),
        )
        has_cameras = self.info.num_views is not None
        mine = range(first_view, first_view + len(views))
        return DistillationQuery(
            images=rgb.detach(),
            prompts=(self.prompt,) * len(views) if has_cameras else view_prompts(self.prompt, views, self.config),
            t=t[first_view : mine.stop],
            noise_keys=tuple((self.seed, "distillation", "noise", step, view) for view in mine),
            negative_prompt=self.config.negative_prompt,
            guidance=self.config.guidance,
            form=self.form,
            weighting=self.config.weighting,
            strict=self.strict,
            cameras=views.pose_vectors() if has_cameras else None,
            group_views=self.info.num_views or 1,
        )

    def _reply(self, query: DistillationQuery) -> GuideReply:
        answer = self.prior.distill(query)
        gradient, target, loss = (
            None if part is None else part.to(query.images) for part in (answer.gradient, answer.target, answer.loss)
        )
        assert gradient is not None
        if self.gradients is not None:
            # As it was at the prior's size, where a target's is that of half the squared difference.
            share = gradient[0].numel() / (answer.num_values or gradient[0].numel()) / (1 if loss is None else 2)
            self.gradients.add(query.t, share * gradient)
        return GuideReply(gradient, target, answer.num_values, loss)


def view_prompts(prompt: str, views: Cameras, config: DistillationConfig) -> tuple[str, ...]:
    """View-dependent prompts (DreamFusion, section 3.2): the prompt with words for where each camera stands."""
    if config.view_words == "none":
        return (prompt,) * len(views)
    directions = list(zip(views.azimuth_degrees.tolist(), views.elevation_degrees.tolist(), strict=True))
    if config.view_words == "eight":
        return tuple(f"{prompt}, {view_phrase(*direction)}" for direction in directions)
    reach = {name: getattr(config, name) for name in ("front_degrees", "back_degrees", "overhead_degrees")}
    return tuple(f"{prompt}, {four_way_phrase(*direction, **reach)}" for direction in directions)


def text_to_3d(
    spec: TextTo3DSpec,
    prior: PriorClient,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Checkpoint | None = None,
    checkpoint_every: int = 25,
    preview_every: int = 0,
    score_every: int = 0,
    wants_checkpoint: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Event, None, TextTo3DResult]:
    """Fit and cut; yields progress after every step and a checkpoint every `checkpoint_every` steps and at the end.

    Args:
        preview_every: fit steps between two looks at the unfinished object from four sides; 0 for none.
        score_every: fit steps between two scores of the unfinished object by the prior, the metric `score`; 0 for none.
        wants_checkpoint: asked after each step, for a checkpoint out of turn: somebody is about to stop the job.
        checkpoint: where an earlier attempt at the same spec got to; the mesh comes out the same, bit by bit on a
            CPU, up to rounding in each step on CUDA.

    Raises:
        CollapsedError: the fit or the mesh came to nothing.
        PriorFailed: the prior stopped answering.
        JobFailed: the checkpoint does not belong to this spec.
    """
    seconds: dict[str, float] = {}
    begin = clock()
    yield Progress(stage="prepare", step=0, total=1)
    prior = with_adapters(prior, spec.adapters)
    info = prior.info()
    yield from (Message(text=text) for text in info.notes)
    yield from _warn_of_distilled(info)
    yield from warn_of_unknown_words(prior, spec.prompt)
    yield from warn_of_prompts(prior, spec.prompt, spec.distillation.negative_prompt)
    if is_extension(kind := spec.fit.field.kind):
        FIELDS[kind] = own_field(kind)
    fit_config, note = _shown_at_the_priors_size(spec.fit, info)
    fit_config = in_the_priors_groups(fit_config, info, job=spec.name)
    if note is not None:
        yield note
    yield from _warn_of_memory(spec.mesh)
    yield from _compile_kernels(device)
    yield Progress(stage="prepare", step=1, total=1)
    seconds["prepare"] = clock() - begin

    begin = clock()
    with ThreadPoolExecutor(1, thread_name_prefix="guide") as asking:
        form = own_form(spec.distillation.form)
        gradients = GuideGradients(info.schedule.num_train_timesteps)
        guide = PriorGuide(prior, info, spec.prompt, spec.seed, spec.distillation, form, spec.strict, asking, gradients)
        every = _Every(checkpoint_every, preview_every, score_every, wants_checkpoint)
        fitted, scores = yield from _fit(spec, fit_config, guide, device, checkpoint, every, clock)
    seconds["fit"] = clock() - begin

    result = yield from cut(fitted.field, spec, seconds, device=device, clock=clock)
    result = dataclasses.replace(result, scores=scores)
    return (yield from judge(result, prior, info, spec, clock=clock))


def _warn_of_distilled(info: PriorInfo) -> Iterator[Message]:
    """Score distillation lives on the difference that a prompt makes, which models of few steps were taught to do without."""
    if info.distilled:
        yield Message(
            text=(
                f"The prior {info.name!r} was distilled to few steps ({info.distilled}) and has no classifier-free guidance to "
                "speak of, which score distillation needs; take the model that it was distilled from, or add "
                "'?distilled=none' if it is not one."
            ),
            level="warning",
        )


def _warn_of_memory(config: MeshConfig) -> Iterator[Event]:
    """Before hours of fitting rather than after them: the grid that the mesh is cut from may not fit into this machine."""
    needed, available = bytes_to_extract(config), psutil.virtual_memory().available
    if needed > available:
        yield Message(
            text=(
                f"mesh.resolution = {config.resolution} needs about {needed / 1e9:.1f} GB when the mesh is cut, but "
                f"{available / 1e9:.1f} GB are free; the process may be ended then, so take a lower mesh.resolution."
            ),
            level="warning",
        )


def _compile_kernels(device: torch.device | str) -> Iterator[Event]:
    """Where the renderer has to compile something first: says so, and does it before a step's time is taken."""
    if not needs_compiling(device):
        return
    yield Message(text="Compiling nerfacc's CUDA kernels, once for this environment; it takes some minutes.")
    try:
        build_cuda_kernels()
    except Nerf3DError as error:
        yield Message(text=str(error), level="warning")


@dataclass(frozen=True)
class _Every:
    """After which steps something is told beside the progress."""

    checkpoint_every: int
    preview_every: int
    score_every: int
    wants_checkpoint: Callable[[], bool]

    def figures(self, progress: FitProgress, guide: PriorGuide) -> dict[str, float]:
        """What a step is watched by besides its own metrics."""
        found = guide.gradients.take() if guide.gradients is not None and progress.step % GRADIENTS_EVERY == 0 else {}
        if self.score_every and progress.step % self.score_every == 0:
            found["score"] = guide.score(progress.state)
        return found

    def events(self, progress: FitProgress, scores: Mapping[str, float]) -> Iterator[Event]:
        """What is due after a step; scores: of the looks that have been taken."""
        if self.preview_every and progress.step % self.preview_every == 0:
            yield ViewsPreview(step=progress.step, images=preview_views(progress.state))
        is_due = progress.step % self.checkpoint_every == 0 or progress.step == progress.num_steps
        if is_due or self.wants_checkpoint():
            yield _checkpoint(progress, scores)


def _fit(
    spec: TextTo3DSpec,
    config: FitConfig,
    guide: PriorGuide,
    device: torch.device | str,
    checkpoint: Checkpoint | None,
    every: _Every,
    clock: Callable[[], float],
) -> Generator[Event, None, tuple[FitResult, dict[str, float]]]:
    """Drives the fit, turning its progress into events and its errors into ours; returns the scores of its looks, too."""
    state, scores = None, {}
    if checkpoint is not None:
        scores = dict(checkpoint.meta.get("scores", {}))
        state = {name: torch.from_numpy(array.copy()) for name, array in checkpoint.tensors.items()}
    yield Progress(stage="fit", step=checkpoint.step if checkpoint else 0, total=config.num_steps)
    pace = Pace(clock=clock)
    steps = fit(config, guide, seed=spec.seed, device=device, state=state)
    try:
        while True:
            progress = next(steps)
            left = pace.lap(left=progress.num_steps - progress.step)
            due = [look for look in LOOKS if progress.step == -(-progress.num_steps * look // 100)]
            looked = {f"prior_score_{look}": round(guide.score(progress.state), 4) for look in due}
            scores |= looked
            yield Progress(
                stage="fit",
                step=progress.step,
                total=progress.num_steps,
                metrics={**progress.metrics, **every.figures(progress, guide), **looked},
                seconds_left=left,
            )
            yield from every.events(progress, scores)
    except StopIteration as finished:
        return finished.value, scores
    except FitCollapsed as error:
        raise CollapsedError(str(error), kind=error.kind, step=error.step, job=spec.name) from error
    except Nerf3DError as error:
        raise JobFailed(str(error), job=spec.name) from error


def _checkpoint(progress: FitProgress, scores: Mapping[str, float]) -> Checkpoint:
    tensors = {name: tensor.numpy() for name, tensor in progress.state.state_dict().items()}
    return Checkpoint(step=progress.step, tensors=tensors, meta={"num_steps": progress.num_steps, "scores": dict(scores)})


def in_the_priors_groups(config: FitConfig, info: PriorInfo, *, job: str) -> FitConfig:
    """A prior that is told its cameras judges views in groups, spaced as in its training.

    Raises:
        JobFailed: the views of a step make no whole groups.
    """
    if info.num_views is None:
        return config
    try:
        return dataclasses.replace(config, group_views=info.num_views, group_jitter=info.elevation_jitter)
    except ValueError as error:
        raise JobFailed(
            f"The prior {info.name!r} judges {info.num_views} views together, and fit.num_views is {config.num_views} in "
            f"{config.guide_parts} parts ({error}); give a multiple of {info.num_views} views a part.",
            job=job,
        ) from error


def _shown_at_the_priors_size(config: FitConfig, info: PriorInfo) -> tuple[FitConfig, Message | None]:
    """A prior only judges pictures of the size it was trained on, so the guide is shown that size."""
    if config.guide_size == info.image_size:
        return config, None
    text = (
        f"The prior {info.name!r} judges pictures of {info.image_size} pixels; renders are scaled to that instead of "
        f"fit.guide_size = {config.guide_size}."
    )
    return dataclasses.replace(config, guide_size=info.image_size), Message(text=text)
