"""The two recipes with a fake prior: order of events, exact resume, clear failures."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from diffusion.distillation import DistillationConfig
from diffusion.prior import TOYBOX
from diffusion.schedule import NoiseSchedule
from jobs.errors import CollapsedError, InputError, JobFailed, PriorFailed
from jobs.events import Checkpoint, ImageReady, Message, Progress, ViewsPreview
from jobs.images import chunks, images
from jobs.opinion import clip_score
from jobs.pace import Pace
from jobs.prior_client import DistillationQuery, GenerateRequest, PriorInfo
from jobs.specs import MESH_METRICS, ImagesSpec, TextTo3DSpec
from jobs.text_to_3d import PriorGuide, reaches_edge, text_to_3d, view_prompts
from nerf3d.cameras import Cameras
from nerf3d.errors import BackendUnavailable
from nerf3d.fields import FieldConfig
from nerf3d.fit.loop import _guide_loss, resized
from nerf3d.guide import ResizingGuide
from nerf3d.mesh import MeshConfig, extract_mesh
from orchestrator.prior.local import LocalPrior
from tests.fakes import FAST_FIT, FAST_MESH, FakePrior

SPEC = TextTo3DSpec(prompt="a red ball", fit=dataclasses.replace(FAST_FIT, num_steps=12), mesh=FAST_MESH)


def exhaust(generator):
    """(events, result)"""
    events = []
    while True:
        try:
            events.append(next(generator))
        except StopIteration as finished:
            return events, finished.value


def assert_same_mesh(a, b):
    for name in ("vertices", "faces", "normals", "colours"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


@pytest.fixture(scope="module")
def prior():
    return LocalPrior(FakePrior())


@pytest.fixture(scope="module")
def undisturbed(prior):
    return exhaust(text_to_3d(SPEC, prior, checkpoint_every=5))


def test_a_fit_reports_its_stages_and_steps_in_order(undisturbed):
    events, result = undisturbed
    progress = [event for event in events if isinstance(event, Progress)]
    assert list(dict.fromkeys(event.stage for event in progress)) == ["prepare", "fit", "mesh", "judge"]
    assert [event.step for event in progress if event.stage == "fit"] == list(range(13))
    assert all(event.total == 12 for event in progress if event.stage == "fit")
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [5, 10, 12]
    assert set(result.seconds) == {"prepare", "fit", "mesh", "judge"}
    assert result.metrics()["num_faces"] == len(result.mesh.faces) > 0 and tuple(result.metrics()) == (
        *MESH_METRICS,
        "quality_flags",
    )


@pytest.mark.parametrize("step", [5, 12])
def test_a_resumed_fit_ends_with_the_same_mesh(prior, undisturbed, step):
    events, result = undisturbed
    checkpoint = next(event for event in events if isinstance(event, Checkpoint) and event.step == step)
    again, resumed = exhaust(text_to_3d(SPEC, prior, checkpoint=checkpoint))
    assert next(event.step for event in again if isinstance(event, Progress) and event.stage == "fit") == step
    assert_same_mesh(result.mesh, resumed.mesh)


@dataclasses.dataclass
class SolidBall:
    """A ball of even density around (centre, 0, 0), as far as the sphere of the default field goes."""

    radius: float
    centre: float
    value: float

    def density(self, points):
        inside = (points - torch.tensor([self.centre, 0, 0])).norm(dim=-1) < self.radius
        return self.value * (inside & (points.norm(dim=-1) < FieldConfig().radius)).float()

    def colour(self, points):
        return torch.full_like(points, 0.5)


@pytest.mark.parametrize("value", [20.0, 3000.0])
@pytest.mark.parametrize(
    ("radius", "centre", "reaches"), [(0.6, 0.0, False), (0.8, 0.0, False), (2.0, 0.0, True), (0.3, 0.8, True)]
)
def test_a_surface_that_the_edge_of_the_scene_cuts_off_is_told_from_one_within(radius, centre, reaches, value):
    mesh = extract_mesh(SolidBall(radius, centre, value), MeshConfig(resolution=96, texture_size=0))
    assert reaches_edge(mesh, FieldConfig()) is reaches


@pytest.mark.parametrize(("density_bias", "reaches"), [(-5.2, False), (2.0, True)])
def test_an_object_at_the_edge_of_the_scene_is_reported(prior, density_bias, reaches):
    field = FieldConfig(resolutions=(8, 16), density_bias=density_bias)
    fit = dataclasses.replace(SPEC.fit, num_steps=1, field=field)
    spec = dataclasses.replace(SPEC, fit=fit, mesh=MeshConfig(resolution=64, texture_size=0))
    events, result = exhaust(text_to_3d(spec, prior))
    assert result.metrics()["reaches_bounds"] is reaches
    assert [event.level for event in events if isinstance(event, Message) and "edge of the scene" in event.text] == (
        ["warning"] if reaches else []
    )


def test_a_checkpoint_that_is_asked_for_comes_after_the_step_and_previews_change_nothing(prior, undisturbed):
    asked = iter([False, False, True] + [False] * 20)
    events, result = exhaust(text_to_3d(SPEC, prior, checkpoint_every=5, preview_every=4, wants_checkpoint=lambda: next(asked)))
    assert [event.step for event in events if isinstance(event, Checkpoint)] == [3, 5, 10, 12]
    views = [event for event in events if isinstance(event, ViewsPreview)]
    assert [event.step for event in views] == [4, 8, 12]
    assert views[0].images.shape == (4, 96, 96, 3) and views[0].images.dtype == np.uint8 and views[0].images.std() > 1
    assert_same_mesh(result.mesh, undisturbed[1].mesh)
    events, resumed = exhaust(text_to_3d(SPEC, prior, checkpoint=next(e for e in events if isinstance(e, Checkpoint))))
    assert_same_mesh(resumed.mesh, undisturbed[1].mesh)


def test_the_prior_is_asked_on_the_way_and_a_resumed_job_knows_what_it_said(prior, undisturbed):
    events, result = undisturbed
    figures = {event.step: event.metrics for event in events if isinstance(event, Progress) and event.stage == "fit"}
    said = {name: value for metrics in figures.values() for name, value in metrics.items() if name.startswith("prior_score")}
    assert figures[3]["prior_score_25"] == result.metrics()["prior_score_25"] and said["prior_score_25"] < 1
    assert figures[6]["prior_score_50"] == result.metrics()["prior_score_50"] and said == result.scores
    checkpoint = next(event for event in events if isinstance(event, Checkpoint) and event.step == 5)
    assert checkpoint.meta["scores"] == {"prior_score_25": said["prior_score_25"]}
    assert exhaust(text_to_3d(SPEC, prior, checkpoint=checkpoint))[1].scores == said


def test_a_clip_of_ones_own_scores_the_mesh(prior):
    spec = dataclasses.replace(SPEC, clip=str(TOYBOX / "judge"))
    assert spec.fingerprint() == dataclasses.replace(spec, clip="").fingerprint()
    result = exhaust(text_to_3d(spec, prior))[1]
    expected = clip_score(result.mesh.turned(-result.turned_degrees), str(TOYBOX / "judge"), SPEC.prompt)
    assert result.metrics()["clip_score"] == pytest.approx(expected, abs=1e-3) and abs(expected) < 1
    with pytest.raises(InputError, match=r"--clip: .*holds no CLIP"):
        exhaust(text_to_3d(dataclasses.replace(spec, clip="nowhere"), prior))


def test_what_the_mesh_says_of_itself_and_a_grid_too_large_for_the_memory_reach_the_user(prior, monkeypatch):
    monkeypatch.setattr("jobs.text_to_3d.bytes_to_extract", lambda config: 10**15)
    spec = dataclasses.replace(SPEC, fit=dataclasses.replace(SPEC.fit, num_steps=1), mesh=MeshConfig(resolution=64, iso=900.0))
    events, result = exhaust(text_to_3d(spec, prior))
    words = [event.text for event in events if isinstance(event, Message) and event.level == "warning"]
    assert words[0].startswith("mesh.resolution = 64 needs about 1000000.0 GB when the mesh is cut, but")
    assert "Nothing in the field is denser than mesh.iso = 900" in words[1]
    assert {note.text for note in result.mesh.notes} <= {event.text for event in events if isinstance(event, Message)}


@pytest.mark.parametrize("kind", ["turbo", "lcm", ""])
def test_a_prior_of_few_steps_is_said_to_be_no_teacher_and_its_notes_are_handed_on(kind, prior, monkeypatch):
    info = dataclasses.replace(prior.info(), distilled=kind, notes=("a logit scale was passed over",))
    monkeypatch.setattr(prior, "info", lambda: info)
    spec = dataclasses.replace(SPEC, fit=dataclasses.replace(SPEC.fit, num_steps=1))
    said = [event for event in exhaust(text_to_3d(spec, prior))[0] if isinstance(event, Message)]
    warned = [event.level for event in said if f"was distilled to few steps ({kind})" in event.text]
    assert warned == ["warning"] * bool(kind)
    assert said[0].text == info.notes[0]


def test_kernels_are_compiled_and_announced_before_the_first_step(prior, monkeypatch):
    compiled = []
    monkeypatch.setattr("jobs.text_to_3d.needs_compiling", lambda device: not compiled)
    monkeypatch.setattr("jobs.text_to_3d.build_cuda_kernels", lambda: compiled.append(True))
    for event in text_to_3d(SPEC, prior):
        if isinstance(event, Message) and "Compiling" in event.text:
            assert not compiled
        if isinstance(event, Progress) and event.stage == "fit":
            break
    assert compiled == [True]


def test_kernels_that_do_not_build_are_a_warning_and_torch_takes_their_place(prior, monkeypatch):
    def build():
        raise BackendUnavailable("there is no nvcc")

    monkeypatch.setattr("jobs.text_to_3d.needs_compiling", lambda device: True)
    monkeypatch.setattr("jobs.text_to_3d.build_cuda_kernels", build)
    said = next(event for event in text_to_3d(SPEC, prior) if isinstance(event, Message) and event.level == "warning")
    assert said.text == "there is no nvcc"


def test_a_checkpoint_of_another_seed_is_refused(prior, undisturbed):
    checkpoint = next(event for event in undisturbed[0] if isinstance(event, Checkpoint))
    with pytest.raises(JobFailed, match="seed"):
        exhaust(text_to_3d(dataclasses.replace(SPEC, seed=1), prior, checkpoint=checkpoint))


def test_unknown_words_are_named_with_the_known_ones_and_a_way_out(prior):
    events, _ = exhaust(images(ImagesSpec(prompt="a quixotic red ball", num_images=1, num_steps=1), prior))
    (message,) = [event for event in events if isinstance(event, Message) and " of dpmpp_2m with " not in event.text]
    assert message.level == "warning" and "quixotic" in message.text and "--prior" in message.text


def test_a_prior_that_stops_being_finite_fails_the_job():
    class Broken(FakePrior):
        def answer(self, request):
            answer = super().answer(request)
            return answer * float("nan") if isinstance(answer, torch.Tensor) else answer

    with pytest.raises(PriorFailed, match="not finite"):
        exhaust(text_to_3d(SPEC, LocalPrior(Broken())))


def test_an_empty_field_is_a_collapse(prior):
    field = dataclasses.replace(SPEC.fit.field, density_bias=-60.0, blob_scale=0.0)
    spec = dataclasses.replace(SPEC, fit=dataclasses.replace(SPEC.fit, field=field, num_steps=1))
    with pytest.raises(CollapsedError) as caught:
        exhaust(text_to_3d(spec, prior))
    assert caught.value.job == spec.name and caught.value.kind == "empty_mesh"


def test_the_guide_is_a_pure_function_of_the_step(prior):
    guide = PriorGuide(prior, prior.info(), "a red ball", 3, SPEC.distillation)
    rgb = torch.full((2, 3, 16, 16), 0.3)
    views = Cameras.orbit([0.0, 90.0], [10.0, 50.0])
    background = torch.zeros(2, 3)
    replies = [guide(rgb, views, background=background, step=step, num_steps=12) for step in (4, 4, 5)]
    torch.testing.assert_close(replies[0].gradient, replies[1].gradient, rtol=0, atol=0)
    assert replies[0].gradient.shape == rgb.shape and replies[0].target.shape == rgb.shape


@pytest.mark.parametrize("form", ["x0", "sds", "x0_latents"])
@pytest.mark.parametrize(("side", "reduction"), [(8, "mean"), (24, "mean"), (8, "sum")])
def test_renders_that_the_prior_resizes_have_the_gradient_of_those_resized_before(prior, form, side, reduction):
    """Within a part in a hundred thousand, the loss's value too."""
    guide = PriorGuide(prior, prior.info(), "a red ball", 3, DistillationConfig(form=form), form)
    assert isinstance(guide, ResizingGuide) and guide.own_size == 16
    rgb = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    views, when = Cameras.orbit([0.0, 90.0], [10.0, 50.0]), {"background": torch.zeros(2, 3), "step": 4, "num_steps": 12}
    found = []
    for resizes in (False, True):
        leaf = rgb.clone().requires_grad_()
        shown = leaf if resizes else resized(leaf, 16)
        reply = guide(shown.detach(), views, **when)
        loss = _guide_loss(shown, reply, reduction)
        found.append((loss.item(), torch.autograd.grad(loss, leaf)[0], reply))
    (value, gradient, before), (ours, pulled, reply) = found
    assert ours == pytest.approx(value, rel=1e-5)
    assert float((pulled - gradient).norm() / gradient.norm()) < 1e-5
    assert (reply.target is None) == (form != "x0")
    if reply.target is not None:
        torch.testing.assert_close(reply.target, torch.nn.functional.interpolate(before.target, size=(side, side), mode="area"))


def test_prompts_say_where_the_camera_stands():
    views = Cameras.orbit([0.0, 90.0, 180.0], [10.0, 50.0, -5.0])
    assert view_prompts("a chair", views, DistillationConfig()) == (
        "a chair, front view",
        "a chair, left side view from above",
        "a chair, back view from below",
    )
    four = DistillationConfig(view_words="four", overhead_degrees=45)
    assert view_prompts("a chair", views, four) == ("a chair, front view", "a chair, overhead view", "a chair, back view")
    assert view_prompts("a chair", views, DistillationConfig(view_words="none")) == ("a chair",) * 3


def test_the_guide_is_shown_the_priors_own_size(prior):
    spec = dataclasses.replace(SPEC, fit=dataclasses.replace(SPEC.fit, guide_size=64, num_steps=1))
    events, _ = exhaust(text_to_3d(spec, prior))
    assert any(isinstance(event, Message) and "16 pixels" in event.text for event in events)


def test_image_i_is_drawn_from_seed_plus_i(prior):
    spec = ImagesSpec(prompt="a red ball", num_images=5, seed=40, num_steps=2, chunk_size=2)
    events, result = exhaust(images(spec, prior))
    ready = [event for event in events if isinstance(event, ImageReady)]
    assert [(event.index, event.seed) for event in ready] == [(i, 40 + i) for i in range(5)]
    assert all(event.image.shape == (16, 16, 3) and event.image.dtype == np.uint8 for event in ready)
    assert result.num_drawn == 5


def test_only_chunks_with_missing_images_are_drawn(prior):
    spec = ImagesSpec(prompt="a red ball", num_images=5, num_steps=1, chunk_size=2)
    assert chunks(spec, {0, 1, 2}) == [range(2, 4), range(4, 5)]
    events, _ = exhaust(images(spec, prior, done={0, 1, 2}))
    assert [event.index for event in events if isinstance(event, ImageReady)] == [2, 3, 4]
    assert next(event for event in events if not isinstance(event, Message)) == Progress(stage="draw", step=2, total=5)


def test_an_image_does_not_depend_on_its_neighbours(prior):
    alone = prior.generate(GenerateRequest(prompts=("a ball",), seeds=(7,), num_steps=3, sampler="ddpm"))
    among = prior.generate(GenerateRequest(prompts=("a ball",) * 3, seeds=(6, 7, 8), num_steps=3, sampler="ddpm"))
    np.testing.assert_allclose(alone[0].astype(int), among[1].astype(int), atol=1)


def test_a_view_does_not_depend_on_its_neighbours(prior):
    def query(views):
        return DistillationQuery(
            images=torch.full((len(views), 3, 16, 16), 0.5),
            prompts=("a red ball",) * len(views),
            t=torch.full((len(views),), 300),
            noise_keys=tuple((0, "noise", view) for view in views),
        )

    both, second = prior.distill(query([0, 1])), prior.distill(query([1]))
    torch.testing.assert_close(both.gradient[1:], second.gradient, rtol=1e-5, atol=1e-6)


def test_the_time_left_follows_the_last_steps():
    now = iter([0.0, 10.0, 11.0, 12.0, 13.0])
    pace = Pace(memory=0.5, clock=lambda: next(now))
    assert pace.lap(left=4) == 40
    left = [pace.lap(left=n) for n in (3, 2, 1)]
    assert left[-1] < 3 and left == sorted(left, reverse=True)


def test_views_in_two_halves_ask_for_what_one_question_asks(prior):
    class Listening:
        def __init__(self):
            self.queries = []

        def __getattr__(self, name):
            return getattr(prior, name)

        def distill(self, query):
            self.queries.append(query)
            return prior.distill(query)

    whole, halves = Listening(), Listening()
    for listening, parts in ((whole, 1), (halves, 2)):
        spec = dataclasses.replace(SPEC, fit=dataclasses.replace(SPEC.fit, num_steps=1, guide_parts=parts))
        _, result = exhaust(text_to_3d(spec, listening))
        assert result.mesh is not None
    (one,), (first, second) = whole.queries, halves.queries
    for name in ("images", "t"):
        torch.testing.assert_close(torch.cat([getattr(first, name), getattr(second, name)]), getattr(one, name), rtol=0, atol=0)
    for name in ("prompts", "noise_keys"):
        assert getattr(first, name) + getattr(second, name) == getattr(one, name)


class SeesCameras:
    """A prior of four views that notes what it is asked to draw."""

    def __init__(self, num_views: int | None = 4) -> None:
        self.asked: list[GenerateRequest] = []
        self._info = PriorInfo(
            name="views",
            weights_hash="0" * 64,
            image_size=8,
            schedule=NoiseSchedule(),
            num_views=num_views,
            picture_suffix=", 3d",
        )

    def info(self):
        return self._info

    def prompt_warnings(self, prompts):
        return []

    def unknown_words(self, prompts):
        return []

    def generate(self, request):
        self.asked.append(request)
        return np.zeros((len(request.seeds), 8, 8, 3), np.uint8)


def test_views_of_an_object_are_drawn_together_from_their_cameras():
    spec = ImagesSpec(
        prompt="a cup", num_images=12, num_views=4, azimuth_degrees=30, elevation_degrees=10, seed=7, chunk_size=6
    )
    prior = SeesCameras()
    events, _ = exhaust(images(spec, prior))
    assert [event.seed for event in events if isinstance(event, ImageReady)] == [7] * 4 + [8] * 4 + [9] * 4
    assert [request.seeds for request in prior.asked] == [(seed,) * 4 for seed in (7, 8, 9)]
    for request in prior.asked:
        assert request.group_views == 4 and request.prompts == ("a cup, 3d",) * 4
        expected = Cameras.orbit([30.0, 120.0, 210.0, 300.0], 10.0).pose_vectors()
        torch.testing.assert_close(request.cameras, expected)
    exhaust(images(ImagesSpec(prompt="a cup", num_images=2), prior))
    assert prior.asked[-1].cameras is None and prior.asked[-1].prompts == ("a cup",) * 2


@pytest.mark.parametrize(
    ("has", "asked", "sentence"),
    [
        (None, 4, "takes no cameras, so it cannot draw 4 views"),
        (4, 6, "draws 4 views of an object together, not 6; give --views 4"),
    ],
)
def test_views_that_the_prior_cannot_draw_are_refused(has, asked, sentence):
    with pytest.raises(InputError, match=sentence):
        exhaust(images(ImagesSpec(prompt="a cup", num_images=asked, num_views=asked), SeesCameras(has)))
