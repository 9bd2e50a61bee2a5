"""Surfaces in plain torch: the rasteriser, the loss, the fit of colours and the bake, against closed forms and the z-buffer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import trimesh

from nerf3d.cameras import Cameras
from nerf3d.errors import FitCollapsed
from nerf3d.fit import FitConfig
from nerf3d.guide import GuideReply
from nerf3d.mesh import Mesh, draw_mesh
from nerf3d.surface import Paint, PaintConfig, composite, image_loss, paint, painted_mesh, rasterise

BLUE, RED = (0.1, 0.2, 0.9), (0.9, 0.1, 0.1)


def ball(radius: float = 0.75) -> Mesh:
    """Red above, blue below, 320 faces."""
    found = trimesh.creation.icosphere(subdivisions=2, radius=radius)
    vertices = np.asarray(found.vertices)
    colours = np.where(vertices[:, 1:2] > 0, RED, BLUE)
    return Mesh(vertices, found.faces, vertices / radius, colours)


def test_the_rasteriser_draws_what_the_z_buffer_draws():
    mesh, cameras = ball(), Cameras.orbit([20.0, 200.0], [10.0, -30.0])
    faces = torch.from_numpy(mesh.faces).long()
    found = rasterise(torch.from_numpy(mesh.vertices), faces, cameras, 64)
    colours = found.interpolate(torch.from_numpy(mesh.colours), faces)
    ours = composite(found, colours, torch.ones(2, 3), supersample=2)
    theirs, _ = draw_mesh(mesh, cameras, 32, shading="albedo", supersample=2)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_weights_with_gradients_are_those_without_and_move_as_rays_do():
    mesh, cameras = ball(), Cameras.orbit([35.0], [15.0])
    faces = torch.from_numpy(mesh.faces).long()
    plain = torch.from_numpy(mesh.vertices)
    moving = plain.clone().requires_grad_()
    expected, found = (rasterise(one, faces, cameras, 24) for one in (plain, moving))
    torch.testing.assert_close(found.weights, expected.weights, atol=1e-4, rtol=0)


def test_places_move_along_their_rays_when_the_surface_moves():
    """A wall at z = 0 that faces a camera at distance r: pushed by dz, what a ray meets at x moves by (-x / r, dz)."""
    wall = torch.tensor([[-2.0, -2, 0], [2, -2, 0], [0, 3, 0]], requires_grad=True)
    faces, cameras = torch.tensor([[0, 1, 2]]), Cameras.orbit([0.0], [0.0], radius=2.7)
    found = rasterise(wall, faces, cameras, 8)
    places = found.interpolate(wall, faces)
    x = places[:, 0].detach()
    [across] = torch.autograd.grad((places[:, 0] * x).sum(), wall, retain_graph=True)
    [ahead] = torch.autograd.grad(places[:, 2].mean(), wall)
    assert float(ahead[:, 2].sum()) == pytest.approx(1.0, rel=1e-4) and float(x.square().sum()) > 1
    assert float(across[:, 2].sum()) == pytest.approx(-float(x.square().sum()) / 2.7, rel=1e-4)


def test_the_loss_is_zero_for_equal_pictures_and_counts_colour_more_than_lightness():
    grey = torch.full((1, 3, 32, 32), 0.5)
    assert float(image_loss(grey, grey)) == 0
    from kornia.color import lab_to_rgb

    lab = torch.tensor([50.0, 0, 0])[None, :, None, None].expand(1, 3, 32, 32)
    lighter, redder = (lab_to_rgb(lab + torch.tensor(change)[None, :, None, None]) for change in ([10.0, 0, 0], [0, 10.0, 0]))
    base = lab_to_rgb(lab)
    assert float(image_loss(lighter, base)) == pytest.approx(0.5 * 0.01 / 3, rel=0.3)
    assert float(image_loss(redder, base)) == pytest.approx(2 * float(image_loss(lighter, base)), rel=0.3)
    tiny = torch.zeros(1, 3, 4, 4, requires_grad=True)
    image_loss(tiny, torch.ones(1, 3, 4, 4)).backward()
    assert torch.isfinite(tiny.grad).all()


@dataclasses.dataclass
class Truth:
    """A guide that would rather see the mesh in its own colours, lit as it was lit."""

    mesh: Mesh
    gives_target: bool = True

    def __call__(self, rgb, views, *, background, step, num_steps):
        pictures = []
        for view in range(len(views)):
            picture, alpha = draw_mesh(self.mesh, views[[view]], rgb.shape[-1], shading="albedo", background=background[view])
            pictures.append(torch.where(alpha > 0.5, picture, rgb[[view]]))
        target = torch.cat(pictures)
        return GuideReply(2 * (rgb - target), target if self.gives_target else None)


SCENES = FitConfig(num_steps=25, num_views=2, guide_size=24, lit_from=1.0)
FAST = PaintConfig(num_steps=25, num_views=2, resolutions=(4, 16), texture_size=64, rate=0.2)


def drain(steps):
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            return finished.value


@pytest.mark.parametrize("gives_target", [True, False])
def test_paint_finds_the_colours_that_a_guide_wants(gives_target):
    mesh = ball()
    found = drain(paint(mesh, Truth(mesh, gives_target), FAST, scenes=SCENES, seed=3))
    whole = painted_mesh(mesh, found, FAST)
    cameras = Cameras.orbit([0.0, 90.0, 225.0], 10.0)
    (ours, alpha), (theirs, _) = (draw_mesh(one, cameras, 48, shading="albedo") for one in (whole, mesh))
    inside = (alpha > 0.99).expand_as(ours)
    assert float((ours - theirs)[inside].abs().mean()) < 0.12  # grey is 0.37 away
    assert whole.texture.base_colour.shape == (64, 64, 3) and whole.texture.normal_map is None
    np.testing.assert_array_equal(whole.vertices, mesh.vertices)


def test_paint_of_nothing_keeps_a_texture_to_the_byte_and_same_seeds_are_same():
    mesh = ball()
    fresh = painted_mesh(mesh, Paint((4,)), FAST)
    assert (fresh.texture.base_colour >= 127).all() and (fresh.texture.base_colour <= 128).all()
    kept = dataclasses.replace(FAST, keep_texture=True)
    textured = painted_mesh(mesh, Paint((4,)), kept)
    again = painted_mesh(textured, Paint((4,)), kept)
    difference = again.texture.base_colour.astype(int) - textured.texture.base_colour
    assert np.abs(difference).max() <= 1
    one, other = (
        drain(paint(mesh, Truth(mesh), dataclasses.replace(FAST, num_steps=3), scenes=SCENES, seed=5)) for _ in range(2)
    )
    torch.testing.assert_close(one.volume(), other.volume(), atol=0, rtol=0)


def test_a_guide_that_answers_nonsense_ends_the_fit():
    def broken(rgb, views, **_):
        return GuideReply(torch.full_like(rgb, float("nan")))

    with pytest.raises(FitCollapsed, match="loss is nan"):
        drain(paint(ball(), broken, FAST, scenes=SCENES, seed=0))


@pytest.mark.parametrize(
    ("field", "value"), [("num_steps", 0), ("resolutions", ()), ("texture_size", 1000), ("rate", 0.0), ("supersample", 9)]
)
def test_settings_are_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} is "):
        PaintConfig(**{field: value})
